"""The comparison's tables and figures, from measured numbers only: ``python -m sinkgate.demo.comparison_card``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import typer
from plotly.subplots import make_subplots

from sinkgate.demo.comparison import ABLATED, ABLATIONS, UNMODIFIED
from sinkgate.demo.figures import LAYOUT
from sinkgate.methods.lsg import LSG
from sinkgate.plots.style import DIVERGING, GAIN, INK, LOSS
from sinkgate.scenes.questions import KINDS

Report = dict[str, Any]
HEAD = """# Learned gates and their rivals on the demo world

Measured by `python -m sinkgate.demo.comparison`, written by `python -m sinkgate.demo.comparison_card`. What it says is told in
[the log](../LOG.md).

On the scenes that the demo model was trained on it has no room to gain ({clear:.1f} % right). So the pictures are **hazed**: a share of the contrast is gone,
which the model never saw. Everything learns, with the backbone frozen, on the same {samples:,} questions about scenes with 0 to 70 % haze, seen twice
({steps} steps of 32, AdamW, 1e-3, cosine; five times as many where the name says so). It is examined on {asked:,} other questions a seed about scenes with half of the
contrast gone, all kinds alike, and on {asked_clear:,} about clear scenes. {seeds} seeds: other scenes to learn from, to choose by and to be examined on, another start. An
answer is right where it is, to its end, what greedy decoding writes. The model runs in bfloat16 here.

- **LSG** begins as in the paper: scales sum to 1, 0.5 each. **LSG from 1** (ours) begins at the unmodified model: scales sum to 2.
- *Layer l*: one gate, trained by itself; those of the first rows are at the layer that was best on validation questions (paper's form: {paper}, from 1: {ours}). *Stack*:
  gates trained by themselves, put together greedily by validation accuracy; *by loss*, by validation loss. *Joint*: a gate in every layer, trained together.
- Ablations begin as in the paper and stand at layers {ablated}, chosen on scenes that are in none of these samples; LoRA (rank 8) at layer {lora}.
- *Oracle*: the best fixed scales of one layer for each kind of question, chosen on {oracle:,} validation questions with half of the contrast gone: on the paper's line with its controls,
  or on another line too, through 1. It knows the kind of the question; a gate has to see it.
- Gains are points over the unmodified model on the same questions, mean and standard deviation over seeds; p of a paired t-test over seeds, and of an exact sign
  test over all questions whose mark turned. No correction for the number of rows: of {rows} rows, two or so fall below 0.05 by chance.

"""

ORACLES = {"paper": "oracle, paper's line", "free": "oracle, around 1 too"}
FORMS = ("LSG", "LSG from 1")


@dataclass(frozen=True)
class Gain:
    """A method against the unmodified model on the same questions, in points; one difference a seed.

    ``over_seeds`` is the paired t-test's p over seeds, ``over_questions`` the exact sign test's over all questions whose mark turned.
    """

    accuracy: float
    seeds: list[float]
    over_seeds: float
    over_questions: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.seeds)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds."""
        return stdev(self.seeds) if len(self.seeds) > 1 else 0.0


class Comparison:
    """What ``sinkgate.demo.comparison`` measured, seed by seed."""

    def __init__(self, folder: Path) -> None:
        self.seeds = [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]
        for run in self.seeds:
            found = json.loads((folder / f"oracle-{run['seed']}.json").read_text())
            right = run["worlds"]["hazed"]["marks"]["right"]
            right.update({ORACLES[way]: marks for way, marks in found.items()})
            more = json.loads((folder / f"more-{run['seed']}.json").read_text())
            for world, table in more["worlds"].items():
                run["worlds"][world]["marks"]["right"].update(table["right"])
            run["stacks"] |= {f"{form} by loss": stacked for form, stacked in more["stacks"].items()}
        self.oracle = json.loads((folder / "oracle.json").read_text())

    def names(self, world: str) -> list[str]:
        """Methods that were examined on a world."""
        return list(self.seeds[0]["worlds"][world]["marks"]["right"])

    def marks(self, world: str, name: str, scope: Callable[[str], bool] = lambda _: True) -> list[np.ndarray]:
        """Right (1) or wrong (0) on the questions of the kinds in scope, an array a seed."""
        tables = [run["worlds"][world]["marks"] for run in self.seeds]
        chosen = [[scope(kind) for kind in table["kinds"]] for table in tables]
        return [np.asarray(table["right"][name])[mask] for table, mask in zip(tables, chosen, strict=True)]

    def gain(self, world: str, name: str, scope: Callable[[str], bool] = lambda _: True) -> Gain:
        """Of a method over the unmodified model."""
        from scipy.stats import binomtest

        pairs = list(zip(self.marks(world, name, scope), self.marks(world, UNMODIFIED, scope), strict=True))
        seeds = [100 * float((mine - plain).mean()) for mine, plain in pairs]
        better = int(sum((mine > plain).sum() for mine, plain in pairs))
        worse = int(sum((mine < plain).sum() for mine, plain in pairs))
        return Gain(
            100 * fmean(float(mine.mean()) for mine, _ in pairs),
            seeds,
            _t_test(seeds),
            float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        )

    def best_layer(self, form: str) -> int:
        """The layer whose single gate did best on validation questions, on the mean over seeds."""
        singles = [run["stacks"][form]["singles"] for run in self.seeds]
        return int(max(singles[0], key=lambda layer: fmean(single[layer] for single in singles)))

    def rho(self, world: str, form: str) -> dict[str, list[float]]:
        """Mean scale of V-sinks by kind and layer, over seeds."""
        tables = [run["worlds"][world]["rho"][form] for run in self.seeds]
        return {kind: [fmean(at) for at in zip(*(t[kind] for t in tables), strict=True)] for kind in KINDS}

    def main_rows(self) -> list[str]:
        """The methods of the first table, in its order."""
        at = {form: self.best_layer(form) for form in FORMS}
        singles = [f"{form}, layer {at[form]}" for form in FORMS]
        ablations = [f"{name}, layer {layer}" for name in ABLATIONS for layer in ABLATED]
        paper = [f"LSG, layer {layer}" for layer in ABLATED if layer != at["LSG"]]
        return [
            UNMODIFIED,
            *("0.5 everywhere", f"0.5, layer {at['LSG']}"),
            *singles,
            *("LSG, stack", "LSG, stack by loss", "LSG from 1, stack", "LSG from 1, stack by loss"),
            *("LSG from 1, all layers at once", "LSG from 1, joint"),
            *(name for name in self.names("hazed") if name.endswith("5 x samples") and "LoRA" not in name),
            *paper,
            *ablations,
            *("V-sinks suppressed", "V-sinks removed", "VAR", "sinks to the front", "query reweighting"),
            *("LoRA", "LoRA, 5 x samples"),
            *ORACLES.values(),
        ]


def _t_test(differences: Sequence[float]) -> float:
    """p of a paired t-test; 1 for a single seed, from which nothing follows."""
    from scipy.stats import ttest_1samp

    if len(set(differences)) == 1:  # no spread to divide by
        return 1.0 if len(differences) == 1 or differences[0] == 0 else 0.0
    return float(ttest_1samp(differences, 0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def is_global(kind: str) -> bool:
    """Whether the kind asks for the gist of the whole picture."""
    return KINDS[kind].scope == "global"


def gains_figure(found: Comparison, names: Sequence[str]) -> go.Figure:
    """Gain of each method over the unmodified model on hazed scenes: the mean as a bar, each seed as a dot."""
    gains = [found.gain("hazed", name) for name in names]
    figure = go.Figure()
    colors = [GAIN if gain.mean >= 0 else LOSS for gain in gains]
    figure.add_bar(y=list(names), x=[gain.mean for gain in gains], orientation="h", marker_color=colors, opacity=0.75)
    figure.add_scatter(
        y=[name for name, gain in zip(names, gains, strict=True) for _ in gain.seeds],
        x=[point for gain in gains for point in gain.seeds],
        mode="markers",
        marker={"color": INK, "size": 5, "opacity": 0.7},
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title_text="points of accuracy over the unmodified model, hazed scenes", zeroline=True)
    return figure.update_layout(**LAYOUT, height=104 + 24 * len(names), showlegend=False)


def rho_figure(found: Comparison, world: str = "hazed") -> go.Figure:
    """Where the gates go: mean scale of V-sinks by kind of question and layer, global kinds above."""
    kinds = sorted(KINDS, key=lambda kind: not is_global(kind))
    titles = ["LSG as in the paper: rho of V-sinks, starts at 0.5", "LSG from 1: scale of V-sinks, starts at 1"]
    figure = make_subplots(cols=2, subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.12)
    for column, (form, middle) in enumerate(zip(FORMS, (0.5, 1.0), strict=True), 1):
        table = found.rho(world, form)
        figure.add_heatmap(
            x=[str(layer) for layer in range(len(table[kinds[0]]))],
            y=[f"{kind} ({KINDS[kind].scope})" for kind in kinds],
            z=[table[kind] for kind in kinds],
            zmin=0,
            zmax=2 * middle,
            zmid=middle,
            colorscale=DIVERGING,
            text=[[f"{value:.2f}" for value in table[kind]] for kind in kinds],
            texttemplate="%{text}",
            textfont={"size": 9},
            showscale=False,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title_text="layer", type="category")
    return figure.update_layout(**LAYOUT, height=440)


def main_table(found: Comparison, names: Sequence[str]) -> str:
    """Methods by accuracy and gain, in Markdown."""
    lines = [
        "| method | accuracy | gain | t-test | sign test | global kinds | local kinds | clear scenes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    clear = found.names("clear")
    for name in names:
        gain = found.gain("hazed", name)
        if name == UNMODIFIED:
            plain = 100 * fmean(float(m.mean()) for m in found.marks("clear", name))
            lines.append(f"| {name} | {gain.accuracy:.2f} % | | | | | | {plain:.2f} % |")
            continue
        parts = [_signed(found.gain("hazed", name, scope)) for scope in (is_global, lambda kind: not is_global(kind))]
        other = _signed(found.gain("clear", name)) if name in clear else ""
        lines.append(
            f"| {name} | {gain.accuracy:.2f} % | {_signed(gain)} | {_p(gain.over_seeds)} | {_p(gain.over_questions)} "
            f"| {parts[0]} | {parts[1]} | {other} |"
        )
    return "\n".join(lines)


def kinds_table(found: Comparison, names: Sequence[str]) -> str:
    """Gain by kind of question, in Markdown: mean over seeds, in points."""
    lines = [f"| kind | unmodified | {' | '.join(names)} |", "|---|---:|" + "---:|" * len(names)]
    for kind in sorted(KINDS, key=lambda kind: not is_global(kind)):

        def only(other: str, kind: str = kind) -> bool:
            return other == kind

        plain = found.gain("hazed", UNMODIFIED, only).accuracy
        cells = [f"{found.gain('hazed', name, only).mean:+.1f}" for name in names]
        lines.append(f"| {kind} ({KINDS[kind].scope}) | {plain:.1f} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def layers_table(found: Comparison) -> str:
    """Every single gate, and the fixed scales at which the paper's begins, by layer, in Markdown."""
    forms = ("0.5", *FORMS)
    lines = [f"| layer | {' | '.join(forms)} |", "|---|" + "---:|" * len(forms)]
    for layer in range(len(found.seeds[0]["stacks"]["LSG"]["singles"])):
        cells = [_signed(found.gain("hazed", f"{form}, layer {layer}")) for form in forms]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stacks_text(found: Comparison) -> str:
    """Which layers each seed stacked."""
    forms = found.seeds[0]["stacks"]
    parts = [f"{form}: " + "; ".join(str(run["stacks"][form]["layers"]) for run in found.seeds) for form in forms]
    return "\n".join(f"- {part}" for part in parts)


def _signed(gain: Gain) -> str:
    return f"{gain.mean:+.2f} ± {gain.deviation:.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def main(
    run: Annotated[Path, typer.Option(help="Folder that the comparison wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the card, the figures and the numbers.")],
    ship: Annotated[
        int | None, typer.Option(help="Seed whose gates are put there too, each by itself and stacked.")
    ] = None,
) -> None:
    """Write the card with its tables and figures, and a compact comparison.json."""
    found = Comparison(run)
    names = found.main_rows()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [f"{form}, layer {found.best_layer(form)}" for form in FORMS]
    chosen += ["LSG from 1, joint", "LSG from 1, joint, 5 x samples", "LoRA", "query reweighting", *ORACLES.values()]
    (out / "README.md").write_text(_card(found, names, chosen), encoding="utf-8")
    gains_figure(found, names[1:]).write_image(out / "gains.svg")
    rho_figure(found).write_image(out / "rho.svg")
    (out / "comparison.json").write_text(json.dumps(_compact(found), indent=1) + "\n", encoding="utf-8")
    if ship is not None:
        _ship(found, run, out, ship)


def _card(found: Comparison, names: Sequence[str], chosen: Sequence[str]) -> str:
    first, clear = found.seeds[0], found.marks("clear", UNMODIFIED)
    head = HEAD.format(
        clear=100 * fmean(float(marks.mean()) for marks in clear),
        samples=first["samples"],
        steps=first["steps"],
        asked=len(found.marks("hazed", UNMODIFIED)[0]),
        asked_clear=len(clear[0]),
        seeds=len(found.seeds),
        paper=found.best_layer("LSG"),
        ours=found.best_layer("LSG from 1"),
        ablated=", ".join(map(str, ABLATED)),
        lora=ABLATED[1],
        oracle=found.oracle["asked"],
        rows=len(names) - 1,
    )
    minutes = [run["minutes"]["train"] for run in found.seeds]
    parts = {
        "Accuracy": main_table(found, names) + "\n\n![Gain of every method](gains.svg)",
        "By kind of question": kinds_table(found, chosen),
        "By layer": layers_table(found),
        "What was stacked, seed by seed": stacks_text(found),
        "Where the gates go": "Mean scale of V-sinks on hazed scenes, by kind of question and layer, each gate by itself, over seeds."
        "\n\n![Mean scale of V-sinks](rho.svg)",
        "Cost": f"Training everything of one seed side by side, {len(first['worlds']['hazed']['marks']['right'])} methods examined: "
        f"{min(minutes):.0f} to {max(minutes):.0f} minutes of training on one CPU core that was not always free.",
        "The gates that ship": "`layer-0` to `layer-7`, each by itself, `stack`, chosen by loss, and `joint`, trained together on five times the samples: LSG from 1, of "
        "seed 0. Choose them in the app, or "
        '`sg.LSG.from_pretrained("sinkgate/demo/gates/stack")`.',
    }
    return head + "\n\n".join(f"## {title}\n{text}" for title, text in parts.items()) + "\n"


def _compact(found: Comparison) -> Report:
    """Shares of right answers by world, method, kind and seed, and what each seed stacked."""
    worlds = {
        world: {
            name: {
                kind: [
                    round(float(marks.mean()), 5) for marks in found.marks(world, name, lambda k, kind=kind: k == kind)
                ]
                for kind in KINDS
            }
            for name in found.names(world)
        }
        for world in ("hazed", "clear")
    }
    runs = [{key: run[key] for key in ("seed", "samples", "steps", "minutes", "stacks")} for run in found.seeds]
    rho = {form: {w: found.rho(w, form) for w in ("hazed", "clear")} for form in FORMS}
    return {"accuracy": worlds, "runs": runs, "rho": rho, "oracle": found.oracle["best"]}


def _ship(found: Comparison, run: Path, out: Path, seed: int) -> None:
    """The gates of one seed that start at the unmodified model, with cards of their own."""
    form = "LSG from 1"
    chosen = next(each for each in found.seeds if each["seed"] == seed)
    marks = {world: chosen["worlds"][world]["marks"]["right"] for world in ("hazed", "clear")}
    lsg = LSG.from_pretrained(run / f"seed-{seed}" / form.replace(" ", "_"))
    shipped = {f"layer-{layer}": (f"{form}, layer {layer}", lsg.only([layer]), 1) for layer in lsg.config.layers}
    shipped["stack"] = f"{form}, stack by loss", lsg.only(chosen["stacks"][f"{form} by loss"]["layers"]), 1
    together = LSG.from_pretrained(run / f"more-{seed}" / "joint")
    shipped["joint"] = f"{form}, joint, 5 x samples", together, 5
    for name, (method, gates, times) in shipped.items():
        told = {
            "samples": times * chosen["samples"],
            "epochs": 2,
            "seed": seed,
            "accuracy on hazed scenes": fmean(marks["hazed"][method]),
            "the same, unmodified": fmean(marks["hazed"][UNMODIFIED]),
            "accuracy on clear scenes": fmean(marks["clear"][method]),
            "the same on clear scenes, unmodified": fmean(marks["clear"][UNMODIFIED]),
        }
        gates.save_pretrained(out / name, license="apache-2.0", training=told)


if __name__ == "__main__":
    typer.run(main)
