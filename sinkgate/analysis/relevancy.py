"""Relevancy of visual tokens for an answer: the change of its log-probability when a token's Keys are scaled.

Attention shows where a model looks, not what the answer depends on. Leave-out measures the dependence on a token's Keys: at scale 0 its
logits are 0, so that it is still attended to, evenly, and its Values stay. The gradient is the first-order estimate of the same at the
cost of one backward pass; it can be far off where the model saturates. Neither is causal proof about pixels.

Shapes: L LLM layers, V visual tokens, G groups of them, K Keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.images.layout import Sheet
from sinkgate.models.prompts import Prompt, refuse_several
from sinkgate.models.vlm import VLM
from sinkgate.output import track
from sinkgate.sinks.numbers import index, position, whole_numbers

Estimate = Literal["leave-out", "gradient"]


@dataclass(frozen=True)
class Relevancy:
    """Relevancy of groups of visual tokens, by default of each token, for one answer.

    ``values`` (G,), in nats: how much the answer's log-probability falls when a group's Keys are scaled from 1 to ``scale``; negative where
    it rises. ``log_probability``: that of the answer on the unmodified model, in nats. ``groups`` (G, V) boolean.
    """

    values: Tensor
    log_probability: float
    answer: str
    estimate: Estimate
    scale: float
    groups: Tensor
    sheets: tuple[Sheet, ...]

    def __repr__(self) -> str:
        largest = f"{float(self.values.max()):.3g} nats at most" if len(self.values) else "no group"
        return f"Relevancy({self.estimate}, {len(self.values)} groups of visual tokens: {largest}; answer {self.answer!r:.60})"

    def map(self, sheet: int = 0) -> Tensor:
        """Return the values in their places on a sheet, (rows, columns); a token of several groups has their mean.

        Raises:
            SinkgateError: the prompt has no such sheet.
        """
        weights = self.groups.float() / self.groups.sum(0).clamp_min(1)
        return self.sheets[position(sheet, len(self.sheets), "a sheet")].spread(self.values @ weights)


def relevancy(
    vlm: VLM,
    prompt: Prompt,
    answer: str | None = None,
    *,
    estimate: Estimate = "leave-out",
    scale: float = 0.0,
    layers: Sequence[int] | None = None,
    groups: Tensor | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Relevancy:
    """Measure how much an answer depends on each visual token's Keys.

    Args:
        vlm: the model; "leave-out" runs it once for each group, ``batch_size`` groups side by side.
        prompt: image and question.
        answer: the text to score; the model's own greedy answer where None.
        estimate: "leave-out", or "gradient", one forward and one backward pass for all groups.
        scale: of a left-out group's Keys, any finite number.
        layers: numbers of LLM layers in which Keys are scaled; all where None.
        groups: (G, V) boolean, tokens to scale together; each token by itself where None.
        batch_size: at least 1; models that encode images in every call run one at a time.
        progress: show a bar.

    Raises:
        SinkgateError: an estimate, layer, scale or group that cannot be used.
        PromptError: the answer cannot be encoded.

    Example:
        >>> effect = sg.relevancy(vlm, vlm.prompt("cat.png", "What is this?"))
        >>> effect.map().argmax()
        tensor(118)
    """
    refuse_several(prompt, "relevancy")
    count = len(prompt.visual)
    groups = torch.eye(count, dtype=torch.bool) if groups is None else _table(groups)
    layers = range(vlm.num_layers) if layers is None else layers
    numbers = sorted(set(whole_numbers(layers, vlm.num_layers, "layer")))
    _check(estimate, groups, count, scale, batch_size)
    scale, batch_size = float(scale), int(batch_size)
    ids = vlm.encode_answer(prompt, answer) if answer is not None else vlm.answer(prompt, max_rows=0).ids
    visual = prompt.visual.cpu()
    ones = torch.ones(vlm.num_layers, 1, prompt.num_keys, requires_grad=estimate == "gradient")
    whole = _scores(vlm, prompt, ids, [ones])
    if estimate == "gradient":
        (gradient,) = torch.autograd.grad(whole.sum(), ones)
        values = (1 - scale) * (groups.float() @ gradient[numbers, 0][:, visual].sum(0))
    else:
        parts: list[Tensor] = []
        size = batch_size if vlm.adapter.takes_encoded is not None else 1
        for part in track(groups.split(size), "leave out", unit="batches", show=progress):
            scaled = [ones.clone() for _ in part]
            for table, group in zip(scaled, part, strict=True):
                for layer in numbers:
                    table[layer, 0, visual[group]] = scale
            parts.append(whole - _scores(vlm, prompt, ids, scaled))
        values = torch.cat(parts)
    text = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip() if vlm.processor else ""
    return Relevancy(values, float(whole[0].detach()), text, estimate, scale, groups, prompt.sheets)


def _table(groups: Any) -> Tensor:
    """Return groups of any kind as a tensor."""
    try:
        return torch.as_tensor(groups)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SinkgateError(f"groups is no table of true and false: {error}") from error


def _check(estimate: str, groups: Tensor, count: int, scale: Any, batch_size: Any) -> None:
    if estimate not in get_args(Estimate):
        raise SinkgateError(f"estimate is {estimate!r}; expected one of {', '.join(get_args(Estimate))}")
    if groups.dtype != torch.bool or groups.dim() != 2 or groups.shape[1] != count or not len(groups):
        raise SinkgateError(
            f"groups is {groups.dtype} of shape {tuple(groups.shape)}; expected torch.bool of shape (groups, {count})"
        )
    usable = False
    with suppress(TypeError, ValueError, SinkgateError):
        usable = not isinstance(scale, str) and isfinite(scale) and index(batch_size, "the batch size") >= 1
    if not usable:
        raise SinkgateError(
            f"scale is {scale!r} and batch_size {batch_size!r}; expected a finite number and a batch of at least 1"
        )


def _scores(vlm: VLM, prompt: Prompt, ids: Sequence[int], tables: Sequence[Tensor]) -> Tensor:
    """Return the log-probability of the answer under each table of scales (L, 1, K), on the CPU, with a graph if a table needs one."""
    differentiated = any(table.requires_grad for table in tables)
    with vlm.lock, torch.set_grad_enabled(differentiated):
        batch = vlm.batch([prompt] * len(tables), answers=[ids] * len(tables))
        scales = cast(Tensor, batch.key_scales(tables)).to(vlm.device)  # plain tables stay plain
        live = range(len(scales)) if differentiated else ()  # scales of 1 have a gradient too
        with vlm.attached(None if differentiated else scales, None, live=live) as block:
            for layer in live:
                block.set_scales(layer, scales[layer])
            return -batch.losses(vlm.answer_logits(batch)).cpu()
