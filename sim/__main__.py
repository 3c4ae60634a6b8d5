"""``python -m sim`` is ``kongsim``."""

from sim.cli import main

main()
