"""The embedded models of whoever names no others. A light module: ``relaylab --help`` loads it."""

STUDENT = "lifelike/relay"  # the trained one
UNTRAINED = "lifelike/student"
