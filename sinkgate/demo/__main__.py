"""Command line of the demo models: ``python -m sinkgate.demo remake demo-large --out runs/demo-large`` remakes every published number.

A stopped command is resumed by the same command.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from sinkgate.demo import pretrained, train
from sinkgate.demo.card import write_card
from sinkgate.demo.comparison import SETUPS, run_comparison
from sinkgate.demo.comparison_card import write_comparison
from sinkgate.demo.plans import HERE, PLANS
from sinkgate.demo.studies import run_studies

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, study and document the demo models.")


Model = Annotated[Literal["demo-small", "demo-large"], typer.Argument(help="The demo model.")]
Out = Annotated[Path, typer.Option(help="Folder of the run.")]
Publish = Annotated[bool, typer.Option("--publish", help="Write the results into the package.")]


@app.command()
def studies(
    model: Model,
    out: Out,
    only: Annotated[list[str] | None, typer.Option(help="Studies to run; all if left out.")] = None,
    scale: Annotated[float, typer.Option(min=0.001, help="Factor on the numbers of samples.")] = 1.0,
    publish: Publish = False,
) -> None:
    """Run the paper's analyses; write a page of all figures and the card with a verdict on every claim."""
    run_studies(PLANS[model], out, only=only or (), scale=scale, publish=publish)


@app.command()
def compare(
    model: Model,
    out: Out,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seeds of this process; the published ones if left out.")
    ] = None,
    publish: Publish = False,
) -> None:
    """Train learned gates and baselines and compare them; write tables and figures of the seeds in the folder."""
    setup = SETUPS[model]
    run_comparison(setup, out, seed)
    write_comparison(setup, out, HERE / setup.gates if publish else out, setup.seeds[0] if publish else None)


@app.command()
def card(
    model: Model,
    history: Annotated[Path | None, typer.Option(help="history.jsonl of the training run.")] = None,
) -> None:
    """Write the card beside the weights, from the published studies."""
    write_card(PLANS[model], history)


@app.command()
def remake(
    model: Model,
    out: Out,
    language: Annotated[
        str | None,
        typer.Option(help="Hub id, folder or GGUF file of SmolLM2-135M-Instruct: train the large model first."),
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="Train the small model first.")] = False,
) -> None:
    """Remake everything of a model that the package holds: weights (on request), gates, studies, card."""
    plan, history = PLANS[model], None
    if training or language:
        if language:
            pretrained.main(out / "training", language)
        else:
            train.main(out / "training")
            history = out / "training" / "history.jsonl"
        shutil.copytree(out / "training" / "model", plan.weights, dirs_exist_ok=True)
    compare(model, out / "comparison", publish=True)
    studies(model, out / "studies", publish=True)
    write_card(plan, history)


if __name__ == "__main__":
    app()
