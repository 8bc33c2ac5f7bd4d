"""Options of a command that name its questions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
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
            "--data",
            help='"scenes" (the demo world), a benchmark (mmstar, cvbench, pope), "cambrian", or a JSON or JSONL file in LLaVA\'s format.',
        ),
    ] = "scenes"
    files: Annotated[
        Path | None,
        typer.Option(
            "--files",
            help="The benchmark's file (Parquet or JSON), or a folder of such files; from the Hub if left out.",
        ),
    ] = None
    data_revision: Annotated[
        str | None, typer.Option("--data-revision", help="Branch, tag or commit of the benchmark on the Hub.")
    ] = None
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder to which the image paths of a JSON file are relative.")
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most samples.")] = None
    haze: Annotated[
        float, typer.Option("--haze", min=0, max=0.95, help="Maximum haze in the demo world's pictures.")
    ] = 0.0
    seed: Annotated[int, typer.Option("--seed", help="Another seed: other scenes, another draw, another order.")] = 0

    def samples(self, split: Split, on_test_split: bool = False) -> list[Sample]:
        """Return samples of the demo world's split, of a benchmark, of Cambrian or of a file, and show the progress of reading.

        Args:
            split: their use; files have one split for all uses.
            on_test_split: allow training and choices on a benchmark's only split, which is for testing.

        Raises:
            SinkgateError: there is no such benchmark or file, images are needed, a benchmark is to be trained on, or what reading raises.
        """
        from sinkgate.benchmarks import BENCHMARKS
        from sinkgate.data import read_cambrian, read_llava, scene_samples
        from sinkgate.data.llava import exists, named

        if self.data == "scenes":
            count = self.limit or SCENES
            drawn = scene_samples(count, self.seed, split=split, haze=(0.0, self.haze), per_scene=3)
            return list(track(drawn, "scenes", count, unit="samples"))
        if self.data in BENCHMARKS:
            chosen = BENCHMARKS[self.data]
            if split != "test" and not on_test_split:
                raise SinkgateError(
                    f"{chosen.name} has one split, {chosen.split!r}, and it is for testing: gates that are trained or chosen on it make its "
                    "scores meaningless; name other data, or add --on-test-split"
                )
            items = chosen.items(self.files, self.limit, self.seed, revision=self.data_revision, images=self.images)
            return [item.sample for item in items]
        if self.data != "cambrian" and not exists(self.data):
            known = ", ".join((*BENCHMARKS, "cambrian"))
            raise SinkgateError(
                f"--data is {named(self.data)}; there is no such benchmark or file: expected {known}, or a JSON or JSONL file in LLaVA's format"
            )
        if self.images is None:
            raise SinkgateError("--images is missing; expected the folder of the pictures")
        if self.data == "cambrian":
            return read_cambrian(self.images, count=self.limit or 10_000, seed=self.seed)
        skipped: Counter[str] = Counter()
        read = read_llava(self.data, self.images, broken="skip", passed=skipped)
        samples = list(track(islice(read, self.limit), "samples", self.limit, unit="samples"))
        if skipped:
            reasons = ", ".join(f"{number} {reason}" for reason, number in skipped.items())
            typer.echo(f"Skipped records of {self.data}: {reasons}.", err=True)
        return samples

    def questions(self) -> Questions:
        """Return the benchmark with its items; other samples become a benchmark that scores accuracy.

        Raises:
            SinkgateError: as ``samples``.
        """
        from sinkgate.benchmarks import BENCHMARKS, SCENES
        from sinkgate.benchmarks.samples import of_samples

        if self.data == SCENES.name:
            chosen = replace(SCENES, haze=(0.0, self.haze))
            return Questions(chosen, chosen.items(self.files, self.limit, self.seed), self.about)
        if self.data not in BENCHMARKS:
            return Questions(*of_samples(Path(self.data).name, self.samples("test")), self.about)
        chosen, files, about = BENCHMARKS[self.data], self.files, self.about
        if files is None:
            files, about["data_revision"] = chosen.fetch(self.data_revision)
        return Questions(chosen, chosen.items(files, self.limit, self.seed, images=self.images), about)

    @property
    def about(self) -> dict[str, Any]:
        """Values of the options, for the record of a study."""
        return {"data": self.data, "limit": self.limit, "seed": self.seed, "haze": self.haze}
