"""Scores of packed rows of questions, by the rule of greedy decoding, for the progress of a training run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from torch import Tensor

from sinkgate.demo.batches import IGNORED, Packed
from sinkgate.scenes.questions import KINDS, Question, ask_all
from sinkgate.scenes.scene import Scene

SceneQuestions = tuple[Scene, list[Question]]


@dataclass(frozen=True)
class KindScore:
    """Exactly right answers of one kind of question; ``chance`` is the best constant answer's accuracy."""

    scope: str
    questions: int
    accuracy: float
    chance: float


def held_out(seed: int | str, count: int) -> list[SceneQuestions]:
    """Return scenes with one question of each kind, from a stream that training does not use."""
    rngs = [Random(f"held out/{seed}/{index}") for index in range(count)]
    return [(scene := Scene.random(rng), ask_all(scene, rng)) for rng in rngs]


def dialogues(data: Iterable[SceneQuestions]) -> list[list[tuple[str, str]]]:
    """Return the turns for ``pack``."""
    return [[(question.question, question.answer) for question in questions] for _, questions in data]


def right_answers(logits: Tensor, packed: Packed) -> list[list[bool]]:
    """Return for every row whether each of its answers is right, in the order of the turns.

    An answer is right where every one of its tokens, the end included, is the most probable one given those
    before: exactly when greedy decoding would give it. Shapes: logits (B, T, vocabulary).
    """
    labels = packed.labels[:, 1:]
    hit = (logits[:, :-1].argmax(-1).cpu() == labels) | (labels == IGNORED)
    return [
        [bool(hit[row, start:end].all()) for start, end in _runs((labels[row] != IGNORED).tolist())]
        for row in range(len(labels))
    ]


def by_kind(data: Iterable[SceneQuestions], right: Iterable[list[bool]]) -> dict[str, KindScore]:
    """Return the scores of every kind among the questions."""
    hits, truth = defaultdict[str, list[bool]](list), defaultdict[str, Counter[str]](Counter)
    for (_, questions), row in zip(data, right, strict=True):
        for question, hit in zip(questions, row, strict=True):
            hits[question.kind].append(hit)
            truth[question.kind][question.answer] += 1
    return {
        kind: KindScore(
            KINDS[kind].scope,
            len(hits[kind]),
            sum(hits[kind]) / len(hits[kind]),
            truth[kind].most_common(1)[0][1] / len(hits[kind]),
        )
        for kind in KINDS
        if hits[kind]
    }


def overall(scores: dict[str, KindScore]) -> float:
    """Return the share of right answers over all questions."""
    return sum(s.accuracy * s.questions for s in scores.values()) / sum(s.questions for s in scores.values())


def _runs(chosen: list[bool]) -> Iterator[tuple[int, int]]:
    edges = [i for i in range(len(chosen) + 1) if (i > 0 and chosen[i - 1]) != (i < len(chosen) and chosen[i])]
    return zip(edges[::2], edges[1::2], strict=True)
