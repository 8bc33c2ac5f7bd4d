"""Samples made ready for a model, and the part of a forward that all methods share.

A method changes nothing below its lowest layer. So a batch is run once unmodified, and each method goes on from the input of
the layer at which it begins: to compare or to train many methods costs what lies below them once.

Shapes: B samples, A longest answer, D LLM width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from sinkgate.attention.partial_forward import checkpointed, kept_inputs, resumed
from sinkgate.data import Sample
from sinkgate.errors import ImageError, PromptError
from sinkgate.methods.base import Method
from sinkgate.models.batch import GRIDS, IGNORED, TEXT_INPUTS, Batch
from sinkgate.models.finder import SinkFinder
from sinkgate.models.prompts import Prompt
from sinkgate.models.session import Session
from sinkgate.models.vlm import VLM, Finder, find_sinks
from sinkgate.sinks.classify import SinkMap, SinkMasks

BUDGET = 2 << 30  # bytes of encoded images kept from one epoch to the next


@dataclass(frozen=True)
class ImageSinks:
    """Number of sinks among a sample's visual tokens, and the criteria that named them.

    ``l_sinks``: tokens that are L-sinks in any layer, None if only the encoder was looked at. Criteria are "" if unknown.
    """

    v_sinks: int
    l_sinks: int | None
    v_criterion: str = ""
    l_criterion: str = ""

    @classmethod
    def of(cls, masks: SinkMasks, find: Finder, vlm: VLM) -> ImageSinks:
        """Count the sinks that a finder named in one prompt."""
        v_sinks, l_sinks = int(masks.v_sink.sum()), int(masks.l_sink.any(0).sum())
        if isinstance(masks, SinkMap):
            return cls(
                v_sinks, l_sinks, masks.v_verdict.criterion if masks.v_verdict else "", masks.l_verdict.criterion
            )
        named = find.criteria(vlm).v_sink.criterion.name if isinstance(find, SinkFinder) else ""
        return cls(v_sinks, l_sinks or None, named)


@dataclass(frozen=True)
class SinkCounts:
    """Numbers of images: all, those with V-sinks, and those with L-sinks (None if they were not looked for)."""

    images: int
    v_sink: int
    l_sink: int | None
    v_criterion: str = ""
    l_criterion: str = ""

    @classmethod
    def of(cls, each: Iterable[ImageSinks]) -> SinkCounts:
        """Count images."""
        each = list(each)
        known = [one.l_sinks for one in each if one.l_sinks is not None]
        criteria = (
            ", ".join(sorted({getattr(one, name) for one in each} - {""})) for name in ("v_criterion", "l_criterion")
        )
        return cls(
            len(each), sum(one.v_sinks > 0 for one in each), sum(n > 0 for n in known) if known else None, *criteria
        )

    def count(self, group: str) -> int | None:
        """Images that have a group, "v_sink" or "l_sink"."""
        return self.v_sink if group == "v_sink" else self.l_sink

    def __str__(self) -> str:
        """One line a group, with the consequence if no image has it."""
        lines = []
        for name, count, criterion in (
            ("V-sinks", self.v_sink, self.v_criterion),
            ("L-sinks", self.l_sink, self.l_criterion),
        ):
            if count is not None:
                by = f" by {criterion}" if criterion else ""
                empty = f": scaling {name} changes nothing here, and gates for them scale all visual tokens alike"
                lines.append(
                    f"{name} in {count} of {self.images} images{by}{'' if count or not self.images else empty}"
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class Lesson:
    """A sample made ready: its prompt read and encoded, its sinks found, its answer spelled in ids.

    ``options``: each option with the token that decides for it, all different; empty where the answer is open. That token stands at
    ``deciding`` in the answer: behind what all options begin with.
    """

    prompt: Prompt
    sinks: SinkMasks
    answer: tuple[int, ...]
    kind: str
    options: Mapping[str, int] = field(default_factory=dict)
    deciding: int = 0
    found: ImageSinks = field(default_factory=lambda: ImageSinks(0, None))

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes, most of it the encoded image."""
        encoded = self.prompt.encoded
        kept = [value for value in (encoded or {}).values() if isinstance(value, Tensor)]
        return sum(t.nbytes for t in [*kept, *self.prompt.inputs.values(), self.sinks.v_sink, self.sinks.l_sink])


class Lessons:
    """Makes lessons of samples, and keeps them while a budget of memory lasts.

    A sample that cannot be used (a broken or missing image, an empty answer, a question that cannot be asked) is passed over and
    noted in ``skipped``, by its name, with the reason. ``found``: the sinks of each sample that was used, by its name.
    """

    def __init__(self, vlm: VLM, find: Finder = find_sinks, budget: int = BUDGET) -> None:
        self.vlm, self.find, self.budget = vlm, find, budget
        self.skipped: dict[str, str] = {}
        self.found: dict[str, ImageSinks] = {}
        self._kept: dict[int, tuple[Sample, Lesson]] = {}  # by the sample's identity, which lasts while it is held here
        self._held = 0

    def ready(self, sample: Sample, name: str) -> Lesson | None:
        """The lesson of a sample; None where it has to be passed over."""
        if id(sample) in self._kept:
            lesson = self._kept[id(sample)][1]
            self.found[name] = lesson.found
            return lesson
        try:
            lesson = self._make(sample)
        except (ImageError, PromptError) as error:
            self.skipped[name] = str(error)
            return None
        self.found[name] = lesson.found
        if self._held + lesson.nbytes <= self.budget:
            self._kept[id(sample)] = sample, lesson
            self._held += lesson.nbytes
        return lesson

    def _make(self, sample: Sample) -> Lesson:
        vlm = self.vlm
        prompt = vlm.prompt(sample.images, sample.parts)
        answer = vlm.encode_answer(prompt, sample.answer)
        options, deciding = self._options(prompt, sample) if sample.options else ({}, 0)
        found = self.find(vlm, prompt)
        sinks = SinkMasks(found.v_sink, found.l_sink)
        if vlm.adapter.takes_encoded is not None:
            vlm.warm_inputs(prompt)
            text = {name: value for name, value in prompt.inputs.items() if name in (*TEXT_INPUTS, *GRIDS)}
            prompt = replace(prompt, images=[], sheets=(), inputs=text, sinks=None)
        return Lesson(
            prompt, sinks, tuple(answer), sample.kind, options, deciding, ImageSinks.of(found, self.find, vlm)
        )

    def _options(self, prompt: Prompt, sample: Sample) -> tuple[dict[str, int], int]:
        """The token that decides for each option, and its place in the answer."""
        encoded = self.vlm.encode_options(prompt, sample.options)
        if not encoded.decided_at_once or sample.answer not in encoded.ids:
            raise PromptError(
                f"options are {', '.join(sample.options)} and the answer is {sample.answer!r}; expected options that differ in the "
                "first token behind what all begin with, and the answer among them"
            )
        return dict(zip(encoded.ids, encoded.deciding, strict=True)), encoded.shared


def batches(vlm: VLM, lessons: Sequence[Lesson]) -> Iterator[tuple[slice, Batch]]:
    """The lessons side by side; one by one for models that encode images anew in every call."""
    size = len(lessons) if vlm.adapter.takes_encoded is not None else 1
    for start in range(0, len(lessons), max(size, 1)):
        part = lessons[start : start + size]
        prompts, sinks, answers = zip(*((each.prompt, each.sinks, each.answer) for each in part), strict=True)
        yield slice(start, start + size), vlm.batch(prompts, sinks, answers)


class Prefix:
    """A batch run once on the unmodified model; methods go on from where they begin."""

    def __init__(self, vlm: VLM, batch: Batch, checkpoint: bool = False) -> None:
        assert batch.labels is not None
        self.vlm, self.batch, self.checkpoint = vlm, batch, checkpoint
        self.labels = batch.labels[:, batch.length :]  # (B, A)
        self.resumes = vlm.adapter.takes_encoded is not None and Session(vlm, batch.prompts[0]).resumes
        self._inputs: list[Tensor] = []
        with torch.no_grad(), vlm.attached(None, None), kept_inputs(vlm.adapter.all_layers, self._inputs):
            self.plain = self._logits()

    def run(self, method: Method) -> Tensor:
        """Logits at the answers' places under a method, (B, A, vocabulary)."""
        with method.applied(self.vlm, self.batch):
            return self.within(method)

    def within(self, method: Method) -> Tensor:
        """The same where the method is applied already."""
        layers = self.vlm.adapter.all_layers
        start = method.first_layer(self.vlm) if self.resumes else 0
        if start == len(layers):
            return self.plain
        with ExitStack() as stack:
            stack.enter_context(resumed(layers, start, self._inputs[start] if start else None))
            if self.checkpoint and torch.is_grad_enabled():
                stack.enter_context(checkpointed(layers[start:]))
            return self._logits()

    def losses(self, logits: Tensor) -> Tensor:
        """Cross entropy of each answer, summed over its tokens, (B,), in nats."""
        flat = cross_entropy(
            logits.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return flat.view_as(self.labels).sum(1)

    def right(self, logits: Tensor) -> Tensor:
        """Whether each answer, its end included, is what greedy decoding would write, (B,) boolean.

        Any token that ends an answer is as good as another.
        """
        ends = torch.tensor(self.vlm.prompter.chat.ends, device=self.labels.device, dtype=self.labels.dtype)
        written = logits.argmax(-1)
        both_end = torch.isin(written, ends) & torch.isin(self.labels, ends)
        return ((written == self.labels) | both_end | (self.labels == IGNORED)).all(1)

    def _logits(self) -> Tensor:
        count = self.labels.shape[1]
        output = self.vlm.model(**self.batch.inputs, use_cache=False, logits_to_keep=count + 1)
        return output.logits[:, -count - 1 : -1]


def labels_of(lessons: Iterable[Lesson | None]) -> Tensor:
    """The answers' ids, one row a lesson, ``IGNORED`` where there is none, (B, A)."""
    rows = [torch.tensor(lesson.answer if lesson else [], dtype=torch.long) for lesson in lessons]
    longest = max([1, *map(len, rows)])
    return torch.stack([pad(row, (0, longest - len(row)), value=IGNORED) for row in rows])
