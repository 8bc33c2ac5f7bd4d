"""``app/main.py`` as ZeroGPU starts it, with a `spaces` of our own and the CPU for a GPU."""

import os
import runpy
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "hosting")]
os.environ["SPACES_ZERO_GPU"] = "true"

from fake_spaces import Spaces, made_up  # noqa: E402

sys.modules["spaces"] = made_up(Spaces())

from app import backend_zerogpu  # noqa: E402

backend_zerogpu.DEVICE = "cpu"
sys.argv[0] = "app/main.py"
runpy.run_path(str(TESTS.parent / "app" / "main.py"), run_name="__main__")
