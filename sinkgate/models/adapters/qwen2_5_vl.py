"""Qwen2.5-VL: inside the encoder, merged patches are in the order of attention windows."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import vision_utils

from sinkgate.models.adapters.base import TIME_GRIDS, Adapter, Inputs


class WindowAdapter(Adapter):
    """Adapter that returns the encoder's rows to the order of the pixels."""

    def in_patch_order(self, rows: Tensor, inputs: Inputs) -> Tensor:
        patches: Any = super().in_patch_order(rows, inputs)
        tower = self.encoder
        unit = tower.spatial_merge_size**2
        index, _ = cast(Any, vision_utils).get_vision_window_index(
            inputs[TIME_GRIDS[self.kind(inputs)]],
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return patches.unflatten(0, (-1, unit))[torch.argsort(index).to(rows.device)].flatten(0, 1)
