"""Measures the demo model on scenes that no training step saw and writes its card: ``python -m sinkgate.demo.evaluate``."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from sinkgate.criteria import CRITERIA
from sinkgate.demo.batches import IGNORED, pack
from sinkgate.demo.card import card
from sinkgate.demo.questions import KINDS, Question, ask_all
from sinkgate.demo.scenes import Scene
from sinkgate.gates import Gates
from sinkgate.loading import DEMO, load
from sinkgate.sinks import classify
from sinkgate.vlm import VLM, find_sinks


@dataclass(frozen=True)
class KindScore:
    """Exactly right answers of one kind of question; ``chance`` is the best constant answer's accuracy."""

    scope: str
    questions: int
    accuracy: float
    chance: float


@dataclass(frozen=True)
class SinkScore:
    """What one criterion finds over many images.

    ``tokens`` V-sinks an image (mean), ``images`` share of images with any, ``on_objects`` share of the V-sinks that
    lie on an object, ``attention`` times the median in the encoder; the same for L-sinks at their busiest layer.
    """

    tokens: float
    images: float
    on_objects: float
    attention: float
    l_tokens: float
    l_images: float


def held_out(seed: int, count: int) -> list[tuple[Scene, list[Question]]]:
    """Scenes with one question of every kind each, from a stream that training never draws from."""
    rngs = [Random(f"held out/{seed}/{index}") for index in range(count)]
    return [(scene := Scene.random(rng), ask_all(scene, rng)) for rng in rngs]


def accuracy(vlm: VLM, data: list[tuple[Scene, list[Question]]], batch: int = 32) -> dict[str, KindScore]:
    """Accuracy of greedy answers by kind, pictures through the model's own processor.

    All questions of a scene run in one packed row. An answer counts where every one of its tokens, the end
    included, is the most probable one given those before: exactly when greedy decoding would give it.
    """
    right, truth = defaultdict[str, list[bool]](list), defaultdict[str, Counter[str]](Counter)
    for chunk in tqdm(_chunks(data, batch), desc="answers"):
        packed = pack([[(q.question, q.answer) for q in asked] for _, asked in chunk], vlm.tokenizer, vlm.model.dtype)
        images = vlm.processor.image_processor([scene.render() for scene, _ in chunk], return_tensors="pt")
        with torch.no_grad():
            logits = vlm.model(
                input_ids=packed.input_ids.to(vlm.device),
                pixel_values=images["pixel_values"].to(vlm.device, vlm.model.dtype),
                attention_mask=packed.attention_mask.to(vlm.device),
                position_ids=packed.position_ids.to(vlm.device),
                use_cache=False,
            ).logits[:, :-1]
        labels = packed.labels[:, 1:]
        hit = (logits.argmax(-1).cpu() == labels) | (labels == IGNORED)
        for row, (_, asked) in enumerate(chunk):
            answers = iter(_runs((labels[row] != IGNORED).tolist()))
            for question, (start, end) in zip(asked, answers, strict=True):
                right[question.kind].append(bool(hit[row, start:end].all()))
                truth[question.kind][question.answer] += 1
    return {
        kind: KindScore(
            KINDS[kind].scope,
            len(right[kind]),
            sum(right[kind]) / len(right[kind]),
            truth[kind].most_common(1)[0][1] / len(right[kind]),
        )
        for kind in KINDS
        if right[kind]
    }


def overall(scores: dict[str, KindScore]) -> float:
    """Share of right answers over all questions."""
    return sum(s.accuracy * s.questions for s in scores.values()) / sum(s.questions for s in scores.values())


def sink_scores(vlm: VLM, data: list[tuple[Scene, list[Question]]]) -> dict[str, SinkScore]:
    """What each named criterion finds on these scenes."""
    found = defaultdict[str, list[tuple[float, ...]]](list)
    for scene, asked in tqdm(data, desc="sinks"):
        prompt = vlm.prompt(scene.render(), asked[0].question)
        seen = vlm.observe(prompt)
        rows, columns = prompt.grid
        covered = torch.tensor(
            [
                any(item.covers((c + 0.5) / columns, (r + 0.5) / rows) for item in scene.objects)
                for r in range(rows)
                for c in range(columns)
            ]
        )
        for name in CRITERIA:
            sinks = classify(seen, prompt.grid, v_sink=name, l_sink=name)
            chosen = sinks.v_sink
            on_objects = covered[chosen].float().sum().item()
            attention = sinks.encoder_share[chosen].sum().item()
            found[name].append((chosen.sum().item(), on_objects, attention, sinks.l_sink.sum(1).max().item()))
    scores = {}
    for name, rows in found.items():
        table = torch.tensor(rows)
        tokens, on_objects, attention, l_tokens = table.T
        total = max(tokens.sum().item(), 1e-9)
        scores[name] = SinkScore(
            tokens.mean().item(),
            (tokens > 0).float().mean().item(),
            on_objects.sum().item() / total,
            attention.sum().item() / total,
            l_tokens.mean().item(),
            (l_tokens > 0).float().mean().item(),
        )
    return scores


def turned_answers(vlm: VLM, data: list[tuple[Scene, list[Question]]]) -> dict[str, float]:
    """How often switching V-sinks off (Key scale 0) changes the first word of a right answer.

    Returns the number of rightly begun answers as ``questions``, and the share of them that turn, for each layer
    alone (``0``, ``1``, ...) and for ``all`` layers at once. V-sinks by the default criteria.
    """
    settings = {str(layer): [layer] for layer in range(vlm.num_layers)} | {"all": list(range(vlm.num_layers))}
    turned, right = Counter[str](), 0
    for scene, asked in tqdm(data, desc="gates"):
        image = scene.render()
        for question in asked:
            prompt = vlm.prompt(image, question.question)
            sinks = find_sinks(vlm, prompt)
            word = vlm.predict(prompt).next_token[0][0]
            if word != question.answer.split()[0]:
                continue
            right += 1
            for name, layers in settings.items():
                gates = Gates.ones(vlm).set("v_sink", 0.0, layers)
                turned[name] += vlm.predict(prompt, gates, sinks).next_token[0][0] != word
    return {"questions": right} | {name: turned[name] / max(right, 1) for name in settings}


def main(
    model: Annotated[Path, typer.Option(help="Folder of the model; the card is written into it.")] = DEMO,
    scenes: Annotated[int, typer.Option(help="Held-out scenes for accuracy.")] = 2000,
    sink_images: Annotated[int, typer.Option(help="Held-out scenes for sinks and for gating them.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the held-out scenes.")] = 1,
    history: Annotated[Path | None, typer.Option(help="history.jsonl of the training run, for the card.")] = None,
    note: Annotated[str, typer.Option(help="What else the card should say of the training.")] = "",
) -> None:
    """Measure a demo model and write ``evaluation.json`` and its card beside the weights."""
    vlm = load(model, dtype=torch.float32)
    data = held_out(seed, scenes)
    scores = accuracy(vlm, data)
    report = {
        "scenes": scenes,
        "seed": seed,
        "overall": overall(scores),
        "kinds": {kind: vars(score) for kind, score in scores.items()},
        "sink_images": sink_images,
        "sinks": {name: vars(score) for name, score in sink_scores(vlm, data[:sink_images]).items()},
        "turned": turned_answers(vlm, data[:sink_images]),
        "parameters": vlm.model.num_parameters(),
        "training": _last_steps(history) if history else _known(model).get("training", []),
        "note": note or _known(model).get("note", ""),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (model / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    (model / "README.md").write_text(card(report))
    typer.echo(f"{report['overall']:.1%} of all answers are right; card written to {model / 'README.md'}")


def _known(model: Path) -> dict[str, Any]:
    path = model / "evaluation.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _last_steps(history: Path) -> list[dict[str, Any]]:
    """The last record of each stage."""
    return list({record["stage"]: record for record in map(json.loads, history.read_text().splitlines())}.values())


def _chunks(data: list[tuple[Scene, list[Question]]], size: int) -> list[list[tuple[Scene, list[Question]]]]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _runs(chosen: list[bool]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(chosen) + 1) if (i > 0 and chosen[i - 1]) != (i < len(chosen) and chosen[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


if __name__ == "__main__":
    typer.run(main)
