"""The embedded models of whoever names no others, and what a training leaves as defaults of its student.

A light module: ``relaylab --help`` loads it.
"""

STUDENT = "relay"  # the trained one
UNTRAINED = "student"
TEACHER = "teacher"
# Settings of a RelayConfig that a student keeps from its training (``relay_config.json``), unless they are given.
CAPS = ("max_calls", "max_call_tokens", "max_teacher_tokens", "fixed_call_tokens", "call_end")
