"""Any samples as a benchmark: share of right answers, by kind."""

from __future__ import annotations

from collections.abc import Iterable

from sinkgate.benchmarks.base import Benchmark, Item, micro
from sinkgate.benchmarks.extraction import plain
from sinkgate.benchmarks.reading import Row
from sinkgate.data import Sample


def of_samples(name: str, samples: Iterable[Sample]) -> tuple[Benchmark, list[Item]]:
    """Return a benchmark of samples, and its items, numbered in their order."""
    benchmark = Benchmark(name=name, split="", scores={"micro": micro}, extractors={"robust": plain}, item_of=_item)
    return benchmark, [_item({"sample": sample, "id": number}) for number, sample in enumerate(samples)]


def _item(row: Row) -> Item:
    return Item(row["sample"], str(row["id"]), {})
