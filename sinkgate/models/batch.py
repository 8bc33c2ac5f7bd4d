"""Prompts of different images and lengths side by side in one forward, with their sinks and answers.

Shapes: L layers, B prompts, P positions of the longest, T positions with the answers, K Keys, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from sinkgate.attention.scales import LogitScales, Scales
from sinkgate.errors import PromptError
from sinkgate.models.adapters import Adapter
from sinkgate.models.adapters.base import PIXELS, TIME_GRIDS
from sinkgate.models.prompts import Prompt
from sinkgate.sinks.classify import SinkMasks

#: Inputs with one entry a position of the text; all others describe images.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
GRIDS = (*TIME_GRIDS.values(), "second_per_grid_ts")  # what positions of the text are computed from
IGNORED = -100  # torch's cross entropy leaves these labels out


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, their images encoded one by one; behind them their answers, padded on the right.

    Shapes: inputs as the model takes them, B rows; starts (B,): where each prompt begins among the Keys; labels (B, T): the
    answers' ids in their places, ``IGNORED`` elsewhere, None without answers. ``length`` is P.
    """

    prompts: tuple[Prompt, ...]
    sinks: tuple[SinkMasks, ...]
    inputs: dict[str, Any]
    starts: tuple[int, ...]
    length: int
    labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        adapter: Adapter,
        pad_token: int,
        sinks: Sequence[SinkMasks] = (),
        answers: Sequence[Sequence[int]] | None = None,
    ) -> Batch:
        """Return a batch of encoded prompts, for a model that takes encoded images; of a single one for any other.

        Raises:
            PromptError: there is no prompt, not as many sinks or answers as prompts, or prompts whose text has other inputs.
        """
        if not prompts:
            raise PromptError("there is no prompt; a batch needs at least one")
        for values, noun in ((sinks, "sinks"), (answers or (), "answers")):
            if len(values) not in (0, len(prompts)):
                raise PromptError(
                    f"there are {len(prompts)} prompts with {len(values)} {noun}; give one of each a prompt, or none"
                )
        longest = max(prompt.length for prompt in prompts)
        inputs: dict[str, Any] = {}
        if adapter.takes_encoded is not None:
            encoded = {kind: [p.encoded for p in prompts if p.kind == kind] for kind in PIXELS}
            parts = [adapter.as_input(adapter.join(each), kind) for kind, each in encoded.items() if each]
            inputs[adapter.takes_encoded] = parts[0] if len(parts) == 1 else parts[0] | parts[1]
        else:
            assert len(prompts) == 1
            inputs.update(prompts[0].inputs)
        for name in (*TEXT_INPUTS, *GRIDS):
            values = [prompt.inputs[name] for prompt in prompts if name in prompt.inputs]
            if name == "attention_mask" and len(prompts) > 1:  # padding has to be hidden
                values = [prompt.inputs.get(name, torch.ones_like(prompt.inputs["input_ids"])) for prompt in prompts]
            if name in TEXT_INPUTS and len(values) not in (0, len(prompts)):
                raise PromptError(
                    f"{len(values)} of {len(prompts)} prompts have {name}, the others have none; make all of them with vlm.prompt, or "
                    "give the inputs of one processor to vlm.read"
                )
            if values:
                fill = pad_token if name == "input_ids" else 0
                if name in TEXT_INPUTS:
                    values = [_padded(value, longest, fill) for value in values]
                inputs[name] = torch.cat(values)
        starts = tuple(0 if adapter.cross_attention else longest - prompt.length for prompt in prompts)
        labels = None if answers is None else _append(inputs, answers, adapter, pad_token)
        return cls(tuple(prompts), tuple(sinks), inputs, starts, longest, labels)

    @property
    def in_prompt(self) -> Tensor:
        """Return True at a prompt's own positions, which are neither padding nor answer, (B, T)."""
        width = self.inputs["input_ids"].shape[1]
        position = torch.arange(width)
        first = torch.tensor([self.length - prompt.length for prompt in self.prompts])
        return (position >= first[:, None]) & (position < self.length)

    def losses(self, logits: Tensor) -> Tensor:
        """Return the cross entropy of each answer, summed over its tokens, (B,), in nats, from logits (B, T - P, vocabulary)."""
        assert self.labels is not None
        labels = self.labels[:, self.length :].to(logits.device)
        flat = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return flat.view_as(labels).sum(1)

    def spread(self, tokens: Sequence[Tensor]) -> Tensor:
        """Spread values of each prompt's visual tokens over the Keys: B of (..., V) -> (..., B, K)."""
        width = max(prompt.num_keys + start for prompt, start in zip(self.prompts, self.starts, strict=True))
        rows: list[Tensor] = []
        for prompt, start, values in zip(self.prompts, self.starts, tokens, strict=True):
            row = values.new_zeros(*values.shape[:-1], width)
            row[..., start + prompt.visual.cpu()] = values
            rows.append(row)
        return torch.stack(rows, -2)

    def key_scales(self, tables: Sequence[Scales]) -> Scales:
        """Join the scales of single prompts, 1 for padding.

        Tables (L, 1, K) become one (L, B, P); where some are limited to rows or heads, all become `LogitScales`.
        """
        ends = [table.scales.shape[-1] if isinstance(table, LogitScales) else table.shape[-1] for table in tables]
        width = max(end + start for end, start in zip(ends, self.starts, strict=True))
        plain = [table for table in tables if isinstance(table, Tensor)]
        if len(plain) == len(tables):
            padded = zip(plain, self.starts, ends, strict=True)
            return torch.cat([pad(table, (start, width - start - end), value=1.0) for table, start, end in padded], 1)
        parts: list[LogitScales] = []
        for table, prompt, start in zip(tables, self.prompts, self.starts, strict=True):
            limited = table if isinstance(table, LogitScales) else LogitScales.unlimited(table, prompt.length)
            parts.append(limited.padded(start, width, self.length - prompt.length))
        return LogitScales.concatenated(parts)


def _padded(value: Tensor, length: int, fill: int) -> Tensor:
    filler = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([filler, value], 1)


def _append(inputs: dict[str, Any], answers: Sequence[Sequence[int]], adapter: Adapter, pad_token: int) -> Tensor:
    """Append the answers to the prompts and return the labels, (B, T)."""
    ids: Tensor = inputs["input_ids"]
    longest = max(map(len, answers))
    padded = torch.tensor([[*answer, *[pad_token] * (longest - len(answer))] for answer in answers]).to(ids)
    real = torch.tensor([[True] * len(answer) + [False] * (longest - len(answer)) for answer in answers]).to(ids.device)
    labels = torch.cat([torch.full_like(ids, IGNORED), padded.masked_fill(~real, IGNORED)], 1)
    inputs["input_ids"] = torch.cat([ids, padded], 1)
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    inputs["attention_mask"] = torch.cat([mask, real.to(mask)], 1)
    if "token_type_ids" in inputs:
        types = inputs["token_type_ids"]
        inputs["token_type_ids"] = torch.cat([types, adapter.type_of_answers(types).expand(-1, longest)], 1)
    if "mm_token_type_ids" in inputs:  # 0 is text
        inputs["mm_token_type_ids"] = pad(inputs["mm_token_type_ids"], (0, longest))
    if "cross_attention_mask" in inputs:  # an answer attends to the image as the prompt's last token does
        visible = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat(
            [visible, visible[:, -1:].expand(-1, longest, *visible.shape[2:])], 1
        )
    return labels
