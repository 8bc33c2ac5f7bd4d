"""Accuracy and loss of methods on samples, many methods on one pass.

An open answer is right if greedy decoding generates it, end included: checked in one forward after the prompt, without generating (tests
compare the two). A sample with options is right if the token of its answer is the most probable of the options' tokens, at the first
position at which the options differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sinkgate.attention.recorder import Recorder
from sinkgate.data import Sample
from sinkgate.errors import SinkgateError
from sinkgate.methods.base import Method, finder_of, reads_pixels
from sinkgate.methods.sink_to_front import SinkToTheFront, in_old_order
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.output import disk_errors, steps, track
from sinkgate.training.dataset import (
    ExampleCache,
    ImageSinks,
    Prefix,
    PreparedExample,
    SinkCounts,
    absent,
    batches,
    slices,
)


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of each method on each sample, in order: ``right``, ``loss`` and ``chosen`` by the method's name.

    The loss is in nats a token; of an answer with options it is the negative log-probability of the right one among them. ``chosen``: the
    option, None for an open answer. ``counts``: numbers of sinks of each sample. ``attention``: shares of the attention of the prompt's last
    position by group ("v_sink", "l_sink", "ordinary", "text"), in [0, 1], means over heads and layers; "text" is all that is no visual
    token. Empty unless `evaluate` measures it.
    """

    kinds: list[str]
    right: dict[str, list[bool]]
    loss: dict[str, list[float]]
    chosen: dict[str, list[str | None]]
    counts: list[ImageSinks] = field(default_factory=list)
    attention: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @classmethod
    def empty(cls, methods: Iterable[str], attention: bool = False) -> EvaluationResult:
        """Return the result of no sample."""
        right, loss, chosen, shares = ({name: [] for name in methods} for _ in range(4))
        return cls([], right, loss, chosen, attention=shares if attention else {})

    def extend(self, other: EvaluationResult) -> None:
        """Append the outcomes of the same methods on further samples."""
        self.kinds.extend(other.kinds)
        self.counts.extend(other.counts)
        for column in ("right", "loss", "chosen", "attention"):
            for name, values in getattr(self, column).items():
                values += getattr(other, column)[name]

    @property
    def sinks(self) -> SinkCounts:
        """Numbers of images with sinks."""
        return SinkCounts.of(self.counts)

    def accuracy(self, name: str) -> float:
        """Return the share of right answers, in [0, 1]."""
        return fmean(self.right[name])

    def mean_loss(self, name: str) -> float:
        """Return the mean loss over samples, in nats a token."""
        return fmean(self.loss[name])

    def by_kind(self, name: str) -> dict[str, float]:
        """Return the share of right answers for each kind of sample."""
        pairs = list(zip(self.kinds, self.right[name], strict=True))
        return {kind: fmean(right for other, right in pairs if other == kind) for kind in dict.fromkeys(self.kinds)}


Marks = EvaluationResult  # the name of the first releases


def evaluate(
    vlm: VLM,
    methods: Mapping[str, Method],
    samples: Sequence[Sample] | Iterable[tuple[Any, ...]],
    *,
    examples: ExampleCache | None = None,
    batch_size: int = 32,
    progress: bool = True,
    attention: bool = False,
    keep: Path | None = None,
) -> EvaluationResult:
    """Evaluate methods on samples; ``Fixed(Gates.ones(vlm))`` is the unmodified model.

    Args:
        vlm: the model.
        methods: by name.
        samples: `Sample`s or ``(image, question, answer)``; those that cannot be used are skipped, see ``examples.skipped``.
        examples: cache of prepared samples, with its finder of sinks; a new one with the methods' own criterion if None.
        batch_size: samples side by side.
        progress: show a bar.
        attention: measure attention by group, too; L-sinks are those of the finder.
        keep: file of finished batches, from which a call with the same arguments continues.

    Raises:
        SinkgateError: no sample can be used, or methods have different criteria.

    Example:
        >>> plain = {"unmodified": Fixed(sg.Gates.ones(vlm))}
        >>> result = sg.evaluate(vlm, plain, [("cat.png", "What is this?", "a cat")])
        >>> result.accuracy("unmodified")
        1.0
    """
    examples = examples or ExampleCache(vlm, finder_of(methods.values()), pixels=reads_pixels(methods.values()))
    methods = dict(methods)
    result = EvaluationResult.empty(methods, attention)
    finished = {} if keep is None else _finished(keep)
    samples = Sample.list_of(samples)
    starts = range(0, len(samples), batch_size)
    for start in track(starts, "evaluate", unit="batches", note=lambda: absent(result.counts), show=progress):
        part = finished.get(start)
        if part is None:
            part = EvaluationResult.empty(methods, attention)
            numbered = list(enumerate(samples[start : start + batch_size], start))
            prepared = [examples.prepare(sample, f"sample {number}") for number, sample in steps(numbered, "samples")]
            usable = [example for example in prepared if example is not None]
            passes = len(slices(vlm, len(usable))) * len(methods)
            for _ in steps(_evaluated(vlm, methods, usable, part), "forward passes", passes):
                pass
            if keep is not None:
                _append(keep, start, part)
        result.extend(part)
    if not result.kinds:
        first = next(iter(examples.skipped.values()), "there are none")
        raise SinkgateError(f"no sample can be used: {first}")
    return result


@torch.no_grad()
def _evaluated(
    vlm: VLM, methods: Mapping[str, Method], examples: list[PreparedExample], result: EvaluationResult
) -> Iterator[None]:
    """Append the outcomes of some examples to the result, and yield after each forward pass under a method."""
    for part, batch in batches(vlm, examples):
        plain = _last_row(batch) if result.attention else None
        prefix, present = Prefix(vlm, batch, recorder=plain), examples[part]
        result.kinds.extend(example.kind for example in present)
        result.counts.extend(example.counts for example in present)
        for name, method in methods.items():
            recorder = _last_row(batch) if plain else None
            right, loss, chosen = _outcomes(prefix, prefix.run(method, recorder), present)
            result.right[name] += right
            result.loss[name] += loss
            result.chosen[name] += chosen
            if plain and recorder:
                rows = {layer: entries[-1] for layer, entries in (plain.attention | recorder.attention).items()}
                if isinstance(method, SinkToTheFront):
                    rows = {layer: in_old_order(row, batch) for layer, row in rows.items()}
                result.attention[name] += attention_shares(rows, batch)
            yield


def _finished(file: Path) -> dict[int, EvaluationResult]:
    """Return the finished batches in a file, by the number of their first sample; incomplete lines of a killed run are skipped."""
    batches: dict[int, EvaluationResult] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with suppress(ValueError, TypeError, KeyError):
            start, part = json.loads(line)
            batches[start] = EvaluationResult(**{**part, "counts": [ImageSinks(**counts) for counts in part["counts"]]})
    return batches


def _append(file: Path, start: int, part: EvaluationResult) -> None:
    with disk_errors(f"{file} cannot be written"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:  # the first line break ends an incomplete line
            lines.write(f"\n{json.dumps([start, asdict(part)])}\n")


def _last_row(batch: Batch) -> Recorder:
    return Recorder(rows=[batch.length - 1], mean=True)


def attention_shares(rows: Mapping[int, Tensor], batch: Batch) -> list[dict[str, float]]:
    """Return the mean over layers of the attention on each group, one dictionary a prompt; see `EvaluationResult`.

    Args:
        rows: attention of one position of each prompt, by layer, (B, K) each.
        batch: the prompts, with their sinks.
    """
    stacked = torch.stack([rows[layer].float().cpu() for layer in sorted(rows)])  # L, B, K
    shares: list[dict[str, float]] = []
    for number, (prompt, sinks, start) in enumerate(zip(batch.prompts, batch.sinks, batch.starts, strict=True)):
        visual = stacked[:, number, start + prompt.visual.cpu()]  # L, V
        groups = {"v_sink": sinks.v_sink, "l_sink": sinks.l_sink, "ordinary": sinks.ordinary}
        means = {name: float((visual * mask.cpu()).sum(1).mean()) for name, mask in groups.items()}
        text = float((stacked[:, number].sum(1) - visual.sum(1)).mean())
        shares.append({**means, "text": text})
    return shares


def _outcomes(
    prefix: Prefix, logits: Tensor, examples: list[PreparedExample]
) -> tuple[list[bool], list[float], list[str | None]]:
    """Return correctness, loss and chosen option of each example; logits (B, A, vocabulary)."""
    tokens = torch.tensor([len(example.answer) for example in examples])
    right, loss = prefix.right(logits).tolist(), (prefix.batch.losses(logits).cpu() / tokens).tolist()
    chosen: list[str | None] = [None] * len(examples)
    for row, example in enumerate(examples):
        if example.options:
            losses = -logits[row, example.deciding, list(example.options.values())].float().log_softmax(-1)
            chosen[row] = list(example.options)[int(losses.argmin())]
            true = list(example.options.values()).index(example.answer[example.deciding])
            right[row], loss[row] = int(losses.argmin()) == true, losses[true].item()
    return right, loss, chosen
