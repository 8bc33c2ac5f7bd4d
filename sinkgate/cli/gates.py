"""Commands of gates: train, stack, convert, export-runtime."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sinkgate.cli.data import SCENES, DataChoice
from sinkgate.cli.options import (
    AnyModel,
    AsJson,
    Layers,
    ModelChoice,
    SinkChoice,
    defaults_of,
    print_json,
    refuse_unused,
    unfolded,
)
from sinkgate.output import writable_folder

OnTestSplit = Annotated[
    bool, typer.Option("--on-test-split", help="Use a benchmark's only split, though it is for testing.")
]


@unfolded
def train(
    model: ModelChoice,
    data: DataChoice,
    criteria: SinkChoice,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the gates are written to its gates/.")],
    validation: Annotated[Path | None, typer.Option(help="File in LLaVA's format, evaluated after each epoch.")] = None,
    layers: Layers = "all",
    grouping: Annotated[
        str, typer.Option(help="Groups with separate scales: v_sink (and rest), l_sink (and rest) or three.")
    ] = "v_sink",
    method: Annotated[
        Literal["lsg", "lora", "reweight"],
        typer.Option(
            help="lsg: gates; or a control: lora of rank 8 in each layer, or reweight, of V-sinks and the rest."
        ),
    ] = "lsg",
    signal: Annotated[str, typer.Option(help="Hidden state that a gate reads: last, mean or visual.")] = "last",
    start: Annotated[
        str, typer.Option(help="paper: scales sum to 1; identity: starts as the unmodified model.")
    ] = "paper",
    criterion: Annotated[
        str, typer.Option(help="Criterion of both V-sinks and L-sinks, where no other is named.")
    ] = "auto",
    together: Annotated[
        bool, typer.Option("--together", help="Train the gates as one method, not each by itself.")
    ] = False,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the samples.")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate; cosine decay to zero.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples side by side, in each process.")] = 16,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many epochs without a lower validation loss.")
    ] = None,
    report_to: Annotated[str, typer.Option(help="none, tensorboard or wandb.")] = "none",
    save_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes without a checkpoint after which one is written.")
    ] = 10,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Store no activations; less memory, more time.")
    ] = False,
    on_test_split: OnTestSplit = False,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue from the newest checkpoint in the folder, or begin anew."),
    ] = True,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Train even if no image has the sinks that the gates are for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train one gate in each of some layers, by default each by itself as in the paper. The same command resumes a killed run.

    With several GPUs: torchrun --nproc-per-node 8 -m sinkgate train ...
    """
    import torch
    from accelerate import PartialState
    from transformers import set_seed

    from sinkgate.methods import LoRA, Reweight
    from sinkgate.methods.lsg import LSG
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.training.trainer import train as train_gates

    if method != "lsg":
        of_gates = {"grouping": (grouping, "v_sink"), "signal": (signal, "last"), "start": (start, "paper")}
        unused: dict[str, tuple[Any, Any]] = {"layers": (layers, "all")}
        if method == "lora":  # which scales no group of tokens
            unused = {"criterion": (criterion, "auto"), **defaults_of(criteria)}
        refuse_unused(
            {**of_gates, **unused, "together": (together, False)}, f"which {method} does not use; leave it out"
        )
    processes = PartialState(cpu=not torch.cuda.is_available())
    writable_folder(out / "gates")  # before the work
    samples, seed = (data.used if validation else data).samples("train", on_test_split), data.seed
    if validation:  # which reads other options than the samples, perhaps
        checks = replace(data, data=str(validation), skip=0).used.samples("validation", on_test_split)
    elif data.data == "scenes":
        checks = replace(data, limit=min(data.limit or SCENES, SCENES) // 4 or 1, skip=0).samples("validation")
    else:
        checks = []
    vlm = model.load()
    set_seed(seed)
    at = read_layers(layers, vlm.num_layers)
    criterion = criteria.replaced(criterion)
    if method == "lsg":
        trained: Any = LSG.for_vlm(vlm, at, grouping=grouping, signal=signal, start=start, criterion=criterion)
        size = trained.trainable_parameters()
    else:
        trained = {f"lora-{layer}": LoRA.for_vlm(vlm, layer) for layer in at} if method == "lora" else {}
        trained = trained or {"reweight": Reweight.for_vlm(vlm, criterion=criterion)}
        count = sum(parameter.numel() for part in trained.values() for parameter in part.parameters())
        size = f"{count:,} trainable parameters"
    if processes.is_main_process and not as_json:
        typer.echo(f"{size}; {len(samples)} samples")
    report = train_gates(
        trained,
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
        allow_empty=allow_empty,
        save_minutes=save_minutes,
        resume=resume,
    )
    if not processes.is_main_process:
        return
    facts = {"data": data.data, "samples": report.samples, "epochs": report.epochs, "steps": report.steps, "seed": seed}
    evaluated = next((entry for entry in reversed(report.history) if "eval_loss" in entry), {})
    metrics = {name.removeprefix("eval_"): value for name, value in evaluated.items() if "/" in name}
    if method == "lsg":
        trained.save_pretrained(
            out / "gates", training={**facts, "learning rate": learning_rate, "validation": metrics}
        )
    else:
        for name, part in trained.items():
            part.save_pretrained(out / "gates" / name)
    (out / "report.json").write_text(report.to_json(), encoding="utf-8")
    typer.echo(report.sinks, err=True)
    if as_json:
        print_json(
            gates=str(out / "gates"), skipped=report.skipped, seconds=report.seconds, **facts, validation=metrics
        )
        return
    for name, value in metrics.items():
        typer.echo(f"  {name:<24}{value:.4f}")
    passed = f", {len(report.skipped)} samples skipped (see report.json)" if report.skipped else ""
    typer.echo(f"{report.steps} steps in {report.seconds:.0f} s{passed}; the gates are in {out / 'gates'}")


@unfolded
def stack(
    model: ModelChoice,
    data: DataChoice,
    criteria: SinkChoice,
    gates: Annotated[
        list[Path], typer.Argument(help="Folders of gates that were trained separately; their gates are joined.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the stack.")],
    layers: Annotated[
        str, typer.Option(help='Gates to choose from: "all", or layers such as 3,6,7; one alone is taken.')
    ] = "all",
    by: Annotated[Literal["loss", "accuracy"], typer.Option(help="Criterion of improvement.")] = "loss",
    margin: Annotated[float, typer.Option(help="Improvement that an added gate must exceed.")] = 0.0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples side by side.")] = 32,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume", help="Use the outcomes that a killed run left in the folder, or begin anew."
        ),
    ] = True,
    on_test_split: OnTestSplit = False,
    any_model: AnyModel = False,
    as_json: AsJson = False,
) -> None:
    """Stack gates greedily by validation score, the best first, without further training. The same command resumes a killed run."""
    from sinkgate.methods.lsg import LSG
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.training.stacking import stack as stack_gates

    lsg = LSG.joined([LSG.from_pretrained(folder) for folder in gates])
    if layers != "all":
        lsg = lsg.only(read_layers(layers, lsg.config.layers[-1] + 1))
    samples = data.samples("validation", on_test_split)
    writable_folder(out)  # before the work
    vlm = model.load()
    lsg.check_fits(vlm, any_model)
    lsg.config = replace(lsg.config, criterion=criteria.replaced(lsg.config.criterion))
    stacked = stack_gates(
        lsg.to(vlm.device), vlm, samples, score=by, margin=margin, batch_size=batch_size, out=out, resume=resume
    )
    in_stack = list(stacked.lsg.config.layers)
    typer.echo(stacked.sinks, err=True)
    validation = {by: abs(stacked.score), f"{by} of the unmodified model": abs(stacked.unmodified)}
    save = partial(stacked.lsg.save_pretrained, out, training={**validation, "samples": len(samples)})
    if as_json:  # printed before it is saved, so that a full disk loses nothing
        steps = [{"layers": step.layers, "score": step.score, "kept": step.accepted} for step in stacked.steps]
        scores = {"score": stacked.score, "unmodified": stacked.unmodified, "singles": stacked.singles}
        print_json(layers=in_stack, **scores, steps=steps)
        save()
        return
    typer.echo(f"unmodified      {by} {abs(stacked.unmodified):.4f}")
    for step in stacked.steps:
        typer.echo(f"{'kept' if step.accepted else 'left':<6}{step.layers!s:<24}{by} {abs(step.score):.4f}")
    save()
    typer.echo(f"a stack of layers {in_stack}, saved in {out}")
    if stacked.score <= stacked.unmodified:
        typer.echo("It is no better than the unmodified model on these samples.")


def convert(
    folder: Annotated[Path, typer.Argument(help="Folder with non_lora_trainables.bin and sink_cfg.json.")],
    out: Annotated[Path, typer.Option(help="Folder for the gates in sinkgate's format.")],
    base_model: Annotated[str | None, typer.Option(help="The gates' model, named as for --model.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer of a gate if the files do not say; once for each, in order.")
    ] = None,
    offset: Annotated[int, typer.Option(help="Added to the layer numbers in the files.")] = 0,
    swapped: Annotated[bool, typer.Option("--swapped", help="The second output is for V-sinks.")] = False,
    activation: Annotated[str | None, typer.Option(help="gelu, silu or relu; that of the files if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Ignore entries that the importer cannot read.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert gates from the files of the paper's authors, and report how each entry was read."""
    from sinkgate.methods.lsg.importer import import_gates

    imported = import_gates(
        folder, layers=layer or None, offset=offset, swapped=swapped, activation=activation, base_model=base_model
    )
    if as_json:
        print_json(
            layers=list(imported.gates.config.layers) if imported.gates else [],
            **{name: value for name, value in vars(imported).items() if name != "gates"},
        )
    else:
        typer.echo(str(imported))
    lsg = imported.to_lsg(force)
    lsg.save_pretrained(out)
    if not as_json:
        typer.echo(f"{lsg.trainable_parameters()}, saved in {out}")


@unfolded
def export_runtime(
    model: ModelChoice,
    criteria: SinkChoice,
    gates: Annotated[Path, typer.Argument(help="JSON file of fixed gates, or folder of learned ones.")],
    out: Annotated[Path, typer.Option(help="Folder for the module and its data.")],
    any_model: AnyModel = False,
    as_json: AsJson = False,
) -> None:
    """Write gates as one Python module that needs torch and transformers only, to serve a model without sinkgate."""
    from sinkgate.methods import runtime
    from sinkgate.methods.lsg import LSG
    from sinkgate.sinks.fine_gates import load_gates

    table = LSG.from_pretrained(gates) if gates.is_dir() else load_gates(gates)
    writable_folder(out)  # before the work
    vlm = model.load()
    if isinstance(table, LSG):
        table.to(vlm.device)
    v_sink, l_sink = criteria.criteria
    files = runtime.export_runtime(vlm, table, out, v_sink=v_sink, l_sink=l_sink, any_model=any_model)  # pyright: ignore[reportArgumentType] - refuses fine gates
    if as_json:
        print_json(files=[str(file) for file in files], model=vlm.name)
        return
    typer.echo(f"{', '.join(file.name for file in files)} in {out}; logits equal sinkgate's on a test picture")
