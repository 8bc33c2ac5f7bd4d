"""Benchmarks: files of questions, items read from their rows, extractors of answers, and published scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd

from sinkgate.analysis.scores import CountedScore
from sinkgate.benchmarks.extraction import without_reasoning
from sinkgate.benchmarks.reading import Fetched, Row, Table, fetch, files_in, with_images
from sinkgate.data import Sample
from sinkgate.data.llava import Broken, one_of
from sinkgate.errors import BenchmarkError
from sinkgate.images.io import Picture

#: Reads an option from a text, given the options and their choices; None if the text names none, or two.
Extractor = Callable[[str, Sequence[str], Sequence[str]], str | None]
#: A number in [0, 1] from a table with one row an item: task, answer, the item's columns and ``right``. NaN where it is not defined.
#: Any function; a `CountedScore` has its interval hundreds of times sooner.
Score = Callable[[pd.DataFrame], float]


@dataclass(frozen=True)
class Item:
    """A question of a benchmark.

    ``sample.kind`` is its task. Scores group by ``columns``. ``choices`` are the texts of ``sample.options``; () if unknown.
    """

    sample: Sample
    id: str
    columns: dict[str, str]
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark whose questions are files on the Hub.

    Args:
        name: name on the command line.
        split: name of the split.
        hub: repository on the Hub.
        patterns: files of the split there.
        columns: columns that every row must have.
        renamed: other names of these columns in some files.
        of_file: columns that follow from the name of a file.
        item_of: makes an item of a row; raises BenchmarkError if it is not possible.
        scores: published scores by name; each is a function of a table with one row for each item.
        extractors: published rules that read an answer, by name; "robust" is our own.

    Example:
        >>> BENCHMARKS["pope"].scores["F1"]
    """

    name: str
    split: str
    hub: str = ""
    patterns: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    of_file: Callable[[Path], Row] = field(default=lambda _: {}, repr=False)
    item_of: Callable[[Row], Item] = field(repr=False)
    scores: Mapping[str, Score] = field(repr=False)
    extractors: Mapping[str, Extractor] = field(repr=False)

    def items(
        self,
        files: str | Path | None = None,
        limit: int | None = None,
        seed: int = 0,
        *,
        revision: str | None = None,
        images: str | Path | None = None,
        broken: Broken = "stop",
        passed: Counter[str] | None = None,
    ) -> list[Item]:
        """Return the questions, in the files' order. Equal pictures are stored once.

        Args:
            files: a Parquet or JSON file, or a folder of them; None fetches them from the Hub (see ``fetch``, which returns the commit).
            limit: most items, drawn at random because files are ordered by task; a larger limit includes the items of a smaller one.
            seed: of the draw.
            revision: branch, tag or commit on the Hub; refused with ``files``, which have none.
            images: folder of the images that the files name; not needed for files that hold their images.
            broken: for an invalid row, "stop" raises, "skip" skips it; the scores are then of fewer questions than published ones.
            passed: counts skipped rows as "broken".

        Raises:
            BenchmarkError: files cannot be fetched or read, a column or an image is missing, a row is invalid, or an item occurs twice.

        Example:
            >>> from sinkgate.benchmarks import benchmark
            >>> items = benchmark("pope").items("coco_pope_random.json", limit=100, images="val2014")
        """
        one_of("broken", broken, Broken)
        if limit is not None and limit < 1:
            raise BenchmarkError(f"limit is {limit}; expected 1 or more, or None for all")
        items: dict[str, Item] = {}
        unique: dict[Picture, Picture] = {}
        for position, row in self._rows(files, limit, seed, revision):
            try:
                if isinstance(row, BenchmarkError):
                    raise row
                item = self.item_of(with_images(row, images))
            except BenchmarkError as error:
                if broken == "stop":
                    raise BenchmarkError(f"{self.name}: {position}: {error}") from error
                if passed is not None:
                    passed["broken"] += 1
                continue
            if item.id in items:
                raise BenchmarkError(
                    f"{self.name}: {position}: item {item.id} occurs twice; are these two copies of the data?"
                )
            once = tuple(unique.setdefault(image, image) for image in item.sample.images)
            items[item.id] = replace(item, sample=replace(item.sample, images=once))
        return list(items.values())

    def fetch(self, revision: str | None = None) -> Fetched:
        """Return the files from the Hub, as a folder to give to ``items``, and their commit.

        Raises:
            BenchmarkError: they cannot be fetched.
        """
        return fetch(self.hub, self.patterns, revision)

    def read(self, item: Item, text: str, extractor: str = "robust") -> str | None:
        """Return an item's answer in a text: one of its options (of an open item, the text in its plainest form), or None.

        The model's reasoning is skipped, whichever extractor reads the rest, as lmms-eval does.

        Raises:
            BenchmarkError: there is no such extractor.
        """
        if extractor not in self.extractors:
            raise BenchmarkError(f"{self.name} has no extractor {extractor!r}; there are: {', '.join(self.extractors)}")
        return self.extractors[extractor](without_reasoning(text), item.sample.options, item.choices)

    def _rows(
        self, files: str | Path | None, limit: int | None, seed: int, revision: str | None
    ) -> Iterator[tuple[str, Row | BenchmarkError]]:
        """Yield rows, each with its place in words; for a row that cannot be read, its error."""
        if files is not None and revision is not None:
            raise BenchmarkError(f"revision is {revision!r}, and {files} has none; leave out one of the two")
        location = self.fetch(revision).folder if files is None else files
        table = Table(files_in(location, self.patterns), self.columns, self.renamed, self.of_file)
        shuffled = Random(seed).sample(range(len(table)), len(table))  # of all rows, so that limits nest
        return table.rows(shuffled[:limit])


# --- scores that benchmarks share


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return quotients, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


@CountedScore
def micro(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    """Return the share of right answers over all items."""
    return share(counts @ _column(answers, "right"), counts.sum(1))


def mean_over(column: str) -> CountedScore:
    """Return the score that averages the share of right answers over the groups of a column, each of the same weight."""

    @CountedScore
    def score(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
        codes, names = pd.factorize(_column(answers, column))
        members = (codes[:, None] == np.arange(len(names))).astype(np.float64)  # items x groups
        sizes = counts @ members
        shares = share((counts * _column(answers, "right")) @ members, sizes)
        return share(np.nansum(shares, 1), (sizes > 0).sum(1))  # a draw may lack a group

    return score


def among(column: str, value: str, score: CountedScore = micro) -> CountedScore:
    """Return a score of the items with a value in a column; NaN if there are none."""

    @CountedScore
    def part(answers: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
        members = np.flatnonzero(_column(answers, column) == value)
        some = counts[:, members].sum(1) > 0
        return np.where(some, score.of(answers.take(members), counts[:, members]), np.nan)

    return part


def _column(answers: pd.DataFrame, name: str) -> np.ndarray:
    values = np.asarray(answers[name])
    return values.astype(np.float64) if name == "right" else values
