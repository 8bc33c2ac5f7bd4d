"""What the commands share: their common options, and how they load a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

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


def load_model(
    model: str,
    device: str | None,
    device_map: str | None,
    dtype: str | None,
    quantize: str | None,
    revision: str | None,
) -> Any:
    """The model that the options name."""
    from transformers.utils import logging

    from sinkgate.loading import load

    if model == "demo" or not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(
        model,
        device=device,
        device_map=device_map,
        dtype=dtype,
        quantize=quantize,
        revision=revision,
    )


def print_json(**content: Any) -> None:
    """One JSON object on the screen."""
    typer.echo(json.dumps(content))
