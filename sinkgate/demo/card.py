"""The demo model's card, written from measured numbers only."""

from __future__ import annotations

from typing import Any

from sinkgate.demo.scenes import BACKGROUNDS, COLORS, MAX_OBJECTS, SHAPES, SIZES

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# sinkgate demo model

A LLaVA of {parameters:,} parameters, trained from nothing by `python -m sinkgate.demo.train`, that answers questions about
pictures of flat shapes. It is made to try sinkgate on a laptop and is of no other use. It loads with transformers'
`AutoModelForImageTextToText` and `AutoProcessor`, offline.

## Parts
A SigLIP-type tower without CLS (6 layers, 96 wide, 3 heads, 64 x 64 pixels, patch 8: 64 visual tokens), a two-layer
projector, a LLaMA (8 layers, 128 wide, 4 heads). One token a word, lower case. The image comes first and there is no start
token.

## Data
Scenes are drawn on the fly and never repeated: 1 to {objects} objects ({shapes}; {colors}; {sizes})
on a background of {backgrounds}, with questions of {kinds} kinds and a description of the scene. No outside data.

## Recipe
1. The tower: count, background, count by colour and presence of each colour-shape pair from an attention-pooling head; shape,
   colour and size under each patch, and its row and column, from the patches. AdamW without decay, peak 1.5e-3.
2. Tower, projector and LLM together on six questions and a description an image, each turn blind to the others; loss on
   answers only. AdamW without decay, peak 4e-4 (tower) and 1e-3 (rest). Both stages: 100 steps of warm-up, cosine to zero,
   gradients clipped to 1, weights in bfloat16 with float32 master copies.

No weight was set by hand and no pressure towards sinks was applied.
"""


def card(report: dict[str, Any]) -> str:
    """The card as Markdown, from what ``sinkgate.demo.evaluate`` measured."""
    parts = [
        _HEAD.format(
            parameters=report["parameters"],
            objects=MAX_OBJECTS,
            shapes=", ".join(SHAPES),
            colors=", ".join(COLORS),
            sizes=", ".join(SIZES),
            backgrounds=", ".join(BACKGROUNDS),
            kinds=len(report["kinds"]),
        )
    ]
    if report["training"]:
        stages = "; ".join(
            f"{r['stage']} {r['step']:,} steps in {r['seconds'] / 60:.0f} minutes" for r in report["training"]
        )
        parts.append(f"\nTraining took: {stages}. {report['note']}\n")
    parts.append(
        f"""
## Accuracy
{report["scenes"]:,} scenes that no training step saw (seed {report["seed"]}), one question of every kind that a scene allows, in
float32, greedy answers, exact match. Chance is the best constant answer of the kind. Over all: **{report["overall"]:.1%}**.

| kind | scope | questions | accuracy | chance |
|---|---|---:|---:|---:|
"""
    )
    parts += [
        f"| {kind} | {s['scope']} | {s['questions']} | {s['accuracy']:.1%} | {s['chance']:.1%} |\n"
        for kind, s in report["kinds"].items()
    ]
    parts.append(
        f"""
## Sinks
By each criterion, on {report["sink_images"]} of these scenes. "On objects": share of the V-sinks whose patch lies on an object, where
attention may be content and no sink. "Attention": what V-sinks receive in the encoder's last layer over the median patch.

| criterion | V-sinks an image | images with any | on objects | attention | L-sinks, busiest layer | images with any |
|---|---:|---:|---:|---:|---:|---:|
"""
    )
    parts += [_sink_row(name, s) for name, s in report["sinks"].items()]
    parts.append(
        "\nWhere a row is empty the model has no such sinks: that is an answer. A small tower trained for minutes grows no massive\n"
        "activations and no norm outliers; what its V-sinks are here is decided by attention alone.\n"
        if not report["sinks"]["massive"]["images"] and not report["sinks"]["norm"]["images"]
        else ""
    )
    turned = report["turned"]
    layers = [name for name in turned if name not in ("questions", "all")]
    parts.append(
        f"""
## V-sinks switched off
How often a Key scale of 0 on the V-sinks (criterion auto) changes the first word of a right answer: {turned["questions"]:,} questions of the same
scenes. The model can mostly lean on other patches.

| layer | {" | ".join(layers)} | all |
|---|{"---:|" * (len(layers) + 1)}
| answers that turn | {" | ".join(f"{turned[name]:.2%}" for name in [*layers, "all"])} |
"""
    )
    parts.append(f"\nMeasured on: {report['machine']}.\n")
    return "".join(parts)


def _sink_row(name: str, s: dict[str, float]) -> str:
    if not s["images"]:
        v_part = "| none | 0% | | "
    else:
        v_part = f"| {s['tokens']:.1f} | {s['images']:.0%} | {s['on_objects']:.0%} | {s['attention']:.1f} x "
    l_part = f"| {s['l_tokens']:.1f} | {s['l_images']:.0%} |\n" if s["l_images"] else "| none | 0% |\n"
    return f"| {name} {v_part}{l_part}"
