"""Sweeps: one notebook at many parameters, on this machine or a Ray cluster (docs/sweeps.md).

``plan`` says which points there are, ``point`` executes one, ``engines`` say where, ``drive`` hands points to an engine
until all are finished, ``collect`` makes the table and ``report`` the page. The door is ``command.sweep``.
``shards`` hands out a filter's or an evaluation's problems in the same way; ``large_filter`` and ``large_evaluation``
put the parts together.
"""
