"""What the commands share: their common options, and how they load a model."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from sinkgate.vlm import VLM

Picture = Annotated[Path, typer.Argument(help="Image file.", metavar="IMAGE")]
Model = Annotated[
    str, typer.Option("--model", help='"demo", a name that `sinkgate models` lists, a Hub id or a folder.')
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; a GPU when there is one if left out.")]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="auto: spread the model over GPUs, memory and disk, as far as needed."),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16; the checkpoint's own if left out.")
]
Quantize = Annotated[str | None, typer.Option("--quantize", help="4bit or 8bit, by bitsandbytes.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub; main if left out.")]
GatesFile = Annotated[Path | None, typer.Option("--gates", help="JSON file of fixed gates, or folder of learned ones.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Criterion = Annotated[str, typer.Option(help="auto, dimensions, massive, norm or attention.")]


@dataclass(frozen=True)
class ModelChoice:
    """The model that a command's options name."""

    model: Model = "demo"
    device: Device = None
    device_map: DeviceMap = None
    dtype: Dtype = None
    quantize: Quantize = None
    revision: Revision = None

    def load(self) -> VLM:
        """Load it; no bars where nobody looks.

        Raises:
            SinkgateError: see `sinkgate.load`.
        """
        from transformers.utils import logging

        from sinkgate import loading

        if self.model == "demo" or not sys.stderr.isatty():
            logging.disable_progress_bar()
        options = {name: value for name, value in vars(self).items() if name != "model"}
        return loading.load(self.model, **options)


def names_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `ModelChoice`, which it gets as ``chosen``."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(ModelChoice, include_extras=True)
    named = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(ModelChoice)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(chosen=ModelChoice(**{field.name: given.pop(field.name) for field in fields(ModelChoice)}), **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own if each.name != "chosen"]
    # typer reads a command's options off its signature and its annotations
    run.__signature__ = inspect.Signature([*parameters, *named])  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {each.name: each.annotation for each in (*parameters, *named)}
    return run


def print_json(**content: Any) -> None:
    """One JSON object on the screen."""
    typer.echo(json.dumps(content))
