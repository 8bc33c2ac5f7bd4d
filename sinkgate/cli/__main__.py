"""``python -m sinkgate.cli``."""

from sinkgate.cli import main

main()
