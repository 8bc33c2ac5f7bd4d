"""V-sinks scaled down or removed, the two plain baselines (paper, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sinkgate.errors import UnsupportedModelError
from sinkgate.methods.base import AsGates, check_numbers
from sinkgate.methods.decoder_inputs import Arguments, ChangesInputs, cached, placed, refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.gates import Gates
from sinkgate.sinks.numbers import MAX_SCALE


@dataclass(frozen=True)
class Suppress(AsGates):
    """One Key scale for the V-sinks. Scale 0 sets their logits to 0, which is not removal (see `Gates`).

    Attributes:
        scale: in [0, 4].
        layers: gated layers, counted as `Gates` counts them; None for all.
        criterion: see `Method`.

    Raises:
        GateError: the scale is out of range.
    """

    scale: float = 0.0
    layers: tuple[int, ...] | None = None
    criterion: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, 0, MAX_SCALE, "scale")

    def gates(self, vlm: VLM) -> Gates:
        """Return the method as fixed gates."""
        return Gates.ones(vlm).set("v_sink", self.scale, self.layers)


@dataclass(frozen=True)
class Remove(ChangesInputs):
    """V-sinks masked out of attention in every layer, as if dropped from the prompt.

    The others keep their positions, so that rotary embeddings stay those of the whole picture. Layers without attention (convolutions,
    linear attention) skip the removed tokens as they skip padding.

    Attributes:
        criterion: see `Method`.
    """

    criterion: str | None = None
    in_decode = True

    def change(self, vlm: VLM, batch: Batch) -> Callable[[Arguments], Arguments]:
        """See `ChangesInputs`.

        Raises:
            UnsupportedModelError: images are read by cross-attention; while running: the model makes its decoder's masks itself.
        """
        refuse_cross_attention(vlm, "removing V-sinks", "they are not in the prompt that could be masked")
        sinks = [masks.v_sink for masks in batch.sinks]

        def masked(arguments: Arguments) -> Arguments:
            tokens: Any = next(
                arguments[name] for name in ("inputs_embeds", "input_ids") if arguments.get(name) is not None
            )
            rows, count, before = len(tokens), tokens.shape[1], cached(arguments)
            mask = arguments.get("attention_mask")
            if mask is None:  # generate leaves out a mask of ones
                mask = torch.ones(rows, before + count, dtype=torch.long, device=tokens.device)
            if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
                raise UnsupportedModelError(
                    f"{vlm.name} passes its decoder complete attention masks, not one of (batch, positions); "
                    "V-sinks cannot be removed there: take Suppress"
                )
            result = {**arguments, "attention_mask": mask * ~placed(batch, sinks, mask)}
            if arguments.get("position_ids") is None and bool(mask.all()):  # some decoders count positions by the mask
                positions = torch.arange(before, before + count, device=tokens.device)
                result["position_ids"] = positions[None].expand(rows, -1)
            return result

        return masked
