"""``python tests/attacks --examples 10000``: throw that many bad inputs at the app, and say what came back."""

import argparse
import os
import sys
from pathlib import Path

import pytest

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--examples", type=int, default=10_000)
os.environ["SINKGATE_ATTACKS"] = str(parser.parse_args().examples)
sys.exit(pytest.main([str(Path(__file__).parent / "test_hostile_inputs.py"), "-s", "-p", "no:cacheprovider"]))
