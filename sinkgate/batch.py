"""Prompts of different images and lengths side by side in one forward, each under gates of its own.

Shapes: L layers, B prompts, P positions of the longest, K Keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkgate.adapters import Adapter
from sinkgate.prompts import Prompt

#: Inputs with one entry a position of the text; all others describe images.
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
GRIDS = ("image_grid_thw",)  # what positions of the text are computed from


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, their images encoded one by one.

    Shapes: inputs as the model takes them, B rows; starts (B,): where each prompt begins among the Keys.
    """

    inputs: dict[str, Any]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], adapter: Adapter, pad_token: int) -> Batch:
        """Prompts that were encoded, for a model that takes encoded images."""
        assert adapter.takes_encoded is not None
        longest = max(prompt.length for prompt in prompts)
        inputs: dict[str, Any] = {adapter.takes_encoded: adapter.as_input(adapter.join([p.encoded for p in prompts]))}
        for name in (*TEXT_INPUTS, *GRIDS):
            if name in prompts[0].inputs:
                fill = pad_token if name == "input_ids" else 0
                values = [prompt.inputs[name] for prompt in prompts]
                if name in TEXT_INPUTS:
                    values = [_padded(value, longest, fill) for value in values]
                inputs[name] = torch.cat(values)
        starts = (0 if adapter.cross_attention else longest - prompt.length for prompt in prompts)
        return cls(inputs, tuple(starts))

    def key_scales(self, tables: Sequence[Tensor]) -> Tensor:
        """Tables of scales (L, 1, K) of the single prompts as one (L, B, P), 1 for padding."""
        width = max(table.shape[2] + start for table, start in zip(tables, self.starts, strict=True))
        return torch.cat(
            [
                pad(table, (start, width - start - table.shape[2]), value=1.0)
                for table, start in zip(tables, self.starts, strict=True)
            ],
            1,
        )


def _padded(value: Tensor, length: int, fill: int) -> Tensor:
    filler = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([filler, value], 1)
