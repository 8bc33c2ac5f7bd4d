"""Stacks of gates that were trained apart (paper, section 4): greedily, from the best, without training again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sinkgate.data import Sample
from sinkgate.methods.base import Fixed, Method, finder_of
from sinkgate.methods.lsg.model import LSG
from sinkgate.models.vlm import VLM
from sinkgate.output import track
from sinkgate.sinks.gates import Gates
from sinkgate.training.dataset import Lessons, SinkCounts
from sinkgate.training.evaluation import Marks, evaluate

Score = Literal["accuracy", "loss"]
UNMODIFIED = "unmodified"


@dataclass(frozen=True)
class Step:
    """One try: these layers together, their score, and whether the layer added last was kept."""

    layers: tuple[int, ...]
    score: float
    kept: bool


@dataclass(frozen=True)
class Stack:
    """What stacking found. Scores are higher where better: accuracy in [0, 1], or the loss in nats a token with its sign turned.

    ``unmodified`` is the model's own score, ``singles`` each gate's by itself; ``steps`` are in the order of trying; ``sinks`` counts the
    images that have any.
    """

    lsg: LSG
    unmodified: float
    singles: dict[int, float]
    steps: list[Step]
    sinks: SinkCounts

    @property
    def score(self) -> float:
        """Score of the returned stack, that of the last step that was kept."""
        return next(step.score for step in reversed(self.steps) if step.kept)


def stack(
    lsg: LSG,
    vlm: VLM,
    samples: Sequence[Sample],
    *,
    score: Score = "loss",
    margin: float = 0.0,
    lessons: Lessons | None = None,
    progress: bool = True,
) -> Stack:
    """Start from the best single gate and add the others in order of their single gain; keep what helps.

    Gates that are worse alone than the unmodified model are tried as well, last. The best single gate is the stack where no other
    helps, even where it is worse than the model itself: compare ``score`` with ``unmodified``.

    Args:
        lsg: gates that were trained apart.
        vlm: the model.
        samples: validation samples; neither those of training nor those to report on.
        score: what decides. The paper does not say which score; loss is ours: it is less of a lottery than accuracy on few samples.
        margin: how much a gate has to add to be kept; more than that.
        lessons: see `evaluate`.
        progress: show a bar.

    Raises:
        SinkgateError: no sample can be used.
    """
    lessons = lessons or Lessons(vlm, finder_of([lsg], l_sinks=False))
    alone: dict[str, Method] = {str(layer): lsg.only([layer]) for layer in lsg.config.layers}
    marks = evaluate(vlm, {UNMODIFIED: Fixed(Gates.ones(vlm)), **alone}, samples, lessons=lessons, progress=progress)
    singles = {layer: _score(marks, str(layer), score) for layer in lsg.config.layers}
    best, *others = sorted(singles, key=lambda layer: -singles[layer])
    chosen, reached = (best,), singles[best]
    steps = [Step(chosen, reached, True)]
    for layer in track(others, "stack", unit="gates", show=progress):
        tried = (*chosen, layer)
        got = _score(
            evaluate(vlm, {"tried": lsg.only(tried)}, samples, lessons=lessons, progress=False), "tried", score
        )
        kept = got > reached + margin
        steps.append(Step(tried, got, kept))
        if kept:
            chosen, reached = tried, got
    return Stack(lsg.only(chosen), _score(marks, UNMODIFIED, score), singles, steps, marks.sinks)


def _score(marks: Marks, name: str, score: Score) -> float:
    return marks.accuracy(name) if score == "accuracy" else -marks.mean_loss(name)
