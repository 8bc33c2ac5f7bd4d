"""The demo model's card, written from measured numbers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sinkgate.demo.anatomy import DRAWS, STEADY
from sinkgate.demo.gating import SCALES
from sinkgate.scenes.questions import KINDS
from sinkgate.scenes.scene import BACKGROUNDS, COLORS, MAX_OBJECTS, SHAPES, SIZES

Report = dict[str, Any]

HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# sinkgate demo model

A LLaVA of {parameters:,} parameters ({megabytes:.1f} MB), trained from nothing by `python -m sinkgate.demo.train`, that answers
questions about pictures of flat shapes. It is made to try sinkgate on a laptop and is of no other use. It loads with
transformers' `AutoModelForImageTextToText` and `AutoProcessor`, offline.

## Parts
A SigLIP-type tower without CLS (6 layers, 96 wide, 3 heads, 64 x 64 pixels, patch 8: 64 visual tokens), a two-layer
projector, a LLaMA (8 layers, 128 wide, 4 heads). The LLM reads the input of the tower's last layer, as in LLaVA 1.5.
One token a word, lower case. The image comes first and there is no start token.

## Data
Scenes are drawn on the fly and never repeated: 1 to {objects} objects ({shapes}; {colors}; {sizes})
on a background of {backgrounds}, with questions of {kinds} kinds, a description of the scene, and its objects named in
order. No outside data.

## Recipe
1. The tower: shape, colour, size, row and column from the features of each patch on an object; count, background, count by
   colour and presence of each colour-shape pair from the features of **the one to four patches that receive most attention in
   the last layer**, weighted by that attention. Patches of the background carry no loss of their own. AdamW without
   decay, peak 1.5e-3.
2. Tower, projector and LLM together on six questions, a description and a line-up an image, each turn blind to the others; the
   loss on answers, plus a fifth of that on the words of questions and a fifth of the tower's own. In four of five turns about the whole
   scene (kinds marked global), the text sees only those one to four patches. AdamW without decay, peak 4e-4 (tower) and 1e-3
   (rest). Both stages: 100 steps of warm-up, cosine to zero, gradients clipped to 1, weights in bfloat16 with float32 masters.

What is in bold is a training pressure, and it is why this model has V-sinks: the gist must fit where attention goes, as if a
reader pruned the tokens. No weight was set by hand and no token was moved; that the sinks settle on the background is training's choice.
"""


def card(report: Report) -> str:
    """The card as Markdown, from what ``sinkgate.demo.evaluate`` measured."""
    head = HEAD.format(
        parameters=report["cost"]["parameters"],
        megabytes=report["cost"]["megabytes"],
        objects=MAX_OBJECTS,
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        sizes=", ".join(SIZES),
        backgrounds=", ".join(BACKGROUNDS),
        kinds=len(KINDS),
    )
    parts = [head, _accuracy(report), _sinks(report["sinks"]), _growth(report["history"]), _probes(report["probes"])]
    return "\n".join([*parts, _gating(report["gating"]), _cost(report["cost"])])


def _accuracy(report: Report) -> str:
    measured = report["accuracy"]
    rows = [
        (kind, s["scope"], s["questions"], f"{s['accuracy']:.1%}", f"{100 * s['spread']:.1f}", f"{s['chance']:.1%}")
        for kind, s in measured["kinds"].items()
    ]
    return f"""## Accuracy
{measured["scenes"]:,} scenes that no training step saw for each of {len(measured["seeds"])} seeds, one question of every kind that a scene allows, in
float32, greedy answers, exact match. Chance is the best constant answer of the kind; spread is the distance between the
best and the worst seed, in points. Over all: **{measured["overall"]:.1%}** (standard deviation over seeds {100 * measured["deviation"]:.2f} points).

{_table(("kind", "scope", "questions", "accuracy", "spread", "chance"), rows)}
![Accuracy of the checkpoints](accuracy.svg)
"""


def _sinks(sinks: Report) -> str:
    rows = []
    for name, kinds in sinks["criteria"].items():
        v, l_ = kinds["v_sink"], kinds["l_sink"]
        v_cells = _cells(
            v, ("tokens", "images", "on_objects", "attention", "draws", "llm_attention", "scene_attention")
        )
        l_cells = _cells(l_, ("tokens", "layer", "images", "on_objects", "attention", "draws"))
        rows.append((name, *v_cells, *l_cells))
    columns = (
        "criterion", "V-sinks an image", "images", "on objects", "encoder", f"images at {DRAWS:g} x", "LLM", "LLM, global",
        "steady L-sinks", "layer", "images", "on objects", "LLM", f"images at {DRAWS:g} x",
    )  # fmt: skip
    return f"""## Sinks
By each criterion, on {sinks["scenes"]} held-out scenes. "On objects": share of the sinks whose patch lies on an object; by chance it would be
{sinks["covered"]:.0%}. "Encoder" and "LLM": attention that a sink receives over the mean of the ordinary patches, in the layer that reads the
features and in the LLM layer where it is highest, a mean over text tokens and over all questions put to the image ("global": from the token that writes the
answer, over questions about the whole scene); "images at {DRAWS:g} x": share of images where that is at least {DRAWS:g}.
An L-sink counts where it is one for {STEADY:.0%} of the image's questions: what is attended because it holds the object asked for is no sink.

{_table(columns, rows)}
{_verdict_on_l_sinks(sinks)}
"""


def _verdict_on_l_sinks(sinks: Report) -> str:
    """What the numbers say of L-sinks, in one sentence."""
    found = sinks["criteria"]["auto"]["l_sink"]
    if not found["images"]:
        return "**This model has no L-sinks.**"
    if found["images"] < 0.8 or found["on_objects"] > sinks["covered"]:
        return (
            f"**This model has no L-sinks to speak of**: {found['images']:.0%} of the images have a steady one, and {found['on_objects']:.0%} of those lie "
            "on objects, where attention is content."
        )
    return "Its L-sinks lie on objects no more often than chance."


def _cells(found: Report, names: Sequence[str]) -> list[str]:
    """One criterion's numbers as text, or that it finds none."""
    if not found["images"]:
        return ["none", *[""] * (len(names) - 1)]
    formats = {
        "tokens": "{:.1f}",
        "layer": "{}",
        "attention": "{:.1f} x",
        "llm_attention": "{:.1f} x",
        "scene_attention": "{:.1f} x",
    }
    return [formats.get(name, "{:.0%}").format(found[name]) for name in names]


def _growth(history: Sequence[Report]) -> str:
    tower = [record for record in history if record["stage"] == "tower"]
    grown = next((record["step"] for record in tower if record["top_over_median"] >= DRAWS), None)
    first, last = tower[0], history[-1]
    when = (
        f"passes {DRAWS:g} times the median at step {grown}" if grown else f"never reaches {DRAWS:g} times the median"
    )
    stages = {record["stage"]: record for record in history}
    took = "; ".join(f"{name}: {r['step']:,} steps in {r['seconds'] / 60:.0f} minutes" for name, r in stages.items())
    return f"""## When they appear
The most attended patch of the encoder {when} of the tower's training. It lies on an object in {first["top_on_object"]:.0%} of the images at step
{first["step"]} and in {last["top_on_object"]:.0%} at the end. Training took, {took}.

![Growth of the sinks](growth.svg)
"""


def _probes(probes: Report) -> str:
    rows = []
    for target, places in probes["targets"].items():
        for place in ("encoder", *[p for p in places if p != "encoder"][::3]):
            cells = places[place]
            background = f"{cells['background'][0]:.1%} ± {100 * cells['background'][1]:.1f}"
            shares = [f"{cells[group][0]:.1%}" for group in ("v_sink", "object", "shuffled")]
            where = place if place == "encoder" else f"LLM layer {place}"
            rows.append((target, where, shares[0], background, shares[1], shares[2]))
    columns = (
        "target",
        "features",
        "V-sinks",
        "ordinary background",
        "ordinary, on the leftmost object",
        "shuffled labels",
    )
    return f"""## What they know
Linear probes (standardised, L2, C 0.1), half of {probes["scenes"]:,} held-out scenes to train, half to test; background is three drawn
patches averaged, mean and deviation of five draws. Count and majority colour are facts of the scene; shape, size and colour are of its leftmost object.

{_table(columns, rows)}
![Probes](probes.svg)
"""


def _gating(gating: Report) -> str:
    plain, table = gating["plain"], gating["table"]
    cells = [
        (
            c["kind"],
            c["way"],
            c["group"],
            c["layer"],
            f"{c['scale']:g}",
            f"{100 * c['searched']:+.1f}",
            f"{100 * c['confirmed']:+.1f}",
        )
        for c in gating["cells"]
        if c["searched"]
    ]
    full = [
        (row["group"], row["layer"], f"{row['scale']:g}", *(f"{100 * row['kinds'][kind]:.1f}" for kind in plain))
        for row in table
    ]
    unchanged = ("plain", "", "1", *(f"{100 * plain[kind]:.1f}" for kind in plain))
    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    headroom = max(100 * c["confirmed"] for c in gating["cells"] if c["way"] == "best")
    return f"""## What gates do
Accuracy by kind with the Keys of V-sinks (criterion auto) or of all other patches scaled in one layer: every layer, scales {scales} beside 1,
on {gating["scenes"]} held-out scenes.

![Change of accuracy](gating.svg)

The best and the worst cell of each kind, and the same cell on {gating["confirmed_on"]:,} other scenes, in points. The best of {len(table)} cells flatters
itself; the confirmed column is the headroom: no single cell wins more than {headroom:.1f} points, the plain model being near its ceiling. Harm is large and real.

{_table(("kind", "way", "group", "layer", "scale", "found", "confirmed"), cells)}
<details><summary>All {len(table)} cells, accuracy in percent</summary>

{_table(("group", "layer", "scale", *plain), [unchanged, *full])}
</details>
"""


def _cost(cost: Report) -> str:
    return f"""## Cost
Medians of 20 pictures in float32, image encoding included: a gated prefill {cost["prefill_ms"]:.0f} ms, a whole answer {cost["answer_ms"]:.0f} ms; loading
{cost["load_seconds"]:.1f} s. Measured on: {cost["machine"]}.
"""


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"
