"""Sweeps: one notebook at many parameters, on this machine or on a Ray cluster (docs/sweeps.md).

``notebook`` executes one notebook, ``plan`` reads the points of a sweep, ``run`` executes them, ``results`` makes the
tables.
"""
