"""``python -m sinkgate``, and what ``accelerate launch -m sinkgate`` starts."""

from sinkgate.cli import main

main()
