"""The demo world as a benchmark that needs no network: open questions about scenes of shapes, 13 tasks, global or local."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sinkgate.benchmarks.base import Benchmark, Item, among, mean_over, micro
from sinkgate.benchmarks.extraction import plain
from sinkgate.benchmarks.reading import Row
from sinkgate.data import scene_samples
from sinkgate.data.scenes import Split
from sinkgate.errors import BenchmarkError
from sinkgate.scenes.questions import KINDS

COUNT = 2600  # default limit: 200 of each kind
SIZE = 128  # side of a picture in pixels, the demo model's largest


@dataclass(frozen=True, kw_only=True)
class Scenes(Benchmark):
    """Scenes of one split of the demo world.

    ``haze``: its minimum and maximum in a picture, in [0, 1). ``kinds``: of questions, all if None.
    """

    haze: tuple[float, float] = (0.0, 0.0)
    kinds: tuple[str, ...] | None = None

    def _rows(
        self, files: str | Path | None, limit: int | None, seed: int, revision: str | None
    ) -> Iterator[tuple[str, Row]]:
        if files is not None or revision is not None:
            raise BenchmarkError("scenes are drawn, not read: omit files and revision, and change seed, split or haze")
        samples = scene_samples(
            limit or COUNT, seed, split=cast(Split, self.split), kinds=self.kinds, haze=self.haze, size=SIZE
        )
        for number, sample in enumerate(samples):
            name = f"{self.split}/{seed}/{number}"
            yield name, {"sample": sample, "id": name}


def _item(row: Row) -> Item:
    return Item(row["sample"], row["id"], {"scope": KINDS[row["sample"].kind].scope})


SCENES = Scenes(
    name="scenes",
    split="test",
    item_of=_item,
    scores={
        "micro": micro,
        "kind mean": mean_over("task"),
        "global": among("scope", "global"),
        "local": among("scope", "local"),
    },
    extractors={"robust": plain},
)
