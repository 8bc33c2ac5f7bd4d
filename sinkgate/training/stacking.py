"""Stacks of gates that were trained separately (paper, section 4): chosen greedily from the best, without further training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Literal

from sinkgate.data import Sample
from sinkgate.data.identity import checksum, facts_of_samples
from sinkgate.methods.base import UNMODIFIED, Fixed, Method, described, finder_of
from sinkgate.methods.lsg.model import LSG
from sinkgate.models.finder import finder_settings
from sinkgate.models.vlm import VLM, Finder
from sinkgate.output import track
from sinkgate.sinks.gates import Gates
from sinkgate.training.dataset import ExampleCache, SinkCounts
from sinkgate.training.evaluation import EvaluationResult, evaluate

Score = Literal["accuracy", "loss"]
TRIALS = "trials"  # subfolder with the outcomes of finished batches


@dataclass(frozen=True)
class Step:
    """One trial: the layers, the score of their gates together, and whether the last layer stays in the stack."""

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
    batch_size: int = 32,
    out: str | Path | None = None,
    resume: bool = True,
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
        batch_size: samples side by side.
        out: folder whose ``trials/`` holds every finished batch of samples, so that the same call continues a killed one, and a call with
            another score or margin computes little. Outcomes of another model, other gates, samples, criteria of sinks or batch size are
            not used, and are deleted at the end. None writes nothing.
        resume: use the outcomes in the folder; False deletes them.
        progress: show a bar.

    Raises:
        SinkgateError: no sample can be used, or the folder cannot be written.

    Example:
        >>> result = sg.stack(lsg, vlm, validation, out="runs/stack")
        >>> result.lsg.save_pretrained("runs/stack")
    """
    examples = examples or ExampleCache(vlm, finder_of([lsg], l_sinks=False))
    alone: dict[str, Method] = {str(layer): lsg.only([layer]) for layer in lsg.config.layers}
    trials = None if out is None else Path(out) / TRIALS / _identity(lsg, vlm, samples, examples.find, batch_size)
    if trials is not None and not resume:
        rmtree(trials, ignore_errors=True)
    results = evaluate(
        vlm,
        {UNMODIFIED: Fixed(Gates.ones(vlm)), **alone},
        samples,
        examples=examples,
        batch_size=batch_size,
        progress=progress,
        keep=trials and trials / "singles.jsonl",
    )
    singles = {layer: _score(results, str(layer), score) for layer in lsg.config.layers}
    best, *others = sorted(singles, key=lambda layer: -singles[layer])
    stacked, best_value = (best,), singles[best]
    steps = [Step(stacked, best_value, True)]
    for layer in track(others, "stack", unit="gates", show=progress):
        tried = (*stacked, layer)
        result = evaluate(
            vlm,
            {"tried": lsg.only(tried)},
            samples,
            examples=examples,
            batch_size=batch_size,
            progress=False,
            keep=trials and trials / f"{'-'.join(map(str, sorted(tried)))}.jsonl",
        )
        value = _score(result, "tried", score)
        steps.append(Step(tried, value, accepted=value > best_value + margin))
        if steps[-1].accepted:
            stacked, best_value = tried, value
    for other in () if trials is None else trials.parent.iterdir():
        if other != trials:
            rmtree(other, ignore_errors=True)
    return Stack(lsg.only(stacked), _score(results, UNMODIFIED, score), singles, steps, results.sinks)


def _identity(lsg: LSG, vlm: VLM, samples: Sequence[Sample], find: Finder, batch_size: int) -> str:
    """Return a checksum of all that outcomes depend on."""
    model = {"model": vlm.name, "weights": vlm.weights_checksum, "dtype": str(vlm.model.dtype)}
    settings = {"gates": described(lsg), "sinks": finder_settings(find, vlm), "batch": batch_size}
    return checksum({**model, **facts_of_samples(samples), **settings})


def _score(result: EvaluationResult, name: str, score: Score) -> float:
    return result.accuracy(name) if score == "accuracy" else -result.mean_loss(name)
