"""Mllama (Llama 3.2 Vision): visual tokens are no part of the prompt; a few layers read them by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.models.adapters.base import Adapter, Grid, Inputs


class CrossAttentionAdapter(Adapter):
    """Adapter whose layers are those of cross-attention, the only ones that read the image; their Keys are the visual tokens."""

    image_method = "forward"  # it has no method that makes the image's rows
    cross_attention = True

    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model, name)
        self.takes_encoded = "cross_attention_states"

    def attending_layers(self, module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        pairs = super().attending_layers(module)
        return pairs if module is self.encoder else [pair for pair in pairs if hasattr(pair[0], "cross_attn")]

    def rows_in_prompt(self, inputs: Inputs) -> Tensor:
        return torch.arange(self.num_keys(inputs))

    def num_keys(self, inputs: Inputs) -> int:
        return inputs["pixel_values"].flatten(0, 2).shape[0] * self._rows

    def encode(self, inputs: Inputs) -> Any:
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        states = self.base.vision_model(**{name: inputs[name] for name in names}).last_hidden_state
        return self.base.multi_modal_projector(states).flatten(1, 3)  # batch, rows, D

    def rows_after_image(self, inputs: Inputs, visual: Tensor) -> range:  # noqa: ARG002 - Keys are no positions here
        ids = inputs["input_ids"][0]
        return range(min(int((ids == self.image_token_id).nonzero()[-1]) + 1, len(ids) - 1), len(ids))

    def states_of_keys(self, hidden: Tensor, encoded: Any) -> Tensor:  # noqa: ARG002 - the same in every layer
        return self.projected(encoded)

    def join(self, encoded: Sequence[Any]) -> Any:
        return torch.cat(list(encoded))

    def as_input(self, encoded: Any, kind: str = "image") -> Any:  # noqa: ARG002 - it takes no videos
        return encoded

    def projected(self, encoded: Any) -> Tensor:
        return encoded.flatten(0, -2)

    def grids(self, inputs: Inputs) -> list[Grid]:
        pixels = inputs["pixel_values"]
        return [(pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)] * len(self.crops(inputs))

    def crops(self, inputs: Inputs) -> Tensor:
        return inputs["pixel_values"].flatten(0, 2)[self._used(inputs)]

    def in_patch_order(self, rows: Tensor, inputs: Inputs) -> Tensor:
        tiles = len(self._used(inputs))
        # CLS first, filled up to a multiple of 8
        by_tile = rows.reshape(tiles, -1, *rows.shape[2:])[self._used(inputs)]
        return by_tile[:, 1 : self._rows].flatten(0, 1)

    def token_of_patch(self, inputs: Inputs, rule: str) -> Tensor | None:
        if rule != "blocks":
            return None
        rows = torch.arange(self.num_keys(inputs)).view(-1, self._rows)
        return rows[self._used(inputs).cpu(), 1:].flatten()

    @property
    def _rows(self) -> int:
        return self.base.vision_model.num_patches  # of a tile, CLS among them

    def _used(self, inputs: Inputs) -> Tensor:
        return inputs["aspect_ratio_mask"].flatten().bool()
