"""Card of a comparison: its tables in Markdown, and the gates that are published with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from sinkgate.demo.comparison import FORMS, SETUPS, Setup, file_name
from sinkgate.demo.comparison_results import GLOBAL, LOCAL, ORACLES, Comparison, Gain, Report
from sinkgate.demo.figures import gains_figure
from sinkgate.methods.base import UNMODIFIED
from sinkgate.methods.lsg import LSG
from sinkgate.output import markdown
from sinkgate.plots import export
from sinkgate.plots.training import scales_figure
from sinkgate.scenes.questions import KINDS

HEAD = """# Learned gates and baselines on the demo world: {model}

Written by `python -m sinkgate.demo compare {command}{options}`; measured {measured}. Conclusions are in [the log](../LOG.md).

On the scenes of its training the model has little room to gain ({clear:.1f} % right). So the pictures are **hazed**: they lose a share of the contrast,
which the model did not see in training. Every method learns, with the backbone frozen, from the same {samples:,} questions about scenes with 0 to 70 % haze, used twice
({steps} steps of {batch}, AdamW, 1e-3, cosine{more_samples}). The test has {asked:,} other questions a seed about scenes with {haze:.0%} of the
contrast gone, the same number of each kind, and {asked_clear:,} about clear scenes. {seeds}. An
answer is right if greedy decoding writes it to its end. The model runs in {dtypes}.

- **LSG** starts as in the paper: scales sum to 1, 0.5 each. **LSG from 1** (chosen by us; the paper does not have it) starts at the unmodified model: scales sum to 2.
- *Layer l*: one gate, trained separately, in layers {layers}; those of the first rows are at the layer that was best on validation questions (paper's form: {paper}, from 1: {ours}). *Stack*:
  gates that were trained separately, combined greedily by validation accuracy; *by loss*, by validation loss. *Joint*: a gate in each of these layers, trained together.
- Ablations start as in the paper, at {ablated}, chosen on scenes that are in none of these samples; LoRA (rank 8) at layer {lora}.
{oracle}- Gains are points over the unmodified model on the same questions{spread}; p of {t_test}an exact sign
  test over all questions with a changed mark. There is no correction for the number of rows: of {rows} rows, one in twenty falls below 0.05 by chance.

"""
ORACLE = """- *Oracle*: the best fixed scales of one layer for each kind of question, chosen on {count:,} validation questions with the test's haze: on the paper's line with its controls,
  or on another line too, through 1. It uses the kind of the question; a gate reads it from the hidden states.
"""


def main_table(comparison: Comparison, names: Sequence[str]) -> str:
    """Return methods by accuracy and gain, in Markdown."""
    columns = ("method", "accuracy", "gain", "t-test", "sign test", "global kinds", "local kinds", "clear scenes")
    clear, rows = comparison.names("clear"), []
    for name in names:
        gain = comparison.gain("hazed", name)
        if name == UNMODIFIED:
            plain = 100 * fmean(float(m.mean()) for m in comparison.marks("clear", name))
            rows.append([name, f"{gain.accuracy:.2f} %", *[""] * 5, f"{plain:.2f} %"])
            continue
        cells = [name, f"{gain.accuracy:.2f} %", _signed(gain)]
        cells += [_p(gain.over_seeds) if len(gain.seeds) > 1 else "", _p(gain.over_questions)]
        cells += [_signed(comparison.gain("hazed", name, kinds)) for kinds in (GLOBAL, LOCAL)]
        rows.append([*cells, _signed(comparison.gain("clear", name)) if name in clear else ""])
    return markdown(columns, rows)


def kinds_table(comparison: Comparison, names: Sequence[str]) -> str:
    """Return the gain by kind of question, in Markdown: mean over seeds, in points."""
    rows = []
    for kind in GLOBAL + LOCAL:
        plain = comparison.gain("hazed", UNMODIFIED, [kind]).accuracy
        cells = [f"{comparison.gain('hazed', name, [kind]).mean:+.1f}" for name in names]
        rows.append([f"{kind} ({KINDS[kind].scope})", f"{plain:.1f} %", *cells])
    return markdown(["kind", "unmodified", *names], rows)


def layers_table(comparison: Comparison) -> str:
    """Return the gain of every single gate, and of the start of the paper's, by layer, in Markdown."""
    names = comparison.names("hazed")
    layers = _single_layers(comparison)
    forms = [form for form in ("0.5", *FORMS) if f"{form}, layer {layers[0]}" in names]
    rows = [
        [layer, *(_signed(comparison.gain("hazed", f"{form}, layer {layer}")) for form in forms)] for layer in layers
    ]
    return markdown(["layer", *forms], rows)


def _single_layers(comparison: Comparison) -> list[int]:
    """Return the layers with a gate of their own."""
    prefix = "LSG, layer "
    tails = [name.removeprefix(prefix) for name in comparison.names("hazed") if name.startswith(prefix)]
    return sorted(int(tail) for tail in tails if tail.isdigit())


def stacks_text(comparison: Comparison) -> str:
    """Return the stacked layers of each seed, in Markdown."""
    forms = comparison.seeds[0]["stacks"]
    parts = [f"{form}: " + "; ".join(str(run["stacks"][form]["layers"]) for run in comparison.seeds) for form in forms]
    return "\n".join(f"- {part}" for part in parts)


def _signed(gain: Gain) -> str:
    return f"{gain.mean:+.2f} ± {gain.deviation:.2f}" if len(gain.seeds) > 1 else f"{gain.mean:+.2f}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def write_comparison(setup: Setup, run: Path, out: Path, publish: int | None = None) -> None:
    """Write the card with its tables and figures, and a compact comparison.json.

    Args:
        setup: the model's setup.
        run: folder of the comparison.
        out: folder of the card.
        publish: seed of the gates that are saved there too, each by itself, stacked, and trained together.
    """
    comparison = Comparison(run)
    names = comparison.main_rows(setup)
    out.mkdir(parents=True, exist_ok=True)
    shown = [f"{form}, layer {comparison.best_layer(form)}" for form in FORMS]
    shown += ["LSG from 1, joint", "LSG from 1, joint, 5 x samples", "LoRA", "query reweighting", *ORACLES.values()]
    text = _card(setup, comparison, names, [name for name in shown if name in names], publish)
    (out / "README.md").write_text(text, encoding="utf-8")
    export(gains_figure(comparison, names[1:]), out / "gains.svg")
    export(scales_figure(_scales(comparison)), out / "rho.svg")
    (out / "comparison.json").write_text(json.dumps(_compact(comparison), indent=1) + "\n", encoding="utf-8")
    if publish is not None:
        _publish(setup, comparison, run, out, publish)


def _card(
    setup: Setup, comparison: Comparison, names: Sequence[str], shown: Sequence[str], published: int | None
) -> str:
    first, clear = comparison.seeds[0], comparison.marks("clear", UNMODIFIED)
    count, layers = len(comparison.seeds), _single_layers(comparison)
    head = HEAD.format(
        model=setup.model,
        command=next(name for name, each in SETUPS.items() if each.model == setup.model),
        options="".join(f" --seed {run['seed']}" for run in comparison.seeds) if count < len(setup.seeds) else "",
        measured=measured_dates([run["measured"] for run in comparison.seeds]),
        layers=f"{layers[0]} to {layers[-1]}",
        clear=100 * fmean(float(marks.mean()) for marks in clear),
        dtypes=" and ".join(sorted({seed.get("dtype", "bfloat16") for seed in comparison.seeds})),
        samples=first["samples"],
        steps=first["steps"],
        batch=setup.batch,
        more_samples="; five times as many where the name says so" if setup.further else "",
        asked=len(comparison.marks("hazed", UNMODIFIED)[0]),
        haze=setup.haze,
        asked_clear=len(clear[0]),
        seeds="One seed"
        if count == 1
        else f"{count} seeds: other scenes of training, validation and test, another start",
        spread=", mean and standard deviation over seeds" if count > 1 else "",
        t_test="a paired t-test over seeds, and of " if count > 1 else "",
        paper=comparison.best_layer("LSG"),
        ours=comparison.best_layer("LSG from 1"),
        ablated=f"layer{'s' * (len(setup.ablated) > 1)} {', '.join(map(str, setup.ablated))}",
        lora=setup.lora,
        oracle=ORACLE.format(count=comparison.oracle["asked"]) if comparison.oracle else "",
        rows=len(names) - 1,
    )
    minutes = [run["minutes"]["train"] for run in comparison.seeds]
    joint = "on five times the samples" if setup.further else "on the same samples"
    parts = {
        "Accuracy": main_table(comparison, names) + "\n\n![Gain of every method](gains.svg)",
        "By kind of question": kinds_table(comparison, shown),
        "By layer": layers_table(comparison),
        "Stacks, seed by seed": stacks_text(comparison),
        "Scales of the gates": "Mean scale of V-sinks on hazed scenes, by kind of question and layer, each gate by itself."
        "\n\n![Mean scale of V-sinks](rho.svg)",
        "Cost": f"Training all methods of one seed side by side, {len(first['worlds']['hazed']['marks']['right'])} methods tested: "
        f"{_span(minutes)} minutes of training on one CPU core shared with other work.",
    }
    if published is not None:
        parts["Published gates"] = (
            f"`layer-{layers[0]}` to `layer-{layers[-1]}`, each by itself, `stack`, chosen by loss, and `joint`, trained together {joint}: LSG from 1, of "
            f'seed {published}. Choose them in the app, or `sg.LSG.from_pretrained("sinkgate/demo/{setup.gates}/stack")`.'
        )
    return head + "\n\n".join(f"## {title}\n{text}" for title, text in parts.items()) + "\n"


def _scales(comparison: Comparison) -> dict[str, tuple[pd.DataFrame, float]]:
    """Return the mean scales of V-sinks on hazed scenes, global kinds first, and the scale at the start, for each form of gates."""
    titles = ["LSG as in the paper: rho of V-sinks", "LSG from 1: scale of V-sinks"]
    tables: Any = (pd.DataFrame(comparison.rho("hazed", form)).T.loc[GLOBAL + LOCAL] for form in FORMS)
    named = (table.rename(index={kind: f"{kind} ({KINDS[kind].scope})" for kind in KINDS}) for table in tables)
    return {title: (table, start) for title, table, start in zip(titles, named, (0.5, 1.0), strict=True)}


def measured_dates(dates: Sequence[str]) -> str:
    """Return the first and the last of ISO dates in words, once if they are equal."""
    first, last = min(dates), max(dates)
    return f"on {first}" if first == last else f"from {first} to {last}"


def _compact(comparison: Comparison) -> Report:
    """Return shares of right answers by world, method, kind and seed, and the stacks of each seed."""
    worlds = {
        world: {
            name: {
                kind: [round(float(marks.mean()), 5) for marks in comparison.marks(world, name, [kind])]
                for kind in KINDS
            }
            for name in comparison.names(world)
        }
        for world in ("hazed", "clear")
    }
    keys = ("seed", "measured", "dtype", "samples", "steps", "minutes", "stacks")
    runs = [{key: run[key] for key in keys if key in run} for run in comparison.seeds]
    rho = {form: {w: comparison.rho(w, form) for w in ("hazed", "clear")} for form in FORMS}
    return {"accuracy": worlds, "runs": runs, "rho": rho, "oracle": comparison.oracle.get("best")}


def _publish(setup: Setup, comparison: Comparison, run: Path, out: Path, seed: int) -> None:
    """Save the gates of one seed that start at the unmodified model, with cards of their own."""
    form = "LSG from 1"
    record = next(each for each in comparison.seeds if each["seed"] == seed)
    marks = {world: record["worlds"][world]["marks"]["right"] for world in ("hazed", "clear")}
    folder = run / f"seed-{seed}"
    lsg = LSG.from_pretrained(folder / file_name(form))
    gates = {f"layer-{layer}": (f"{form}, layer {layer}", lsg.only([layer]), 1) for layer in lsg.config.layers}
    gates["stack"] = f"{form}, stack by loss", lsg.only(record["stacks"][f"{form} by loss"]["layers"]), 1
    if setup.further:
        together = LSG.from_pretrained(run / f"more-{seed}" / "joint")
        gates["joint"] = f"{form}, joint, 5 x samples", together, 5
    else:
        gates["joint"] = f"{form}, joint", LSG.from_pretrained(folder / file_name(f"{form}, joint")), 1
    for name, (method, learned, times) in gates.items():
        training = {
            "samples": times * record["samples"],
            "epochs": 2,
            "seed": seed,
            "accuracy on hazed scenes": fmean(marks["hazed"][method]),
            "the same, unmodified": fmean(marks["hazed"][UNMODIFIED]),
            "accuracy on clear scenes": fmean(marks["clear"][method]),
            "the same on clear scenes, unmodified": fmean(marks["clear"][UNMODIFIED]),
        }
        learned.save_pretrained(out / name, license="apache-2.0", training=training)
