"""The ``sinkgate`` command: ask, look at sinks, describe and list models, make scenes, convert gates, start the app."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer
from tqdm import tqdm

from sinkgate.errors import SinkgateError

cli = typer.Typer(
    help="Find attention sinks in vision-language models and gate their Keys, layer by layer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
GatesFile = Annotated[Path | None, typer.Option("--gates", help="JSON file of gates, as Gates.save writes it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Criterion = Annotated[str, typer.Option(help="auto, dimensions, massive, norm or attention.")]


@cli.command()
def ask(
    image: Picture,
    question: Annotated[str, typer.Argument(help="What to ask about the image.")],
    model: Model = "demo",
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    revision: Revision = None,
    gates: GatesFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer, in tokens.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, with the Keys gated if a file of gates is given."""
    from sinkgate.gates import Gates
    from sinkgate.vlm import find_sinks

    table = Gates.load(gates) if gates else None
    vlm = _load(model, device, device_map, dtype, quantize, revision)
    table = (table or Gates.ones(vlm)).for_model(vlm)
    prompt = vlm.prompt(image, question)
    sinks = find_sinks(vlm, prompt)
    trace = vlm.answer(prompt, table, sinks, max_new_tokens=max_new_tokens)
    unknown = vlm.unknown_words(question)
    if as_json:
        _print_json(
            text=trace.text,
            next_token=[{"token": token, "probability": probability} for token, probability in trace.next_token],
            v_sink=_positions(sinks.v_sink, prompt.visual),
            l_sink=[_positions(mask, prompt.visual) for mask in sinks.l_sink],
            scales=json.loads(table.to_json())["scales"],
            unknown_words=unknown,
        )
        return
    if unknown:
        typer.echo(f"The model never learnt: {', '.join(unknown)}.", err=True)
    typer.echo(trace.text)


@cli.command()
def sinks(
    image: Picture,
    question: Annotated[
        str, typer.Option(help="The question that the LLM reads behind the image.")
    ] = "What is in the picture?",
    v_sink: Criterion = "auto",
    l_sink: Criterion = "auto",
    model: Model = "demo",
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    revision: Revision = None,
    everything: Annotated[
        bool, typer.Option("--report", help="What every criterion says, and where they disagree.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say which visual tokens of an image are sinks, and why."""
    from sinkgate.reports import report
    from sinkgate.sinks import criterion
    from sinkgate.vlm import find_sinks

    for name in (v_sink, l_sink):
        criterion(name)  # refuse a wrong name before the model is loaded
    vlm = _load(model, device, device_map, dtype, quantize, revision)
    prompt = vlm.prompt(image, question)
    if everything:
        typer.echo(str(report(vlm, prompt)))
        return
    found = find_sinks(vlm, prompt, v_sink=v_sink, l_sink=l_sink)
    verdict = found.v_verdict  # None where the vision encoder cannot be looked into
    if as_json:
        _print_json(
            summary=found.summary(),
            grid=list(prompt.grid),
            v_sink=_positions(found.v_sink, prompt.visual),
            l_sink=[_positions(mask, prompt.visual) for mask in found.l_sink],
            v_criterion=verdict.criterion if verdict else None,
            l_criterion=found.l_verdict.criterion,
            v_score=verdict.score[0].tolist() if verdict else [],
            evidence=[found.explain(int(token)) for token in found.v_sink.nonzero()[:, 0]],
        )
        return
    typer.echo(found.summary())
    for token in found.v_sink.nonzero()[:, 0]:
        typer.echo(f"  {found.explain(int(token))}")
    for layer, mask in enumerate(found.l_sink):
        for token in mask.nonzero()[:, 0]:
            typer.echo(f"  layer {layer}: {found.explain(int(token), layer)}")


@cli.command()
def dimensions(
    model: Model = "demo",
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    revision: Revision = None,
    cache: Annotated[bool, typer.Option(help="Take the result from disk, and keep it there.")] = True,
    as_json: AsJson = False,
) -> None:
    """Look for a model's sink dimensions on six plain prompts, and say how sure they are."""
    from sinkgate.discovery import discover

    found = discover(_load(model, device, device_map, dtype, quantize, revision), cache=cache)
    typer.echo(found.to_json() if as_json else found.summary())


@cli.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and scenes.jsonl.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same scenes.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Side of the pictures in pixels.")] = 448,
) -> None:
    """Make random scenes of the demo world, with questions and true answers."""
    from sinkgate.demo.questions import ask_all
    from sinkgate.demo.scenes import Scene

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkgateError(f"the folder {out} cannot be made: {error.strerror}") from error
    with (out / "scenes.jsonl").open("w", encoding="utf-8") as lines:
        for index in tqdm(range(count), desc="scenes", disable=None):
            rng = Random(f"scenes/{seed}/{index}")
            scene = Scene.random(rng)
            name = f"{index:04d}.png"
            scene.render(size).save(out / name)
            questions = [vars(question) for question in ask_all(scene, rng)]
            lines.write(json.dumps({"image": name, **scene.to_dict(), "questions": questions}) + "\n")
    typer.echo(f"{count} scenes in {out}")


@cli.command()
def info(
    model: Model = "demo",
    device: Device = None,
    device_map: DeviceMap = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model as sinkgate sees it, once it has passed the checks on load."""
    from sinkgate.checks import noise_picture
    from sinkgate.facts import describe

    vlm = _load(model, device, device_map, dtype, quantize, revision)
    facts = {
        **describe(vlm, vlm.prompt(noise_picture(), "What is this?")),
        **{name: _version(name) for name in ("sinkgate", "torch", "transformers")},
        "python": platform.python_version(),
    }
    if as_json:
        _print_json(**facts)
    else:
        for name, value in facts.items():
            typer.echo(f"{name.replace('_', ' '):>14}  {value}")


@cli.command()
def models(as_json: AsJson = False) -> None:
    """List well-known models by their short names. Any other of the Hub is named by its id."""
    from sinkgate.loading import KNOWN_MODELS

    if as_json:
        _print_json(**KNOWN_MODELS)
        return
    for name, known in KNOWN_MODELS.items():
        typer.echo(f"{name:<22}{known['id']:<45}{known['note']}".rstrip())


@cli.command()
def convert(
    folder: Annotated[Path, typer.Argument(help="Folder with non_lora_trainables.bin and sink_cfg.json.")],
    out: Annotated[Path, typer.Option(help="Folder for the gates in sinkgate's format.")],
    base_model: Annotated[str | None, typer.Option(help="The model they are for, as --model would name it.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer of a gate where the files leave it open; once for each, in order.")
    ] = None,
    offset: Annotated[int, typer.Option(help="Added to the layers that the files tell.")] = 0,
    swapped: Annotated[bool, typer.Option("--swapped", help="The second output is for V-sinks.")] = False,
    activation: Annotated[str | None, typer.Option(help="gelu, silu or relu; what the files say if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Leave out what was not understood.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read gates that the paper's authors released, say what everything was taken for, and save them as sinkgate's."""
    from sinkgate.lsg.official import read_official

    found = read_official(
        folder, layers=layer or None, offset=offset, swapped=swapped, activation=activation, base_model=base_model
    )
    if as_json:
        _print_json(
            layers=list(found.gates.config.layers) if found.gates else [],
            **{name: value for name, value in vars(found).items() if name != "gates"},
        )
    else:
        typer.echo(str(found))
    lsg = found.to_lsg(force)
    lsg.save_pretrained(out)
    if not as_json:
        typer.echo(f"{lsg.trainable_parameters()}, saved in {out}")


@cli.command()
def app(
    model: Model = "demo",
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Start the app (from a clone of the repository)."""
    script = Path(__file__).parent.parent / "app" / "main.py"
    if not script.exists():
        raise SinkgateError(
            "the app lives in the repository, not in the package: clone it and run `python app/main.py`"
        )
    options = {"--model": model, "--host": host, "--port": port}
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    os.execv(sys.executable, [sys.executable, str(script), *given])


def main() -> None:
    """Run the command; what a user can mend is one sentence on stderr and exit code 2."""
    try:
        cli()
    except SinkgateError as error:
        typer.echo(f"sinkgate: {error}", err=True)
        sys.exit(2)


def _load(
    model: str,
    device: str | None,
    device_map: str | None,
    dtype: str | None,
    quantize: str | None,
    revision: str | None,
) -> Any:
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


def _positions(mask: Any, visual: Any) -> list[int]:
    return visual.cpu()[mask].tolist()


def _print_json(**content: Any) -> None:
    typer.echo(json.dumps(content))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
