"""LLaVA-NeXT and LLaVA-OneVision: an overview and tiles, cut back to the picture, a newline after each row."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.models.llava_next import modeling_llava_next

from sinkgate.models.adapters.base import RULES, Adapter, Inputs

NEWLINE = -1.0
reference = cast(Any, modeling_llava_next)  # its annotations are partial


class AnyResAdapter(Adapter):
    """Adapter that has the model pack the numbers of the patches as it packs their features; the result is the map.

    Frames of a video are not tiled; 2 x 2 of their patches become a token, and LLaVA-OneVision ends the video with a newline.
    """

    def crops(self, inputs: Inputs) -> Tensor:
        pixels = self.pixel_input(inputs)
        if pixels.dim() == 4 or self.kind(inputs) == "video":
            return super().crops(inputs)
        return torch.cat([crops[:count] for crops, (_, count) in zip(pixels, self._images(inputs), strict=True)])

    def token_of_patch(self, inputs: Inputs, rule: str) -> Tensor | None:
        if rule != "blocks":
            return None
        return self._frame_map(inputs) if self.kind(inputs) == "video" else self._map(inputs)

    def nearest_token_of_patch(self, inputs: Inputs) -> Tensor | None:
        if self.kind(inputs) == "video":
            odd = any(side % 2 for grid in self.grids(inputs) for side in grid)
            resized = odd and self.model.config.model_type == "llava_onevision"
            return self._frame_map(inputs) if resized else None
        rows, columns = self.grids(inputs)[0]
        packed = [self._packed(size, crops, rows * columns) for size, crops in self._images(inputs)]
        return None if all(_is_whole(numbers) for numbers in packed) else self._map(inputs)

    def _frame_map(self, inputs: Inputs) -> Tensor | None:
        grids = self.grids(inputs)
        rows, columns = grids[0]
        if self.model.config.model_type != "llava_onevision":
            # pooled by its own configuration: exact for 2 x 2, else measured
            return RULES["blocks"](grids, len(self.rows_in_prompt(inputs)))
        high, wide = -(-rows // 2), -(-columns // 2)
        row = (2 * torch.arange(rows) + 1) * high // (2 * rows)  # the token whose cell holds the patch's centre
        column = (2 * torch.arange(columns) + 1) * wide // (2 * columns)
        frame = (row[:, None] * wide + column).flatten()
        return torch.cat([number * high * wide + frame for number in range(len(grids))])

    def _map(self, inputs: Inputs) -> Tensor:
        rows, columns = self.grids(inputs)[0]
        maps: list[Tensor] = []
        first = 0
        for size, crops in self._images(inputs):
            packed = self._packed(size, crops, rows * columns)
            token = torch.full((crops * rows * columns,), -1)
            if _is_whole(packed):
                fed = packed != NEWLINE
                token[packed[fed].long()] = first + fed.nonzero()[:, 0]
            else:  # the tiles were resized: a patch goes to the token at its place
                overview = rows * columns
                token[:overview] = first + torch.arange(overview)
                before = _by_rows(self._packed(size, crops, overview, whole=True)[overview:])
                after = _by_rows(packed[overview:])
                number = first + overview + torch.arange(after.numel()).view(after.shape)
                row = torch.arange(before.shape[0]) * after.shape[0] // before.shape[0]
                column = torch.arange(before.shape[1] - 1) * (after.shape[1] - 1) // (before.shape[1] - 1)
                token[before[:, :-1].long()] = number[row[:, None], column]
            maps.append(token)
            first += len(packed)
        return torch.cat(maps)

    def _packed(self, size: Tensor, crops: int, patches: int, whole: bool = False) -> Tensor:
        """Return the number of the patch in each of one image's rows, `NEWLINE` for newlines; fractions if resized."""
        numbers = torch.arange(crops * patches, dtype=torch.double).view(crops, patches, 1)
        options: dict[str, Any] = {"image_newline": torch.tensor([NEWLINE], dtype=torch.double)}
        if self.model.config.model_type == "llava_onevision":
            aspect = self.model.config.vision_aspect_ratio
            options["vision_aspect_ratio"] = "anyres_max_1000000" if whole else aspect
        else:
            options["vision_feature_select_strategy"] = self.model.config.vision_feature_select_strategy
        return self.base.pack_image_features([numbers], size[None], **options)[0][0][:, 0]

    def _images(self, inputs: Inputs) -> list[tuple[Tensor, int]]:
        """Return height and width of each image, and the number of its crops."""
        pixels, config = inputs["pixel_values"], self.model.config
        sizes = inputs["image_sizes"].cpu()
        if pixels.dim() == 4:
            return [(size, 1) for size in sizes]
        side, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
        tiled = [int(n) == 1 for n in inputs.get("batch_num_images", []) for _ in range(int(n))] or [True] * len(pixels)
        return [
            (size, reference.image_size_to_num_patches(size.tolist(), pinpoints, side) if tiles else 1)
            for size, tiles in zip(sizes, tiled, strict=True)
        ]


def _is_whole(packed: Tensor) -> bool:
    return bool((packed == packed.round()).all())


def _by_rows(packed: Tensor) -> Tensor:
    """Return rows of tokens, each with its newline at the end."""
    return packed.view(-1, int((packed == NEWLINE).nonzero()[0, 0]) + 1)
