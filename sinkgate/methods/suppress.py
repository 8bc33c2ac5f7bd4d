"""V-sinks scaled down or removed, the two plain baselines (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sinkgate.attention.recorder import Recorder
from sinkgate.errors import UnsupportedModelError
from sinkgate.methods.base import Fixed, check_numbers
from sinkgate.methods.decoder_inputs import Arguments, cached, changed, placed, refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.gates import MAX_SCALE, Gates


@dataclass(frozen=True)
class Suppress:
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
    uses_l_sinks = False

    def __post_init__(self) -> None:
        check_numbers(self, 0, MAX_SCALE, "scale")

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        return self._fixed(vlm).first_layer(vlm)

    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> AbstractContextManager[None]:
        """See `Method`.

        Raises:
            GateError: there is no such layer.
        """
        return self._fixed(vlm).applied(vlm, batch, recorder)

    def _fixed(self, vlm: VLM) -> Fixed:
        return Fixed(Gates.ones(vlm).set("v_sink", self.scale, self.layers))


@dataclass(frozen=True)
class Remove:
    """V-sinks masked out of attention in every layer, as if dropped from the prompt.

    The others keep their places: positions are not closed up, so that rotary embeddings stay those of the whole picture. Layers that are
    no attention (convolutions, linear attention) skip them as they skip padding.

    Attributes:
        criterion: see `Method`.
    """

    criterion: str | None = None
    uses_l_sinks = False

    def first_layer(self, vlm: VLM) -> int:  # noqa: ARG002 - the same on every model
        """See `Method`."""
        return 0

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`.

        Raises:
            UnsupportedModelError: images are read by cross-attention; while running: the model makes its decoder's masks itself.
        """
        refuse_cross_attention(vlm, "removing V-sinks", "they are not in the prompt that could be masked")
        sinks = [masks.v_sink for masks in batch.sinks]

        def change(arguments: Arguments) -> Arguments:
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
            masked = {**arguments, "attention_mask": mask * ~placed(batch, sinks, mask)}
            if arguments.get("position_ids") is None and bool(mask.all()):  # some decoders count places from the mask
                masked["position_ids"] = torch.arange(before, before + count, device=tokens.device)[None].expand(
                    rows, -1
                )
            return masked

        with vlm.attached(None, recorder), changed(vlm, change, steps=True):
            yield
