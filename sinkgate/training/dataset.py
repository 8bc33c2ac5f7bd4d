"""Training examples (tokenised, images encoded, sinks marked) and the forward prefix that all methods share.

A method changes nothing below its first layer. So a batch runs once unmodified, and each method continues from the input of its first
layer: the layers below cost the same for one method as for many.

Shapes: B samples, A longest answer, D LLM width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkgate.attention.partial_forward import checkpointed, each_input, resumed
from sinkgate.attention.recorder import Recorder
from sinkgate.data import Sample
from sinkgate.data.identity import picture_of
from sinkgate.errors import ImageError, PromptError
from sinkgate.methods.base import Method
from sinkgate.models.batch import GRIDS, IGNORED, TEXT_INPUTS, Batch
from sinkgate.models.finder import SinkFinder
from sinkgate.models.prompts import Prompt
from sinkgate.models.session import Session
from sinkgate.models.vlm import VLM, Finder, find_sinks
from sinkgate.sinks.classify import SinkMap, SinkMasks

BUDGET = 2 << 30  # bytes of encoded images in the cache
FEW = 8  # images without a group's sinks that are worth a word: fewer than a third of all have some, with a confidence of 95 %


@dataclass(frozen=True)
class ImageSinks:
    """Number of sinks among a sample's visual tokens, and the criteria that named them.

    ``l_sinks``: tokens that are L-sinks in any layer, None if only the encoder was observed. Criteria are "" if unknown. ``picture``: equal
    for questions about the same images, "" if there is one question only.
    """

    v_sinks: int
    l_sinks: int | None
    v_criterion: str = ""
    l_criterion: str = ""
    picture: str = ""

    @classmethod
    def of(cls, masks: SinkMasks, find: Finder, vlm: VLM, picture: str) -> ImageSinks:
        """Count the sinks of one prompt."""
        v_sinks, l_sinks = int(masks.v_sink.sum()), int(masks.l_sink.any(0).sum())
        if isinstance(masks, SinkMap):
            v_criterion = masks.v_verdict.criterion if masks.v_verdict else ""
            return cls(v_sinks, l_sinks, v_criterion, masks.l_verdict.criterion, picture)
        v_criterion = find.criteria(vlm).v_sink.criterion.name if isinstance(find, SinkFinder) else ""
        return cls(v_sinks, l_sinks or None, v_criterion, picture=picture)


@dataclass(frozen=True)
class SinkCounts:
    """Numbers of images: all, those with V-sinks, and those with L-sinks (None if only the encoder was observed).

    Images of several questions count once: as one with sinks if any question shows some.
    """

    images: int
    v_sink: int
    l_sink: int | None
    v_criterion: str = ""
    l_criterion: str = ""

    @classmethod
    def of(cls, each: Iterable[ImageSinks]) -> SinkCounts:
        """Count images."""
        each = list(each)
        v_sinks: dict[str | int, bool] = defaultdict(bool)
        l_sinks: dict[str | int, bool] = defaultdict(bool)
        for number, one in enumerate(each):
            v_sinks[one.picture or number] |= one.v_sinks > 0
            if one.l_sinks is not None:
                l_sinks[one.picture or number] |= one.l_sinks > 0
        v_criteria, l_criteria = ({one.v_criterion for one in each}, {one.l_criterion for one in each})
        names = (", ".join(sorted(criteria - {""})) for criteria in (v_criteria, l_criteria))
        return cls(len(v_sinks), sum(v_sinks.values()), sum(l_sinks.values()) if l_sinks else None, *names)

    def count(self, group: str) -> int | None:
        """Return the number of images with a group, "v_sink" or "l_sink"."""
        return self.v_sink if group == "v_sink" else self.l_sink

    def __str__(self) -> str:
        """Return one line for each group, with the consequence if no image has it."""
        lines = []
        groups = (("V-sinks", self.v_sink, self.v_criterion), ("L-sinks", self.l_sink, self.l_criterion))
        for name, count, criterion in groups:
            if count is not None:
                by = f" by {criterion}" if criterion else ""
                empty = f": scaling {name} changes nothing here, and gates for them scale all visual tokens alike"
                lines.append(
                    f"{name} in {count} of {self.images} images{by}{empty if self.images and not count else ''}"
                )
        return "\n".join(lines)


def absent(each: Sequence[ImageSinks]) -> str:
    """Return the groups that no image has so far, in words for a line of progress; "" if there are none, or fewer than `FEW` images."""
    names = [name for name in ("v_sinks", "l_sinks") if all(getattr(one, name) == 0 for one in each)]
    if not names or (images := SinkCounts.of(each).images) < FEW:
        return ""
    return f"no {' or '.join(f'{name[0].upper()}-sinks' for name in names)} in {images} images so far"


@dataclass(frozen=True)
class PreparedExample:
    """A sample as the model takes it: prompt tokenised, images encoded, sinks marked, answer in ids.

    ``options``: each option with the token that distinguishes it from the others; empty if the answer is open. That token is at position
    ``deciding`` of the answer, after the beginning that all options share.
    """

    prompt: Prompt
    sinks: SinkMasks
    answer: tuple[int, ...]
    kind: str
    options: Mapping[str, int] = field(default_factory=dict)
    deciding: int = 0
    counts: ImageSinks = field(default_factory=lambda: ImageSinks(0, None))

    @property
    def nbytes(self) -> int:
        """Memory in bytes, most of it of the encoded images."""
        encoded = [value for value in (self.prompt.encoded or {}).values() if isinstance(value, Tensor)]
        return sum(t.nbytes for t in [*encoded, *self.prompt.inputs.values(), self.sinks.v_sink, self.sinks.l_sink])


class ExampleCache:
    """Prepare samples for a model, and cache the examples within a budget of memory.

    A sample that cannot be used (a broken or missing image, an empty answer, a question that the prompt refuses) is skipped: ``skipped``
    holds the reasons, by name. ``counts`` holds the numbers of sinks of the others, by name.

    Args:
        vlm: the model.
        find: finder of sinks.
        budget: bytes of encoded images in the cache.
        pixels: keep the processed images of the prompts, for methods that encode them again (`reads_pixels`).

    Example:
        >>> examples = ExampleCache(vlm)
        >>> result = sg.evaluate(vlm, methods, samples, examples=examples)
        >>> examples.skipped
        {}
    """

    def __init__(self, vlm: VLM, find: Finder = find_sinks, budget: int = BUDGET, *, pixels: bool = False) -> None:
        self.vlm, self.find, self.budget, self.pixels = vlm, find, budget, pixels
        self.skipped: dict[str, str] = {}
        self.counts: dict[str, ImageSinks] = {}
        # by the sample's id(), which stays valid because the cache holds the sample
        self._cache: dict[int, tuple[Sample, PreparedExample]] = {}
        self._size = 0

    def prepare(self, sample: Sample, name: str) -> PreparedExample | None:
        """Return the example of a sample, None if it is skipped; ``name`` is the sample's name in the records."""
        if id(sample) in self._cache:
            example = self._cache[id(sample)][1]
        else:
            try:
                example = self._prepare(sample)
            except (ImageError, PromptError) as error:
                self.skipped[name] = str(error)
                return None
            if self._size + example.nbytes <= self.budget:
                self._cache[id(sample)] = sample, example
                self._size += example.nbytes
        self.counts[name] = example.counts
        return example

    def _prepare(self, sample: Sample) -> PreparedExample:
        vlm = self.vlm
        prompt = vlm.prompt(sample.images, sample.parts, earlier=sample.turns)
        answer = vlm.encode_answer(prompt, sample.answer)
        options, deciding = self._options(prompt, sample) if sample.options else ({}, 0)
        masks = self.find(vlm, prompt)
        sinks = SinkMasks(masks.v_sink, masks.l_sink)
        if vlm.adapter.takes_encoded is not None:
            vlm.warm_inputs(prompt)
            names = prompt.inputs if self.pixels else (*TEXT_INPUTS, *GRIDS)
            inputs = {name: value for name, value in prompt.inputs.items() if name in names}
            prompt = replace(prompt, images=[], sheets=(), inputs=inputs, sinks=None)
        counts = ImageSinks.of(masks, self.find, vlm, picture_of(sample))
        return PreparedExample(prompt, sinks, tuple(answer), sample.kind, options, deciding, counts)

    def _options(self, prompt: Prompt, sample: Sample) -> tuple[dict[str, int], int]:
        """Return the token that distinguishes each option, and its position in the answer."""
        encoded = self.vlm.encode_options(prompt, sample.options)
        if not encoded.decided_at_once or sample.answer not in encoded.ids:
            raise PromptError(
                f"options are {', '.join(sample.options)} and the answer is {sample.answer!r}; expected options that differ in the "
                "first token behind what all begin with, and the answer among them"
            )
        return dict(zip(encoded.ids, encoded.deciding, strict=True)), encoded.shared


def batches(vlm: VLM, examples: Sequence[PreparedExample]) -> Iterator[tuple[slice, Batch]]:
    """Yield examples side by side, with their slice; one by one for models that encode images again in every call."""
    for part in slices(vlm, len(examples)):
        prompts, sinks, answers = zip(*((each.prompt, each.sinks, each.answer) for each in examples[part]), strict=True)
        yield part, vlm.batch(prompts, sinks, answers)


def slices(vlm: VLM, count: int) -> list[slice]:
    """Return the slices of `batches`."""
    size = max(count, 1) if vlm.adapter.takes_encoded is not None else 1
    return [slice(start, start + size) for start in range(0, count, size)]


class Prefix:
    """Forward of a batch on the unmodified model, from which methods continue at their first layers."""

    def __init__(self, vlm: VLM, batch: Batch, checkpoint: bool = False, recorder: Recorder | None = None) -> None:
        assert batch.labels is not None
        self.vlm, self.batch, self.checkpoint = vlm, batch, checkpoint
        self.labels = batch.labels[:, batch.length :]  # (B, A)
        self.resumes = vlm.adapter.takes_encoded is not None and Session(vlm, batch.prompts[0]).resumes
        self._inputs: list[Tensor] = []
        with torch.no_grad(), vlm.attached(None, recorder), each_input(vlm.adapter.all_layers, self._inputs.append):
            self.plain = vlm.answer_logits(batch)

    def run(self, method: Method, recorder: Recorder | None = None) -> Tensor:
        """Return the logits at the answers' positions under a method, (B, A, vocabulary).

        ``recorder`` takes attention rows of the layers from the method's first one on.
        """
        with method.applied(self.vlm, self.batch, recorder):
            return self.within(method)

    def within(self, method: Method) -> Tensor:
        """Return the same within ``method.applied``."""
        layers = self.vlm.adapter.all_layers
        start = method.first_layer(self.vlm) if self.resumes else 0
        if start == len(layers):
            return self.plain
        with ExitStack() as stack:
            stack.enter_context(resumed(layers, start, self._inputs[start] if start else None))
            if self.checkpoint and torch.is_grad_enabled():
                stack.enter_context(checkpointed(layers[start:]))
            return self.vlm.answer_logits(self.batch)

    def right(self, logits: Tensor) -> Tensor:
        """Return whether greedy decoding writes each answer, its end included, (B,) boolean. Any end token counts as the end."""
        ends = torch.tensor(self.vlm.prompter.chat.ends, device=self.labels.device, dtype=self.labels.dtype)
        written = logits.argmax(-1)
        both_end = torch.isin(written, ends) & torch.isin(self.labels, ends)
        return ((written == self.labels) | both_end | (self.labels == IGNORED)).all(1)


def labels_of(examples: Iterable[PreparedExample | None]) -> Tensor:
    """Return the answers' ids, one row an example, padded with ``IGNORED``, (B, A)."""
    rows = [torch.tensor(example.answer if example else [], dtype=torch.long) for example in examples]
    longest = max([1, *map(len, rows)])
    return torch.stack([pad(row, (0, longest - len(row)), value=IGNORED) for row in rows])
