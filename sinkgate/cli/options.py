"""Options that commands share: the model, the criteria of sinks, the folder of results, and single ones."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sinkgate.errors import SinkgateError
from sinkgate.sinks.words import number

if TYPE_CHECKING:
    import pandas as pd

    from sinkgate.models.finder import SinkFinder
    from sinkgate.models.vlm import VLM
    from sinkgate.studies.results import Results
    from sinkgate.studies.runner import Shard, Study

QUESTION = "What is in the picture?"  # where none is given
Picture = Annotated[Path, typer.Argument(help="Image file.", metavar="IMAGE")]
System = Annotated[str, typer.Option(help="Text of the system turn; the chat template's own if left out.")]
AnyModel = Annotated[bool, typer.Option("--any-model", help="Accept gates that were made for another model.")]
Layers = Annotated[str, typer.Option("--layers", help='"all", or numbers from 0 such as 3,6,7 or 4-10.')]
Chunk = Annotated[int, typer.Option("--batch-size", min=1, help="Samples side by side, and in a part of the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, max=4096, help="Most tokens of a generated answer.")]


@dataclass(frozen=True)
class ModelChoice:
    """Options of a command that name the model."""

    model: Annotated[
        str, typer.Option(help='"demo", "demo-large", a name that `sinkgate models` lists, a Hub id or a folder.')
    ] = "demo"
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps, ...; a GPU, if there is one, if left out or auto.")
    ] = None
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the model over GPUs, memory and disk as needed.")
    ] = None
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; the checkpoint's own if left out.")] = (
        None
    )
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes.")] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub; main if left out.")] = None

    def load(self) -> VLM:
        """Load the model, on this process's own GPU under a launcher of several; without bars unless stderr is a terminal.

        Raises:
            SinkgateError: see `sinkgate.load`.
        """
        from transformers.utils import logging

        from sinkgate.models import loading

        if self.model == "demo" or not sys.stderr.isatty():
            logging.disable_progress_bar()
        options = {name: value for name, value in vars(self).items() if name != "model"}
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and self.device is None and self.device_map is None:
            import torch

            options["device"] = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None
        return loading.load(self.model, **options)


@dataclass(frozen=True)
class SinkChoice:
    """Options of a command that name the criteria of sinks.

    Raises:
        SinkgateError: no criterion has that name, or options contradict each other.
    """

    v_sink: Annotated[
        str | None,
        typer.Option(
            help="Criterion of V-sinks: auto, dimensions, massive, norm or attention. If left out: that of the gates, else auto."
        ),
    ] = None
    l_sink: Annotated[str | None, typer.Option(help="Criterion of L-sinks, likewise.")] = None
    dimensions: Annotated[
        str | None,
        typer.Option(help="Sink dimensions of the LLM, such as 1415,2533; makes the criterion of L-sinks dimensions."),
    ] = None
    vision_dimensions: Annotated[
        str | None, typer.Option(help="Sink dimensions of the vision encoder, such as 650; likewise for V-sinks.")
    ] = None
    tau: Annotated[
        float | None,
        typer.Option(
            help="Threshold of |h_d| / RMS(h) in the criterion dimensions; 20, less in narrow models, if left out."
        ),
    ] = None

    def __post_init__(self) -> None:
        from sinkgate.sinks.criteria import read_criterion

        for criterion in self.criteria:
            if criterion:
                read_criterion(criterion)
        by_dimensions = "dimensions" in " ".join(filter(None, self.criteria))
        if self.tau is not None and not (by_dimensions and 0 < self.tau < math.inf):
            raise SinkgateError(
                f"--tau is {self.tau:g}; expected a positive number with --v-sink dimensions, --l-sink dimensions or dimensions given"
            )
        sides = [criterion for criterion in self.criteria if criterion and criterion.startswith("dimensions")]
        own = [criterion for criterion in (self.v_sink, self.l_sink) if criterion and " tau " in criterion]
        if self.tau is not None and len(own) == len(sides):
            raise SinkgateError(f"--tau is {self.tau:g}, and the criterion is {own[0]!r}; leave out one of the two")

    @property
    def criteria(self) -> tuple[str | None, str | None]:
        """Criteria of V-sinks and L-sinks, each None if no option names it."""
        return (
            self._side("--v-sink", self.v_sink, "--vision-dimensions", self.vision_dimensions),
            self._side("--l-sink", self.l_sink, "--dimensions", self.dimensions),
        )

    def finder(self, methods: Iterable[Any] = (), *, l_sinks: bool = True) -> SinkFinder:
        """Return a finder of sinks by these criteria; a side that no option names has that of the methods.

        Raises:
            SinkgateError: see `sinkgate.methods.finder_of`.
        """
        from sinkgate.methods import finder_of

        v_sink, l_sink = self.criteria
        return finder_of(methods, v_sink=v_sink, l_sink=l_sink, l_sinks=l_sinks)

    def replaced(self, criterion: str) -> str:
        """Return the criterion of gates, with the sides that the options name replaced."""
        from sinkgate.sinks.criteria import by_side

        v_sink, l_sink = (named or own for named, own in zip(self.criteria, by_side(criterion), strict=True))
        return v_sink if v_sink == l_sink else f"{v_sink}; {l_sink}"

    def _side(self, option: str, criterion: str | None, numbers: str, dimensions: str | None) -> str | None:
        if dimensions is not None:
            if criterion not in (None, "dimensions"):
                raise SinkgateError(f"{numbers} belongs to {option} dimensions; got {option} {criterion}")
            parts = [part.strip() for part in dimensions.split(",")]
            if not all(part.isdecimal() for part in parts):
                raise SinkgateError(f"{numbers} is {dimensions!r}; expected numbers such as 1415,2533")
            criterion = f"dimensions {','.join(parts)}"
        if self.tau is not None and criterion and criterion.startswith("dimensions") and "tau" not in criterion:
            criterion += f" tau {self.tau:.12g}"
        return criterion


@dataclass(frozen=True)
class RunChoice:
    """Options of a command that name the folder of results and this process's share of the work.

    Raises:
        SinkgateError: the share is malformed, or is of several without a folder.
    """

    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; if left out, they are printed and not stored.")
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue the study in the folder, or refuse the folder.")
    ] = True
    shard: Annotated[
        str | None, typer.Option(help="This process's share, such as 0/8; that of the launcher if left out.")
    ] = None

    def __post_init__(self) -> None:
        if self.out is None and self.share.of > 1:
            raise SinkgateError("--out is missing; several processes share their work through a folder")

    @property
    def share(self) -> Shard:
        """Share of this process."""
        from sinkgate.studies.runner import Shard

        return Shard.parse(self.shard) if self.shard else Shard.here()

    def run(self, study: Study, scratch: ExitStack, below: str = "", shard: Shard | None = None) -> Results | None:
        """Run this process's share of a study; return its results, None if other processes have not finished theirs.

        Args:
            study: the study.
            scratch: closes the temporary folder that holds the results without --out.
            below: subfolder of --out.
            shard: the share; that of the options if None.

        Raises:
            SinkgateError: as `sinkgate.studies.runner.run`.
        """
        from sinkgate.studies.runner import run

        shard = shard or self.share
        out = self.out or Path(scratch.enter_context(TemporaryDirectory()))
        results = run(study, out / below, shard=shard, resume=self.resume)
        if results.finished:
            if self.out and not below:
                typer.echo(f"written to {out}; `sinkgate report {out}` writes a page of it", err=True)
            return results
        typer.echo(f"share {shard.rank}/{shard.of} is finished; others of {out} are not", err=True)
        return None


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is a dataclass, such as `ModelChoice`, by options for its fields."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    choices: dict[str, Any] = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name not in choices]
    for choice in choices.values():
        hints = get_type_hints(choice, include_extras=True)
        for field in fields(choice):
            option = {"default": field.default, "annotation": hints[field.name]}
            parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, **option))

    @functools.wraps(command)
    def run(**options: Any) -> None:
        for name, choice in choices.items():
            options[name] = choice(**{field.name: options.pop(field.name) for field in fields(choice)})
        command(**options)

    # typer reads the options of a command from its signature and annotations
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def refuse_unused(options: Mapping[str, tuple[Any, Any]], reason: str) -> None:
    """Refuse options that a command would leave unread.

    Args:
        options: value and default by name.
        reason: end of the sentence, with the remedy.

    Raises:
        SinkgateError: one of them differs from its default.
    """
    for name, (got, default) in options.items():
        if got != default:
            raise SinkgateError(f"--{name.replace('_', '-')} is {got}, {reason}")


def defaults_of(choice: Any) -> dict[str, tuple[Any, Any]]:
    """Return value and default of each option of a choice, for `refuse_unused`."""
    return {each.name: (getattr(choice, each.name), each.default) for each in fields(choice)}


def as_options(sentence: str) -> str:
    """Return a message with arguments of `sinkgate.load`, such as ``dtype="bfloat16"``, as options of a command."""
    arguments = "|".join(field.name for field in fields(ModelChoice))
    return re.sub(
        rf"""\b({arguments})=(["'])(.+?)\2""",
        lambda argument: f"--{argument[1].replace('_', '-')} {argument[3]}",
        sentence,
    )


def print_json(**content: Any) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(content))


def print_sinks(find: SinkFinder, vlm: VLM) -> dict[str, str]:
    """Print the criteria of sinks, and return them for the record of a study."""
    words = find.describe(vlm)
    typer.echo(words, err=True)
    return {"sinks": words}


def print_table(table: pd.DataFrame, as_json: bool) -> None:
    """Print a table, or its rows as JSON."""
    if as_json:
        print_json(rows=records(table))
    elif table.empty:
        typer.echo("Too few samples for a summary; the tables hold the measurements.")
    else:
        typer.echo(table.to_string(index=False, float_format=number, na_rep=""))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values."""
    return json.loads(table.to_json(orient="records") or "[]")
