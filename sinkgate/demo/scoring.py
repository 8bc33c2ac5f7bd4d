"""Right answers on packed rows of questions, by the rule of greedy decoding, for the progress of a training run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from random import Random
from statistics import fmean

from torch import Tensor

from sinkgate.demo.batches import IGNORED, Packed
from sinkgate.scenes.questions import KINDS, Question, ask_all
from sinkgate.scenes.scene import Scene

SceneQuestions = tuple[Scene, list[Question]]


def held_out(seed: int | str, count: int) -> list[SceneQuestions]:
    """Return scenes with one question of each kind, from a stream that training does not use."""
    rngs = [Random(f"held out/{seed}/{index}") for index in range(count)]
    return [(scene := Scene.random(rng), ask_all(scene, rng)) for rng in rngs]


def dialogues(data: Iterable[SceneQuestions]) -> list[list[tuple[str, str]]]:
    """Return the turns for ``pack``."""
    return [[(question.question, question.answer) for question in questions] for _, questions in data]


def right_answers(logits: Tensor, packed: Packed) -> list[list[bool]]:
    """Return for every row whether each of its answers is right, in the order of the turns.

    An answer is right if each of its tokens, the end included, is the most probable one given those before it: exactly if greedy decoding
    generates it. Shapes: logits (B, T, vocabulary).
    """
    labels, segments = packed.labels[:, 1:], packed.segments[:, 1:]
    hit = (logits[:, :-1].argmax(-1).cpu() == labels) | (labels == IGNORED)
    return [
        [bool(row[turns == turn].all()) for turn in range(1, int(turns.max()) + 1)]
        for row, turns in zip(hit, segments, strict=True)
    ]


def by_kind(data: Iterable[SceneQuestions], right: Iterable[list[bool]]) -> dict[str, float]:
    """Return the share of right answers for each kind among the questions."""
    hits = defaultdict[str, list[bool]](list)
    for (_, questions), row in zip(data, right, strict=True):
        for question, hit in zip(questions, row, strict=True):
            hits[question.kind].append(hit)
    return {kind: fmean(hits[kind]) for kind in KINDS if kind in hits}
