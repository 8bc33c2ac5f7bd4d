"""The paper's analyses on the demo model, and what becomes of each claim: ``python -m sinkgate.demo.studies --out runs/studies``.

Every study is written as it goes; a run that was stopped goes on with the same command. The files that are shipped lie in ``studies/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from sinkgate.analysis.sweep import LINE, grid
from sinkgate.benchmarks import SCENES, Item
from sinkgate.data.scenes import scene_facts
from sinkgate.methods import VAR, Fixed, Method, Remove, SinkToTheFront, Suppress
from sinkgate.methods.lsg import LSG
from sinkgate.models.loading import DEMO, load
from sinkgate.models.vlm import VLM
from sinkgate.plots import export
from sinkgate.sinks.gates import Gates
from sinkgate.studies.anatomy import Anatomy
from sinkgate.studies.claims import claims
from sinkgate.studies.evaluation import Evaluation
from sinkgate.studies.features import Features
from sinkgate.studies.html_report import write_page
from sinkgate.studies.probes import Probes
from sinkgate.studies.results import Results
from sinkgate.studies.runner import run
from sinkgate.studies.sweep import Sweep

GATES = DEMO.parent / "gates"
HAZE = (0.0, 0.7)  # of the scenes with room to gain: on clear ones the demo model is near its ceiling
THREE = (0.0, 0.5, 1.0, 2.0)  # scales of the free grid, with L-sinks apart
#: Figures that the README shows: folder of the study, title of the section.
SHOWN = (
    ("sweep-clear", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Searched against confirmed"),
    ("probes", "What tokens know of the scene: accuracy"),
    ("anatomy", "Attention of the text"),
    ("anatomy", "Broadcast or no-op, head by head"),
    ("eval", "What each method changes"),
)


def asked(count: int, seed: int, haze: tuple[float, float] = (0.0, 0.0)) -> list[Item]:
    """Questions about scenes of the test split, as many of each kind."""
    return replace(SCENES, haze=haze).items(limit=count, seed=seed)


def methods(vlm: VLM) -> dict[str, Method]:
    """The unmodified model, the shipped gates and the rivals that need no training."""
    learned = {name: LSG.from_pretrained(GATES / name) for name in ("layer-2", "stack", "joint")}
    return {
        "unmodified": Fixed(Gates.ones(vlm)),
        **{f"LSG {name}": lsg.to(vlm.device) for name, lsg in learned.items()},
        "VAR": VAR(),
        "sinks to the front": SinkToTheFront(),
        "V-sinks suppressed": Suppress(),
        "V-sinks removed": Remove(),
    }


def studies(vlm: VLM, fast: VLM, scale: float) -> dict[str, Callable[[Path], Results]]:
    """Every study by its folder. ``fast`` is the model in bfloat16; ``scale`` is how many of the samples are taken."""

    def many(count: int) -> int:
        return max(26, round(count * scale))

    def probes(out: Path) -> Results:
        features = Features(
            vlm,
            list(scene_facts(many(2000), 1, split="test")),
            {"data": "scenes", "seed": 1, "pictures": many(2000)},
            chunk=50,
        )
        found = run(features, out / "features")
        return run(Probes.of(found, jobs=-1), out)

    def swept(count: int, seed: int, haze: tuple[float, float], points: Iterable[tuple[float, ...]]) -> Any:
        about = {"data": "scenes", "seed": seed, "haze": haze}
        return lambda out: run(Sweep(fast, asked(many(count), seed, haze), None, tuple(points), 32, about=about), out)

    def examined(out: Path) -> Results:
        about = {"data": "scenes", "seed": 5, "haze": HAZE}
        items = asked(many(2600), 5, HAZE)
        return run(Evaluation(fast, SCENES, items, methods(fast), chunk=32, about=about), out)

    samples = [item.sample for item in asked(many(390), 0)]
    return {
        "anatomy": lambda out: run(Anatomy(vlm, samples, chunk=26, about={"data": "scenes", "seed": 0}), out),
        "probes": probes,
        "sweep-clear": swept(2600, 2, (0.0, 0.0), LINE),
        "sweep-hazed": swept(2600, 3, HAZE, LINE),
        "sweep-three": swept(780, 4, HAZE, (*grid(THREE), *grid(THREE, 3))),
        "eval": examined,
    }


def card(found: dict[str, Results], folder: Path) -> str:
    """The README: each claim with its verdict and numbers, and the figures, which are written beside it."""
    from sinkgate.studies.sections import SECTIONS

    lines = [
        "# The paper's analyses on the demo model",
        "",
        "Written by `python -m sinkgate.demo.studies`; `sinkgate report` makes a page with every figure of the tables that lie here. The demo model has V-sinks that were grown",
        "under a training pressure to tell the gist, show in attention alone, and no L-sinks worth the name ([its card](../weights/README.md)): what is found here is true of it, not of the paper's",
        "models, and what V-sinks know of the whole scene is partly built in.",
        "What each verdict asks of the numbers is written in `sinkgate/studies/claims.py`, and is ours.",
        "",
        "| study | samples | tables |",
        "|---|---:|---|",
    ]
    for name, results in found.items():
        tables = ", ".join(f"`{file.stem}`" for file in sorted(results.folder.glob("*.parquet")))
        lines.append(f"| [`{name}`]({name}/study.json) | {_count(results):,} | {tables} |")
    lines += ["", "## Claims of the paper", ""]
    for name, results in found.items():
        # three groups are asked of the sweep made for them, which has two points of the line and fewer questions: too little for the rest
        told = [claim for claim in claims([results]) if claim.claim.startswith("O3") == (name == "sweep-three")]
        if not told:
            continue
        lines += [f"### {name}", "", "| paper | claim | verdict | numbers |", "|---|---|---|---|"]
        lines += [f"| {each.source} | {each.claim} | **{each.verdict}** | {each.numbers} |" for each in told]
        lines.append("")
    lines += ["## Figures", ""]
    for name, title in SHOWN:
        sections = SECTIONS[found[name].study](found[name]) if name in found else ()
        section = next((each for each in sections if each.title == title), None)
        if section is None or isinstance(section.content, pd.DataFrame):
            continue
        file = f"{name}-{section.slug}.svg"
        export(section.content, folder / file)
        lines += [f"### {title} ({name})", "", section.sentence, "", f"![{title}]({file})", ""]
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the studies, the page and the README.")],
    only: Annotated[list[str] | None, typer.Option(help="Studies to run; all if left out.")] = None,
    scale: Annotated[float, typer.Option(min=0.001, help="More or fewer samples, as a factor.")] = 1.0,
    ship: Annotated[Path | None, typer.Option(help="Copy tables, figures and README here, without the parts.")] = None,
) -> None:
    """Run the studies, write a page of all figures and the README with every claim."""
    vlm = load("demo", dtype=torch.float32)
    fast = load("demo", dtype=torch.bfloat16, attn_implementation="eager")  # the quickest on a CPU
    chosen = {name: each for name, each in studies(vlm, fast, scale).items() if not only or name in only}
    found = {name: carry_out(out / name) for name, carry_out in chosen.items()}
    typer.echo(f"written to {write_page(out)}")
    if not only:
        (out / "README.md").write_text(card(found, out), encoding="utf-8")
        if ship:
            _ship(out, found, ship)


def _ship(out: Path, found: dict[str, Results], ship: Path) -> None:
    for file in (*out.glob("*.svg"), out / "README.md"):
        ship.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, ship)
    for name, results in found.items():
        (ship / name).mkdir(exist_ok=True)
        for file in (*results.folder.glob("*.parquet"), results.folder / "study.json"):
            shutil.copy(file, ship / name)


def _count(results: Results) -> int:
    data = results.about["data"]
    return data.get("samples") or data.get("pictures") or 0


if __name__ == "__main__":
    typer.run(main)
