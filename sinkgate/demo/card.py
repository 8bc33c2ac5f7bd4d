"""Cards of the demo models, written from published studies and a training run's record."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from sinkgate.demo.figures import accuracy_figure, growth_figure
from sinkgate.demo.plans import Plan, published
from sinkgate.demo.scoring import held_out
from sinkgate.demo.sinks import STEADY, chance, summary
from sinkgate.demo.studies_card import card as studies_card
from sinkgate.models.loading import load
from sinkgate.models.session import Session
from sinkgate.output import markdown
from sinkgate.plots import export
from sinkgate.scenes.questions import KINDS
from sinkgate.scenes.scene import BACKGROUNDS, COLORS, MAX_OBJECTS, SHAPES, SIZES
from sinkgate.sinks.gates import Gates
from sinkgate.studies.results import Results

Record = dict[str, Any]
RECORD = "evaluation.json"  # beside the weights: checksum, cost, and the history of the training
GROWN = 5.0  # times the median attention: a sink has grown
FRONT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
{more}---
"""
SMALL = """
# sinkgate demo model

A LLaVA of {parameters:,} parameters ({megabytes:.1f} MB), trained from nothing by `python -m sinkgate.demo.train`, that answers
questions about pictures of flat shapes. It is made to try sinkgate on a laptop and is of no other use. It loads with
transformers' `AutoModelForImageTextToText` and `AutoProcessor`, offline. `sg.load("demo")` and `sg.load("demo-small")` are this model.

## Parts
A SigLIP-type tower without CLS (6 layers, 96 wide, 3 heads, 64 x 64 pixels, patch 8: 64 visual tokens), a two-layer
projector, a LLaMA (8 layers, 128 wide, 4 heads). The LLM reads the input of the tower's last layer, as in LLaVA 1.5.
One token a word, lower case. The image comes first and there is no start token.

## Data
Scenes are drawn on the fly and never repeated: 1 to {objects} objects ({shapes}; {colors}; {sizes})
on a background of {backgrounds}, with questions of {kinds} kinds, a description of the scene, and its objects named in
order. No outside data.

## Recipe
1. The tower: shape, color, size, row and column from the features of each patch on an object; count, background, count by
   color and presence of each color-shape pair from the features of **the one to four patches that receive most attention in
   the last layer**, weighted by that attention. Patches of the background carry no loss of their own. AdamW without
   decay, peak 1.5e-3.
2. Tower, projector and LLM together on six questions, a description and a line-up an image, no turn with attention to another; the
   loss on answers, plus a fifth of that on the words of questions and a fifth of the tower's own. In four of five turns about the whole
   scene (kinds marked global), the text sees only those one to four patches. AdamW without decay, peak 4e-4 (tower) and 1e-3
   (rest). Both stages: 100 steps of warm-up, cosine to zero, gradients clipped to 1, weights in bfloat16 with float32 masters.

The part in bold is a training pressure, and it is why this model has V-sinks: facts of the whole scene must fit where attention goes, as if
a reader pruned the tokens. No weight was set by hand and no token was moved; training alone put the sinks on the background.
"""
LARGE = """
# sinkgate demo model, large

A LLaVA of {parameters:,} parameters ({megabytes:.1f} MB in bfloat16) that answers questions about pictures of flat shapes: the vision tower of the small
demo model, a projector, and the first six layers of SmolLM2-135M-Instruct (Apache-2.0), of which layers 0 to 2 stay as they were pretrained. Its
**L-sinks come from SmolLM2's own training**; nothing is planted. Load it with `sg.load("demo-large")`, or start the app, which opens on it.
The image comes first, and there is no start token.

## Recipe
`sinkgate/demo/pretrained.py` trains such a model from SmolLM2's file in two stages (a start, then the grounding of noun phrases). **These weights are not the result of that one command**: their first stage was an
earlier experiment with the same parts and rates, stopped after about 2,700 of 3,000 steps of 16 scenes, and the second stage continued it for 2,350 steps of 8 scenes on one core. The [log](../LOG.md) has the dates, what else was tried, and
measurements on more scenes: 98.4 % of 18,369 questions.

## Limits
It is trained on shapes only; for photographs load another model, such as `sg.load("llava-1.5-7b")`. Words outside its vocabulary are read as unknown. Nine of ten V-sinks spike in the L-sinks'
dimension too, so the two groups differ by the encoder's attention, not by the spike.
"""


def card(plan: Plan, record: Record, results: Mapping[str, Results]) -> str:
    """Return a model's card in Markdown.

    Args:
        plan: the model's plan.
        record: cost, and history if the training's is known; see `write_card`.
        results: published studies by name, "accuracy" and "scene-sinks" among them.
    """
    cost = record["cost"]
    large = bool(plan.suffix)
    more = "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" if large else ""
    head = (FRONT + (LARGE if large else SMALL)).format(
        more=more,
        parameters=cost["parameters"],
        megabytes=cost["megabytes"],
        objects=MAX_OBJECTS,
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        sizes=", ".join(SIZES),
        backgrounds=", ".join(BACKGROUNDS),
        kinds=len(KINDS),
    )
    parts = [head, _accuracy(results["accuracy"], "history" in record), _sinks(results["scene-sinks"])]
    if "history" in record:
        parts.append(_growth(record["history"]))
    return "\n".join([*parts, _more(plan), _cost(cost)])


def accuracy_by_kind(results: Results) -> pd.DataFrame:
    """Summarise right answers by kind and over "all": questions, accuracy and chance (the best constant answer), and ``spread``, best minus worst seed."""
    items = results.table("items")
    items = items.assign(seed=items["id"].str.split("/").str[1], right=results.table("answers")["right"].to_numpy())

    def row(name: str, rows: pd.DataFrame) -> Record:
        seeds = rows.groupby("seed")["right"].mean()
        common = rows["answer"].value_counts(normalize=True).iloc[0]
        return {
            "kind": name,
            "questions": len(rows),
            "accuracy": rows["right"].mean(),
            "spread": seeds.max() - seeds.min(),
            "chance": common,
        }

    return pd.DataFrame([row(kind, items[items["task"] == kind]) for kind in KINDS] + [row("all", items)])


def _accuracy(results: Results, history: bool) -> str:
    table = accuracy_by_kind(results)
    whole = table.iloc[-1]
    rows = [
        (r["kind"], KINDS[r["kind"]].scope, r["questions"], f"{r['accuracy']:.1%}", f"{100 * r['spread']:.1f}", f"{r['chance']:.1%}")
        for r in table.iloc[:-1].to_dict("records")
    ]  # fmt: skip
    figure = "\n![Accuracy of the checkpoints](accuracy.svg)\n" if history else ""
    return f"""
## Accuracy
{whole["questions"]:,} questions about clear scenes of the test split, three seeds, the same number of each kind, in
{results.about["model"]["dtype"]}, greedy answers, exact match. Chance is the best constant answer of the kind; spread is the distance between the
best and the worst seed, in points. Over all: **{whole["accuracy"]:.1%}** (spread {100 * whole["spread"]:.1f} points).

{markdown(("kind", "scope", "questions", "accuracy", "spread", "chance"), rows)}
{figure}"""


def _sinks(results: Results) -> str:
    table = summary(results)
    rows = []
    for name in dict.fromkeys(table["criterion"]):
        cells: list[str] = [name]
        for group, columns in (
            ("v_sink", ("tokens", "images", "on_objects", "encoder", "llm", "answering", "spiking")),
            ("l_sink", ("tokens", "layer", "images", "on_objects", "llm")),
        ):
            row = table[(table["criterion"] == name) & (table["group"] == group)].iloc[0]
            empty = ["none", *[""] * (len(columns) - 1)]
            cells += empty if pd.isna(row["tokens"]) else [_cell(row, column) for column in columns]
        rows.append(cells)
    header = (
        "criterion", "V-sinks an image", "images", "on objects", "encoder", "LLM", "LLM, global", "L-sinks too",
        "steady L-sinks", "layer", "images", "on objects", "LLM",
    )  # fmt: skip
    return f"""
## Sinks
By each criterion, on {results.about["data"]["samples"]} scenes that no training step used. "On objects": share of the sinks whose patch lies on an object; by chance it would be
{chance(results):.0%}. "Encoder" and "LLM": attention that a sink receives over the mean of the ordinary patches, the median of the images, in the layer that reads the
features and in the LLM layer where it is highest, a mean over text tokens and over all questions of the image ("global": from the token that writes the
answer to a question about the whole scene). "L-sinks too": V-sinks that the same criterion names in the LLM; they count as V-sinks.
An L-sink counts if it is one for {STEADY:.0%} of the image's questions: a token that draws attention because it holds the object of the question is no sink.
Its layer is the one where most images have one.

{markdown(header, rows)}
"""


def _cell(row: pd.Series, column: str) -> str:
    if pd.isna(row[column]):
        return ""
    formats = dict.fromkeys(("encoder", "llm", "answering"), "{:.1f} x") | {"tokens": "{:.1f}", "layer": "{:.0f}"}
    return formats.get(column, "{:.0%}").format(row[column])


def _growth(history: Sequence[Record]) -> str:
    tower = [record for record in history if record["stage"] == "tower"]
    grown = next((record["step"] for record in tower if record["top_over_median"] >= GROWN), None)
    first, last = tower[0], history[-1]
    when = f"passes {GROWN:g} times the median at step {grown}" if grown else f"stays below {GROWN:g} times the median"
    stages = {record["stage"]: record for record in history}
    took = "; ".join(f"{name}: {r['step']:,} steps in {r['seconds'] / 60:.0f} minutes" for name, r in stages.items())
    return f"""
## Growth
The most attended patch of the encoder {when} of the tower's training. It lies on an object in {first["top_on_object"]:.0%} of the images at step
{first["step"]} and in {last["top_on_object"]:.0%} at the end. Training took, {took}.

![Growth of the sinks](growth.svg)
"""


def _more(plan: Plan) -> str:
    gates = (
        f"[Learned gates and baselines](../{plan.gates.name}/README.md) on hazed scenes."
        if plan.gates.is_dir()
        else "No learned gate was trained for this model yet."
    )
    return f"""
## Analyses
- [The paper's claims](../{plan.folder.name}/README.md): anatomy, probes, each group's Keys at 0, sweeps of every layer.
- {gates}
"""


def _cost(cost: Record) -> str:
    ratios = [cost[key] / cost["small"][key] for key in ("prefill_ms", "tick_ms")]
    small = ""
    if cost["parameters"] > 1e7:
        small = f"Beside it in the same run, the small model took {cost['small']['prefill_ms']:.0f} and {cost['small']['tick_ms']:.0f} ms: {ratios[0]:.1f} and {ratios[1]:.1f} times less. "
    return f"""
## Cost
Processor time in float32, medians of {cost["pictures"]} pictures: a prefill with gates, image encoding included, {cost["prefill_ms"]:.0f} ms; a tick, the same prompt after a fader of layer 0 moved,
{cost["tick_ms"]:.0f} ms; loading {cost["load_seconds"]:.1f} s. {small}Measured on: {cost["machine"]}.
"""


# --- the record


def measure_cost(plan: Plan, pictures: int = 20) -> Record:
    """Return size and times of a model, and times of the small model, from alternating calls in one run.

    Args:
        plan: the model's plan.
        pictures: prompts, one call of each kind.
    """
    start = time.process_time()
    vlm = load(plan.model, dtype="float32")
    seconds = time.process_time() - start
    models = {"": vlm, "small": load("demo-small", dtype="float32")}
    times: dict[str, dict[str, list[float]]] = {name: {"prefill_ms": [], "tick_ms": []} for name in models}
    for scene, questions in held_out(8, pictures):
        image = scene.render()
        for name, each in models.items():
            session = Session(each, each.prompt(image, questions[0].question))
            gates = Gates.ones(each).set("v_sink", 0.5, 0)
            session.sinks  # noqa: B018  # found once for a prompt, whatever its gates
            assert session.resumes
            session.prompt.encoded = None
            session.drop()
            times[name]["prefill_ms"].append(_milliseconds(lambda: session.predict(gates)))  # noqa: B023
            times[name]["tick_ms"].append(_milliseconds(lambda: session.predict(gates.set("v_sink", 0.25, 0))))  # noqa: B023
    medians = {name: {key: median(values) for key, values in each.items()} for name, each in times.items()}
    return {
        "parameters": vlm.model.num_parameters(),
        "megabytes": sum((plan.weights / name).stat().st_size for name in ("model.safetensors", "config.json", "tokenizer.json")) / 1e6,
        "load_seconds": seconds,
        "pictures": pictures,
        **medians[""],
        "small": medians["small"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }  # fmt: skip


def _milliseconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call, which depends less on other work on the machine than elapsed time."""
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def write_card(plan: Plan, history: Path | None = None) -> None:
    """Write the card of a model's published studies, then its own, with figures and record, beside its weights.

    A record of other weights is replaced.

    Args:
        plan: the model's plan.
        history: history.jsonl of the training run; that of the record if None.
    """
    results = published(plan)
    (plan.folder / "README.md").write_text(studies_card(plan, results, plan.folder), encoding="utf-8")
    path = plan.weights / RECORD
    record: Record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if record.get("weights") != fingerprint(plan.weights):
        record = {"weights": fingerprint(plan.weights)}
    if history:
        record["history"] = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    if "cost" not in record:
        record["cost"] = measure_cost(plan)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if "history" in record:
        export(growth_figure(record["history"]), plan.weights / "growth.svg")
        export(accuracy_figure(record["history"]), plan.weights / "accuracy.svg")
    (plan.weights / "README.md").write_text(card(plan, record, results), encoding="utf-8")


def fingerprint(model: Path) -> str:
    """Return the SHA-256 of a model's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
