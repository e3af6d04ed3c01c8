"""The embedded models of whoever names no others. A light module: ``relaylab --help`` loads it."""

STUDENT = "relay"  # the trained one
UNTRAINED = "student"
TEACHER = "teacher"
