"""Which answers methods get right, many methods on one pass through the samples.

An open answer is right where it is, end included, what greedy decoding would write: checked in one forward behind the prompt, not
by generating (tests compare the two). Where a sample has options, it is right where its token is the most
probable of theirs, at the first place where they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sinkgate.data import Sample
from sinkgate.errors import SinkgateError
from sinkgate.methods.base import Method, finder_of
from sinkgate.models.vlm import VLM
from sinkgate.output import track
from sinkgate.training.dataset import ImageSinks, Lesson, Lessons, Prefix, SinkCounts, batches


@dataclass(frozen=True)
class Marks:
    """What each method did with each sample, in order: ``right``, ``loss`` and ``said`` by the method's name.

    The loss is in nats a token; of an answer with options in nats, the surprise at it among them. ``said``: the option chosen, None
    for an open answer. ``found``: the sinks of each sample.
    """

    kinds: list[str]
    right: dict[str, list[bool]]
    loss: dict[str, list[float]]
    said: dict[str, list[str | None]]
    found: list[ImageSinks] = field(default_factory=list)

    @property
    def sinks(self) -> SinkCounts:
        """In how many of the images there are sinks."""
        return SinkCounts.of(self.found)

    def accuracy(self, name: str) -> float:
        """Share of right answers, in [0, 1]."""
        return fmean(self.right[name])

    def mean_loss(self, name: str) -> float:
        """Mean over samples of the loss, in nats a token."""
        return fmean(self.loss[name])

    def by_kind(self, name: str) -> dict[str, float]:
        """Share of right answers for each kind of sample."""
        marks = list(zip(self.kinds, self.right[name], strict=True))
        return {kind: fmean(right for other, right in marks if other == kind) for kind in dict.fromkeys(self.kinds)}


def evaluate(
    vlm: VLM,
    methods: Mapping[str, Method],
    samples: Sequence[Sample] | Iterable[tuple[Any, ...]],
    *,
    lessons: Lessons | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Marks:
    """Put every sample to the model under each method; ``Fixed(Gates.ones(vlm))`` is the unmodified model.

    Args:
        vlm: the model.
        methods: by name.
        samples: `Sample`s or ``(image, question, answer)``; those that cannot be used are passed over, see ``lessons.skipped``.
        lessons: how samples are made ready and sinks are found, by the methods' own criterion where None; those kept from before
            are used again.
        batch_size: samples side by side.
        progress: show a bar.

    Raises:
        SinkgateError: no sample can be used, or methods name different criteria.
    """
    lessons = lessons or Lessons(vlm, finder_of(methods.values()))
    marks = Marks([], {name: [] for name in methods}, {name: [] for name in methods}, {name: [] for name in methods})
    given = Sample.list_of(samples)
    starts = range(0, len(given), batch_size)
    for start in track(starts, "evaluate", unit="batches", show=progress):
        numbered = enumerate(given[start : start + batch_size], start)
        ready = [lessons.ready(sample, f"sample {number}") for number, sample in numbered]
        _mark(vlm, methods, [lesson for lesson in ready if lesson is not None], marks)
    if not marks.kinds:
        first = next(iter(lessons.skipped.values()), "there are none")
        raise SinkgateError(f"no sample can be used: {first}")
    return marks


def _mark(vlm: VLM, methods: Mapping[str, Method], ready: list[Lesson], marks: Marks) -> None:
    with torch.no_grad():
        for part, batch in batches(vlm, ready):
            prefix, chosen = Prefix(vlm, batch), ready[part]
            marks.kinds.extend(lesson.kind for lesson in chosen)
            marks.found.extend(lesson.found for lesson in chosen)
            for name, method in methods.items():
                right, loss, said = _judged(prefix, prefix.run(method), chosen)
                marks.right[name] += right
                marks.loss[name] += loss
                marks.said[name] += said


def _judged(prefix: Prefix, logits: Tensor, lessons: list[Lesson]) -> tuple[list[bool], list[float], list[str | None]]:
    """Whether each lesson was answered rightly, its loss, and the option chosen; logits (B, A, vocabulary)."""
    tokens = torch.tensor([len(lesson.answer) for lesson in lessons])
    right, loss = prefix.right(logits).tolist(), (prefix.losses(logits).cpu() / tokens).tolist()
    said: list[str | None] = [None] * len(lessons)
    for row, lesson in enumerate(lessons):
        if lesson.options:
            surprise = -logits[row, lesson.deciding, list(lesson.options.values())].float().log_softmax(-1)
            said[row] = list(lesson.options)[int(surprise.argmin())]
            true = list(lesson.options.values()).index(lesson.answer[lesson.deciding])
            right[row], loss[row] = int(surprise.argmin()) == true, surprise[true].item()
    return right, loss, said
