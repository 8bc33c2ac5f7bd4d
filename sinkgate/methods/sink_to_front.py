"""Sink-to-the-front: V-sinks moved to the front of the visual sequence (Luo et al., ICLR 2026).

Shapes: B prompts, n beams a prompt, T positions, V visual tokens, U rows of the images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkgate.methods.decoder_inputs import Arguments, ChangesInputs, beams, embeddings, refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM


@dataclass(frozen=True)
class SinkToTheFront(ChangesInputs):
    """The visual tokens of each image in another order: first its V-sinks, then the others, each part in its old order.

    Under causal attention all later tokens, those of the image too, can then attend to the V-sinks. Luo et al. move tokens "with their
    position embedding". The encoder's position embedding is part of the features and moves with them; for the LLM's rotary position there
    are two readings, and the default is chosen by us. Newline, tile and break tokens stay in place. Recorded attention rows are in the new
    order.

    Attributes:
        keep_positions: True: a token keeps the rotary position of its old place; False: it has that of its new place.
        criterion: see `Method`.
    """

    keep_positions: bool = False
    criterion: str | None = None

    def change(self, vlm: VLM, batch: Batch) -> Callable[[Arguments], Arguments]:
        """See `ChangesInputs`.

        Raises:
            UnsupportedModelError: images are read by cross-attention, or the decoder gets no embeddings.
        """
        refuse_cross_attention(vlm, "sink-to-the-front", "visual tokens have no order there")
        source = sources(batch)

        def reordered(arguments: Arguments) -> Arguments:
            inputs = embeddings(vlm, arguments)
            order = beams(source, inputs).to(inputs.device)  # B n, T
            moved = {**arguments, "inputs_embeds": _reordered(inputs, order)}
            masks, levels = arguments.get("visual_pos_masks"), arguments.get("deepstack_visual_embeds")
            if masks is not None and levels is not None:  # Qwen3-VL adds more of the image in its first layers
                moved["deepstack_visual_embeds"] = [_reordered_rows(level, masks, order) for level in levels]
            if self.keep_positions:
                moved["position_ids"] = _reordered_positions(arguments.get("position_ids"), order)
                if arguments.get("attention_mask") is None:
                    # without a mask, positions that do not rise would be read as several texts in one row
                    moved["attention_mask"] = torch.ones_like(order)
            return moved

        return reordered


def sources(batch: Batch) -> Tensor:
    """Return the position that each position takes its token from, (B, T)."""
    rows = torch.arange(batch.inputs["input_ids"].shape[1]).repeat(len(batch.prompts), 1)
    for row, prompt, sinks, start in zip(rows, batch.prompts, batch.sinks, batch.starts, strict=True):
        visual = prompt.visual.cpu()
        order = (2 * images(prompt) + ~sinks.v_sink).argsort(stable=True)
        row[start + visual] = start + visual[order]
    return rows


def in_old_order(rows: Tensor, batch: Batch) -> Tensor:
    """Return recorded attention rows with the Keys in the order of the prompt, (B, K)."""
    source = sources(batch).to(rows.device)[:, : rows.shape[1]]
    return rows.scatter(1, source, rows[:, : source.shape[1]])


def images(prompt: Prompt) -> Tensor:
    """Return the image that each visual token belongs to, (V,): text stands between images, separators between the rows of one."""
    covered, order = torch.cat([prompt.visual.cpu(), prompt.separators.cpu()]).sort()
    number = torch.zeros_like(order)
    number[order] = torch.cat([covered.new_zeros(1), (covered.diff() > 1).long().cumsum(0)])
    return number[: len(prompt.visual)]


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand_as(values))


def _reordered_rows(rows: Tensor, mask: Tensor, order: Tensor) -> Tensor:
    """Return the rows (U, D) at the positions where the mask (B n, T) is true, in the new order."""
    number = mask.long().flatten().cumsum(0).view_as(mask) - 1
    return rows[number.gather(1, order)[mask]]


def _reordered_positions(position: Tensor | None, order: Tensor) -> Tensor:
    """Return positions (B n, T), or one such table for each axis of the picture, in the new order; None stands for 0, 1, 2, ..."""
    if position is None:
        position = torch.arange(order.shape[1], device=order.device)[None]
    tables = position.expand(*position.shape[:-2], *order.shape)
    return tables.gather(-1, order.expand_as(tables))
