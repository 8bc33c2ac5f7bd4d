"""Commands that describe models."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from sinkgate.cli.options import AsJson, ModelChoice, print_json, unfolded


@unfolded
def dimensions(
    model: ModelChoice,
    cache: Annotated[bool, typer.Option(help="Read the result from disk, and store it there.")] = True,
    as_json: AsJson = False,
) -> None:
    """Find a model's sink dimensions on twelve plain prompts, with a confidence for each."""
    from sinkgate.models.dimensions import discover

    discovery = discover(model.load(), cache=cache)
    typer.echo(discovery.to_json() if as_json else discovery.summary())


@unfolded
def info(model: ModelChoice, as_json: AsJson = False) -> None:
    """Describe a model after its checks on load: layers, image tokens, sinks, gates, versions."""
    from sinkgate.models.checks import noise_picture
    from sinkgate.models.describe import describe

    vlm = model.load()
    facts = {
        **describe(vlm, vlm.prompt(noise_picture(), "What is this?")),
        **{name: _version(name) for name in ("sinkgate", "torch", "transformers")},
        "python": platform.python_version(),
    }
    if as_json:
        print_json(**facts)
    else:
        for name, value in facts.items():
            typer.echo(f"{name.replace('_', ' '):>14}  {value}")


def models(as_json: AsJson = False) -> None:
    """List well-known models by their short names. Any other model of the Hub is named by its id."""
    from sinkgate.models.loading import KNOWN_MODELS

    if as_json:
        print_json(**KNOWN_MODELS)
        return
    for name, known in KNOWN_MODELS.items():
        typer.echo(f"{name:<22}{known['id']:<45}{known['note']}".rstrip())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
