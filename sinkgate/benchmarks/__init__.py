"""Benchmarks, one small file each. `sinkgate.benchmarks.lmms` runs all of lmms-eval's on a gated model."""

from sinkgate.benchmarks.base import Benchmark, Item
from sinkgate.benchmarks.cvbench import CVBENCH
from sinkgate.benchmarks.mmstar import MMSTAR
from sinkgate.benchmarks.pope import POPE
from sinkgate.benchmarks.scenes import SCENES, Scenes
from sinkgate.errors import BenchmarkError

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Scenes", "benchmark"]

BENCHMARKS: dict[str, Benchmark] = {each.name: each for each in (MMSTAR, CVBENCH, POPE, SCENES)}


def benchmark(name: str) -> Benchmark:
    """Return the benchmark with a name.

    Raises:
        BenchmarkError: there is none.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark is called {name!r}; there are: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
