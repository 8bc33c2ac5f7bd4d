"""Options of a command that name its questions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from sinkgate.errors import SinkgateError
from sinkgate.output import track

if TYPE_CHECKING:
    from sinkgate.benchmarks import Benchmark, Item
    from sinkgate.data import Sample

SCENES = 2600  # samples without --limit
#: Options that each kind of data reads, beside --limit, --skip and --seed.
READS = {
    "scenes": {"haze"},
    "a benchmark": {"files", "data_revision", "images", "broken"},
    "cambrian": {"files", "images", "broken"},
    "VQA v2 or GQA": {"images", "annotations", "broken"},
    "LLaVA's format": {"images", "broken", "turns"},
}
Split = Literal["train", "validation", "test"]


class Questions(NamedTuple):
    """A benchmark, its items, and the options that chose them."""

    benchmark: Benchmark
    items: list[Item]
    about: dict[str, Any]


@dataclass(frozen=True)
class DataChoice:
    """Options of a command that name its questions."""

    data: Annotated[
        str,
        typer.Option(
            help='"scenes" (the demo world), a benchmark (mmstar, cvbench, pope), "cambrian", or a file in JSON: LLaVA\'s format, VQA v2 or GQA.'
        ),
    ] = "scenes"
    files: Annotated[
        Path | None,
        typer.Option(
            help="The benchmark's file (Parquet or JSON), a folder of such files, or Cambrian's JSONL; from the Hub if left out."
        ),
    ] = None
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the benchmark on the Hub.")] = None
    images: Annotated[
        Path | None, typer.Option(help="Folder to which the image paths of a JSON file are relative.")
    ] = None
    annotations: Annotated[
        Path | None, typer.Option(help="Answers of VQA v2's questions; those beside them if left out.")
    ] = None
    broken: Annotated[
        Literal["skip", "stop"] | None,
        typer.Option(help="Invalid records: skip and count, or stop; if left out, benchmarks stop, others skip."),
    ] = None
    turns: Annotated[
        Literal["first", "all", "context"],
        typer.Option(
            help="Questions of a conversation in LLaVA's format: the first, all without the turns before, or all in their context."
        ),
    ] = "first"
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples.")] = None
    skip: Annotated[
        int, typer.Option(min=0, help="Leave out the first samples, such as those that gates were trained on.")
    ] = 0
    haze: Annotated[float, typer.Option(min=0, max=0.95, help="Maximum haze in the demo world's pictures.")] = 0.0
    seed: Annotated[int, typer.Option(help="Another seed: other scenes, another draw, another order.")] = 0

    def samples(self, split: Split, on_test_split: bool = False) -> list[Sample]:
        """Return samples of the demo world's split, of a benchmark, of Cambrian or of a file, and show the progress of reading.

        Args:
            split: their use; files have one split for all uses.
            on_test_split: allow training and choices on a benchmark's only split, which is for testing.

        Raises:
            SinkgateError: there is no such benchmark or file, images are needed, a benchmark is to be trained on, or what reading raises.
        """
        from sinkgate.benchmarks import BENCHMARKS
        from sinkgate.data import read_cambrian, read_llava, read_questions, scene_samples
        from sinkgate.data.cambrian import CAMBRIAN
        from sinkgate.data.llava import exists, named
        from sinkgate.data.vqa import is_question_file

        self._check()
        if self.skip:  # the first samples of a larger draw are those of a smaller one
            longer = replace(self, skip=0, limit=None if self.limit is None else self.skip + self.limit)
            samples = longer.samples(split, on_test_split)
            if len(samples) <= self.skip:
                raise SinkgateError(
                    f"--skip is {self.skip} of {len(samples)} samples; expected fewer, or a larger --limit"
                )
            return samples[self.skip :]
        if self.data == "scenes":
            count = self.limit or SCENES
            drawn = scene_samples(count, self.seed, split=split, haze=(0.0, self.haze), per_scene=3)
            return list(track(drawn, "scenes", count, unit="samples"))
        if self.data in BENCHMARKS:
            benchmark = BENCHMARKS[self.data]
            if split != "test" and not on_test_split:
                raise SinkgateError(
                    f"{benchmark.name} has one split, {benchmark.split!r}, and it is for testing: gates that are trained or chosen on it make its "
                    "scores meaningless; name other data, or add --on-test-split"
                )
            return [item.sample for item in self._items(benchmark, self.files, self.data_revision)]
        if self.data != "cambrian" and not exists(self.data):
            known = ", ".join((*BENCHMARKS, "cambrian"))
            raise SinkgateError(
                f"there is no benchmark and no file {named(self.data)}; expected {known}, or a JSON file in LLaVA's format, of VQA v2 or GQA"
            )
        if self.images is None:
            raise SinkgateError("--images is missing; expected the folder of the pictures")
        options: Any = {"broken": self.broken or "skip", "passed": (passed := Counter())}
        if self.data == "cambrian":
            options |= {"count": self.limit or 10_000, "seed": self.seed}
            samples = read_cambrian(self.images, self.files or CAMBRIAN, **options)
        else:
            if is_question_file(self.data):
                read = read_questions(self.data, self.images, self.annotations, **options)
            else:
                read = read_llava(self.data, self.images, turns=self.turns, **options)
            samples = list(track(islice(read, self.limit), "samples", self.limit, unit="samples"))
        self._report(passed)
        if not samples:
            raise SinkgateError(f"{named(self.data)} holds no record that can be used; expected one at least")
        return samples

    def questions(self) -> Questions:
        """Return the benchmark with its items; other samples become a benchmark that scores accuracy.

        Raises:
            SinkgateError: as ``samples``.
        """
        from sinkgate.benchmarks import BENCHMARKS, SCENES
        from sinkgate.benchmarks.samples import of_samples

        self._check()
        if self.skip and self.data == SCENES.name:
            raise SinkgateError(f"--skip is {self.skip}; expected none with the questions of a benchmark")
        if self.data == SCENES.name:
            benchmark = replace(SCENES, haze=(0.0, self.haze))
            return Questions(benchmark, benchmark.items(self.files, self.limit, self.seed), self.about)
        if self.data not in BENCHMARKS:
            return Questions(*of_samples(Path(self.data).name, self.samples("test")), self.about)
        benchmark, files, about = BENCHMARKS[self.data], self.files, self.about
        if files is None:
            files, about["data_revision"] = benchmark.fetch(self.data_revision)
        return Questions(benchmark, self._items(benchmark, files), about)

    @property
    def about(self) -> dict[str, Any]:
        """Values of the options, for the record of a study."""
        about = {"data": self.data, "limit": self.limit, "seed": self.seed, "haze": self.haze}
        unusual = {"skip": self.skip or None, "turns": None if self.turns == "first" else self.turns}
        return about | {name: value for name, value in unusual.items() if value is not None}

    @property
    def used(self) -> DataChoice:
        """The same choice without the options that its data does not read."""
        from sinkgate.benchmarks import BENCHMARKS
        from sinkgate.data.llava import exists
        from sinkgate.data.vqa import is_question_file

        if self.data in ("scenes", "cambrian"):
            kind = self.data
        elif self.data in BENCHMARKS:
            kind = "a benchmark"
        elif exists(self.data):
            kind = "VQA v2 or GQA" if is_question_file(self.data) else "LLaVA's format"
        else:
            return self  # reading it raises
        unread = set().union(*READS.values()) - READS[kind]
        return replace(self, **{each.name: each.default for each in fields(self) if each.name in unread})

    def _check(self) -> None:
        """Raise SinkgateError if an option does not fit the data."""
        from sinkgate.benchmarks import BENCHMARKS
        from sinkgate.data.llava import named

        for name, value in vars(self.used).items():
            if (got := getattr(self, name)) == value:
                continue
            option = f"--{name.replace('_', '-')} is {got}"
            if name == "turns":
                raise SinkgateError(f"{option}; expected first with {named(self.data)}, whose questions stand alone")
            raise SinkgateError(f"{option}, which {named(self.data)} does not use; leave it out")
        if self.files and self.data_revision:
            raise SinkgateError(
                f"--data-revision is {self.data_revision}, and --files names files of this machine, which have none; leave out one of the two"
            )
        if self.skip and self.data in BENCHMARKS and self.data != "scenes":
            raise SinkgateError(
                f"--skip is {self.skip}; expected none with {self.data}, whose questions are drawn at random"
            )

    def _items(self, benchmark: Benchmark, files: Path | None, revision: str | None = None) -> list[Item]:
        passed: Counter[str] = Counter()
        options: Any = {"revision": revision, "images": self.images, "broken": self.broken or "stop", "passed": passed}
        items = benchmark.items(files, self.limit, self.seed, **options)
        self._report(passed)
        return items

    def _report(self, skipped: Counter[str]) -> None:
        if skipped:
            reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
            typer.echo(f"Skipped records of {self.data}: {reasons}.", err=True)
