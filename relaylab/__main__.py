"""``python -m relaylab``: the command line, for launchers such as ``accelerate launch -m relaylab train ...``."""

from relaylab.cli import main

main()
