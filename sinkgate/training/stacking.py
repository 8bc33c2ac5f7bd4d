"""Stacks of gates that were trained separately (paper, section 4): chosen greedily from the best, without further training."""

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
from sinkgate.training.dataset import ExampleCache, SinkCounts
from sinkgate.training.evaluation import EvaluationResult, evaluate

Score = Literal["accuracy", "loss"]
UNMODIFIED = "unmodified"


@dataclass(frozen=True)
class Step:
    """One trial: the layers, their common score, and whether the last layer stays in the stack."""

    layers: tuple[int, ...]
    score: float
    accepted: bool


@dataclass(frozen=True)
class Stack:
    """Result of stacking. Higher scores are better: accuracy in [0, 1], or the negative loss in nats a token.

    ``unmodified`` is the model's own score, ``singles`` that of each gate alone; ``steps`` are in the order of trials; ``sinks`` counts the
    images with sinks.
    """

    lsg: LSG
    unmodified: float
    singles: dict[int, float]
    steps: list[Step]
    sinks: SinkCounts

    @property
    def score(self) -> float:
        """Score of the returned stack, which is that of the last accepted step."""
        return next(step.score for step in reversed(self.steps) if step.accepted)


def stack(
    lsg: LSG,
    vlm: VLM,
    samples: Sequence[Sample],
    *,
    score: Score = "loss",
    margin: float = 0.0,
    examples: ExampleCache | None = None,
    progress: bool = True,
) -> Stack:
    """Start from the best single gate, try the others in order of their single scores, and add each that improves the stack.

    Gates that are worse alone than the unmodified model are tried too, last. If no other gate helps, the stack is the best single gate,
    even if it is worse than the model itself: compare ``score`` with ``unmodified``.

    Args:
        lsg: gates that were trained separately.
        vlm: the model.
        samples: validation samples, other than those of training and of the final report.
        score: criterion of improvement. Default chosen by us; the paper does not say. The loss varies less than accuracy on few samples.
        margin: improvement that an added gate must exceed, in units of the score.
        examples: see `evaluate`.
        progress: show a bar.

    Raises:
        SinkgateError: no sample can be used.

    Example:
        >>> result = sg.stack(lsg, vlm, validation)
        >>> result.lsg.save_pretrained("runs/stack")
    """
    examples = examples or ExampleCache(vlm, finder_of([lsg], l_sinks=False))
    alone: dict[str, Method] = {str(layer): lsg.only([layer]) for layer in lsg.config.layers}
    results = evaluate(
        vlm, {UNMODIFIED: Fixed(Gates.ones(vlm)), **alone}, samples, examples=examples, progress=progress
    )
    singles = {layer: _score(results, str(layer), score) for layer in lsg.config.layers}
    best, *others = sorted(singles, key=lambda layer: -singles[layer])
    chosen, best_value = (best,), singles[best]
    steps = [Step(chosen, best_value, True)]
    for layer in track(others, "stack", unit="gates", show=progress):
        tried = (*chosen, layer)
        result = evaluate(vlm, {"tried": lsg.only(tried)}, samples, examples=examples, progress=False)
        value = _score(result, "tried", score)
        steps.append(Step(tried, value, accepted=value > best_value + margin))
        if steps[-1].accepted:
            chosen, best_value = tried, value
    return Stack(lsg.only(chosen), _score(results, UNMODIFIED, score), singles, steps, results.sinks)


def _score(result: EvaluationResult, name: str, score: Score) -> float:
    return result.accuracy(name) if score == "accuracy" else -result.mean_loss(name)
