"""Commands of the learned gates: train, stack, evaluate, convert."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from sinkgate.cli.options import AsJson, ModelChoice, names_a_model, print_json
from sinkgate.errors import GateError, SinkgateError

if TYPE_CHECKING:
    from sinkgate.evaluation import Marks
    from sinkgate.methods import Method
    from sinkgate.samples import Sample
    from sinkgate.vlm import VLM

Data = Annotated[
    str,
    typer.Option("--data", help='"scenes" (the demo world), "cambrian", or a JSON or JSONL file in LLaVA\'s format.'),
]
Images = Annotated[Path | None, typer.Option("--images", help="Folder that the file's image paths start from.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Samples at most.")]
Haze = Annotated[float, typer.Option("--haze", min=0, max=0.95, help="Most haze in the demo world's pictures.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed: other scenes, another start, another order.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples side by side, in each process.")]
SCENES = 2600  # where no limit is given


@names_a_model
def train(
    chosen: ModelChoice,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the gates will lie in its gates/.")],
    data: Data = "scenes",
    images: Images = None,
    validation: Annotated[Path | None, typer.Option(help="File in LLaVA's format to look at after each epoch.")] = None,
    layers: Annotated[str, typer.Option(help='"all", or numbers from 0 such as 3,6,7 or 4-10.')] = "all",
    grouping: Annotated[str, typer.Option(help="v_sink, l_sink or three: who is scaled apart.")] = "v_sink",
    signal: Annotated[str, typer.Option(help="last, mean or visual: what a gate reads.")] = "last",
    start: Annotated[
        str, typer.Option(help="paper: scales sum to 1; identity: begins as the unmodified model.")
    ] = "paper",
    criterion: Annotated[str, typer.Option(help="How sinks are found.")] = "auto",
    together: Annotated[bool, typer.Option("--together", help="The gates learn as one, not each by itself.")] = False,
    epochs: Annotated[float, typer.Option(min=0.01, help="Times that each sample is seen.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Its highest; cosine to zero.")] = 1e-3,
    batch_size: BatchSize = 16,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower validation loss.")
    ] = None,
    limit: Limit = None,
    haze: Haze = 0.0,
    seed: Seed = 0,
    report_to: Annotated[str, typer.Option(help="none, tensorboard or wandb.")] = "none",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory, more time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a gate in each of some layers, by default each by itself as in the paper. A killed run goes on with the same command.

    With several GPUs: torchrun --nproc-per-node 8 -m sinkgate.cli train ...
    """
    import torch
    from accelerate import PartialState
    from transformers import set_seed

    from sinkgate.lsg import LSG
    from sinkgate.training import train as train_gates

    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.num_processes > 1 and chosen.device is None and chosen.device_map is None:
        chosen = replace(chosen, device=str(processes.device))
    samples = read_samples(data, images, limit, haze, seed, "train")
    checks = read_samples(str(validation), images, limit, haze, seed, "validation") if validation else []
    if data == "scenes" and not validation:
        checks = read_samples(data, images, min(limit or SCENES, SCENES) // 4 or 1, haze, seed, "validation")
    vlm = chosen.load()
    set_seed(seed)
    at = read_layers(layers, vlm.num_layers)
    options: dict[str, Any] = {"grouping": grouping, "signal": signal, "start": start, "criterion": criterion}
    lsg = LSG.for_vlm(vlm, at, **options)
    if processes.is_main_process and not as_json:
        typer.echo(f"{lsg.trainable_parameters()}; {len(samples)} samples")
    report = train_gates(
        lsg,
        vlm,
        samples,
        validation=checks,
        out=out,
        together=together,
        patience=patience,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        activation_checkpointing=checkpointing,
        report_to=report_to,
        seed=seed,
    )
    if not processes.is_main_process:
        return
    facts = {"data": data, "samples": report.samples, "epochs": report.epochs, "steps": report.steps, "seed": seed}
    looked = next((entry for entry in reversed(report.history) if "eval_loss" in entry), {})
    told = {name.removeprefix("eval_"): value for name, value in looked.items() if "/" in name}
    lsg.save_pretrained(out / "gates", training={**facts, "learning rate": learning_rate, "validation": told})
    (out / "report.json").write_text(report.to_json(), encoding="utf-8")
    if as_json:
        print_json(gates=str(out / "gates"), skipped=report.skipped, seconds=report.seconds, **facts, validation=told)
        return
    for name, value in told.items():
        typer.echo(f"  {name:<24}{value:.4f}")
    passed = f", {len(report.skipped)} samples passed over (see report.json)" if report.skipped else ""
    typer.echo(f"{report.steps} steps in {report.seconds:.0f} s{passed}; the gates lie in {out / 'gates'}")


@names_a_model
def stack(
    chosen: ModelChoice,
    gates: Annotated[Path, typer.Argument(help="Folder of gates that were trained apart.")],
    out: Annotated[Path, typer.Option(help="Folder for the stack.")],
    data: Data = "scenes",
    images: Images = None,
    by: Annotated[str, typer.Option(help="loss or accuracy: what decides.")] = "loss",
    margin: Annotated[float, typer.Option(help="What a gate has to add to be kept; more than that.")] = 0.0,
    limit: Limit = None,
    haze: Haze = 0.0,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Stack gates from the best, greedily by validation score; nothing is trained again."""
    from sinkgate.lsg import LSG
    from sinkgate.stacking import stack as stack_gates

    if by not in ("accuracy", "loss"):
        raise SinkgateError(f"--by is {by!r}; expected accuracy or loss")
    lsg, samples = LSG.from_pretrained(gates), read_samples(data, images, limit, haze, seed, "validation")
    vlm = chosen.load()
    lsg.check_fits(vlm)
    found = stack_gates(lsg.to(vlm.device), vlm, samples, score=by, margin=margin)
    layers = list(found.lsg.config.layers)
    told = {by: abs(found.score), f"{by} of the unmodified model": abs(found.unmodified), "samples": len(samples)}
    found.lsg.save_pretrained(out, training=told)
    if as_json:
        steps = [vars(step) for step in found.steps]
        print_json(layers=layers, score=found.score, unmodified=found.unmodified, singles=found.singles, steps=steps)
        return
    typer.echo(f"unmodified      {by} {abs(found.unmodified):.4f}")
    for step in found.steps:
        typer.echo(f"{'kept' if step.kept else 'left':<6}{step.layers!s:<24}{by} {abs(step.score):.4f}")
    typer.echo(f"a stack of layers {layers}, saved in {out}")
    if found.score <= found.unmodified:
        typer.echo("It is no better than the unmodified model on these samples.")


@names_a_model
def evaluate(
    chosen: ModelChoice,
    gates: Annotated[
        list[Path] | None, typer.Option(help="Folder of learned gates, or JSON file of fixed ones; once for each.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="var, front, suppress or remove, beside the gates; once for each.")
    ] = None,
    data: Data = "scenes",
    images: Images = None,
    limit: Limit = None,
    haze: Haze = 0.0,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    any_model: Annotated[bool, typer.Option("--any-model", help="Gates of another model too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Accuracy by kind of sample: the unmodified model beside gates and published methods."""
    from sinkgate.evaluation import evaluate as evaluate_methods
    from sinkgate.gates import Gates
    from sinkgate.lessons import Lessons
    from sinkgate.methods import Fixed

    samples = read_samples(data, images, limit, haze, seed, "test")
    vlm = chosen.load()
    methods: dict[str, Method] = {"unmodified": Fixed(Gates.ones(vlm))}
    methods |= {path.name: read_gates(path, vlm, any_model) for path in gates or ()}
    methods |= {name: published(name) for name in method or ()}
    lessons = Lessons(vlm)
    marks = evaluate_methods(vlm, methods, samples, lessons=lessons, batch_size=batch_size)
    if as_json:
        by_name = {name: {"accuracy": marks.accuracy(name), "kinds": marks.by_kind(name)} for name in methods}
        print_json(samples=len(marks.kinds), skipped=lessons.skipped, methods=by_name)
    else:
        typer.echo(_table(marks))
        if lessons.skipped:
            typer.echo(f"{len(lessons.skipped)} samples were passed over: {next(iter(lessons.skipped.values()))}")


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
        print_json(
            layers=list(found.gates.config.layers) if found.gates else [],
            **{name: value for name, value in vars(found).items() if name != "gates"},
        )
    else:
        typer.echo(str(found))
    lsg = found.to_lsg(force)
    lsg.save_pretrained(out)
    if not as_json:
        typer.echo(f"{lsg.trainable_parameters()}, saved in {out}")


def read_layers(text: str, count: int) -> list[int]:
    """Layers as they are typed: "all", "3,6,7", "4-10".

    Raises:
        GateError: anything else, or a layer that the model does not have.
    """
    if text == "all":
        return list(range(count))
    try:
        pairs = [[int(end) for end in part.split("-")] for part in text.split(",")]
        chosen = sorted({layer for pair in pairs for layer in range(pair[0], pair[-1] + 1)})
    except ValueError:
        raise GateError(f'layers are "all" or numbers such as 3,6,7 or 4-10; got {text!r}') from None
    if not chosen or chosen[-1] >= count:
        raise GateError(f"layers are {text!r}; the model has layers 0 to {count - 1}")
    return chosen


def read_samples(data: str, images: Path | None, limit: int | None, haze: float, seed: int, split: Any) -> list[Sample]:
    """Samples of the demo world's split, of Cambrian or of a file, with a bar while they are read.

    Raises:
        SinkgateError: images are needed, or what reading raises.
    """
    from sinkgate.samples import read_cambrian, read_llava, scene_samples

    if data == "scenes":
        drawn = scene_samples(limit or SCENES, seed, split=split, haze=(0.0, haze), per_scene=3)
        return list(tqdm(drawn, "scenes", total=limit or SCENES, disable=None))
    if images is None:
        raise SinkgateError("say with --images in which folder the pictures lie")
    if data == "cambrian":
        return read_cambrian(images, count=limit or 10_000, seed=seed)
    passed: Counter[str] = Counter()
    found = list(islice(tqdm(read_llava(data, images, broken="skip", passed=passed), "samples", disable=None), limit))
    if passed:
        reasons = ", ".join(f"{number} {reason}" for reason, number in passed.items())
        typer.echo(f"Records of {data} passed over: {reasons}.", err=True)
    return found


def read_gates(path: Path, vlm: VLM, any_model: bool) -> Method:
    """Learned gates, a LoRA or a reweighting from their folder, fixed gates from their file.

    Raises:
        SinkgateError: they cannot be read, or do not fit the model.
    """
    from sinkgate.gates import Gates
    from sinkgate.lsg import LSG
    from sinkgate.methods import Fixed, LoRA, Reweight

    if not path.is_dir():
        return Fixed(Gates.load(path).for_model(vlm))
    if (path / "adapter_config.json").exists():
        return LoRA.from_pretrained(path, vlm)
    if (path / "reweight_config.json").exists():
        return Reweight.from_pretrained(path).to(vlm.device)
    lsg = LSG.from_pretrained(path)
    lsg.check_fits(vlm, any_model)
    return lsg.to(vlm.device)


def published(name: str) -> Method:
    """A published method with its defaults.

    Raises:
        SinkgateError: there is none of that name.
    """
    from sinkgate.methods import VAR, Remove, SinkToTheFront, Suppress

    known: dict[str, type[Method]] = {"var": VAR, "front": SinkToTheFront, "suppress": Suppress, "remove": Remove}
    if name not in known:
        raise SinkgateError(f"no method is called {name!r}; there are: {', '.join(known)}")
    return known[name]()


def _table(marks: Marks) -> str:
    names = list(marks.right)
    width = max(len(name) for name in names) + 2
    rows = [f"{'':<18}" + "".join(f"{name:>{width}}" for name in names)]
    tables = [marks.by_kind(name) for name in names]
    for kind in tables[0]:
        rows.append(f"{kind or 'samples':<18}" + "".join(f"{table[kind]:>{width}.1%}" for table in tables))
    rows.append(f"{'all':<18}" + "".join(f"{marks.accuracy(name):>{width}.1%}" for name in names))
    return "\n".join(rows)
