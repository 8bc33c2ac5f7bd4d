"""Common parts of the studies that put a benchmark's items to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

import pandas as pd

from sinkgate.benchmarks import Item
from sinkgate.data import Sample
from sinkgate.data.identity import checksum, facts_of_samples
from sinkgate.errors import SinkgateError
from sinkgate.models.vlm import VLM
from sinkgate.output import steps
from sinkgate.studies.provenance import facts_of
from sinkgate.studies.runner import Tables, chunks
from sinkgate.training.dataset import ExampleCache, ImageSinks, PreparedExample, SinkCounts

NO_KIND = "no kind"  # the task of items without a kind
T = TypeVar("T")


class OfModel:
    """Model of a study; see `sinkgate.studies.runner.Study`."""

    vlm: VLM
    chunk: int

    @property
    def model(self) -> dict[str, Any]:
        """Name, revision, class, layers and precision of the model."""
        return facts_of(self.vlm)

    def numbered(self, unit: int, values: Sequence[T]) -> list[tuple[int, T]]:
        """Return the values of one unit with their numbers."""
        start = unit * self.chunk
        return list(enumerate(values[start : start + self.chunk], start))


class OfSamples(OfModel):
    """Model, data and units of a study of samples; see `sinkgate.studies.runner.Study`."""

    samples: Sequence[Sample]

    @property
    def data(self) -> dict[str, Any]:
        """Number of samples, and checksum of their content."""
        return facts_of_samples(self.samples)

    @property
    def units(self) -> int:
        """Number of chunks of samples."""
        return chunks(len(self.samples), self.chunk)


class OfItems(OfModel):
    """Model, data and units of a study of items; see `sinkgate.studies.runner.Study`."""

    items: Sequence[Item]

    @property
    def data(self) -> dict[str, Any]:
        """Number of items, and checksums of their content and ids."""
        facts = facts_of_samples([item.sample for item in self.items])
        return {**facts, "ids": checksum([item.id for item in self.items])}

    @property
    def units(self) -> int:
        """Number of chunks of items."""
        return chunks(len(self.items), self.chunk)

    def sinks(self, tables: Tables) -> list[ImageSinks]:
        """See `sinkgate.studies.runner.Study`."""
        return counts_of(cast(pd.DataFrame, tables["items"]))


def frame_of(items: Sequence[Item], examples: ExampleCache, first: int = 0) -> pd.DataFrame:
    """Return one row for each item, with ``sample``, its number from ``first``.

    Columns: sample, task, id, answer, the item's own columns, and those of `ImageSinks`.
    """
    rows = [
        {
            "sample": number,
            "task": item.sample.kind or NO_KIND,
            "id": item.id,
            "answer": item.sample.answer,
            **item.columns,
        }
        | vars(examples.counts[item.id])
        for number, item in enumerate(items, first)
    ]
    return pd.DataFrame(rows).astype({"v_sinks": "int32", "l_sinks": "Int32"})


def pictures_of(items: pd.DataFrame) -> pd.Series | None:
    """Return the label of each item's picture, by sample; None for a table of an older release, which has none."""
    return items.set_index("sample")["picture"] if "picture" in items else None


def counts_of(items: pd.DataFrame) -> list[ImageSinks]:
    """Return the numbers of sinks in a table of items; none for a table of an older release, which lacks them."""
    if "v_sinks" not in items:
        return []
    table = items.reindex(columns=[field.name for field in fields(ImageSinks)]).astype({"l_sinks": object})
    return [
        ImageSinks(int(v_sinks), None if pd.isna(l_sinks) else int(l_sinks), *criteria)
        for v_sinks, l_sinks, *criteria in table.fillna({"picture": ""}).itertuples(index=False)
    ]


def sinks_of(items: pd.DataFrame) -> str:
    """Return in words how many images of a table of items have sinks; "" for a table of an older release, which lacks the numbers."""
    return str(SinkCounts.of(counts)) if (counts := counts_of(items)) else ""


def prepared(examples: ExampleCache, items: Sequence[Item]) -> list[PreparedExample]:
    """Return the items' examples. An item that cannot be prepared stops the study, since scores without it are not comparable.

    Raises:
        SinkgateError: an item cannot be prepared for the model.
    """
    result = []
    for item in steps(items, "items"):
        example = examples.prepare(item.sample, item.id)
        if example is None:
            raise SinkgateError(f"item {item.id} cannot be put to the model: {examples.skipped[item.id]}")
        result.append(example)
    return result
