"""Llama 4: CLS comes after the patches, and the projector runs outside of ``get_image_features``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sinkgate.models.adapters.base import Adapter, Inputs


class Llama4Adapter(Adapter):
    """The generic adapter but for the place of CLS and the projector."""

    image_rows = "last_hidden_state"

    def leading_rows(self, extra: int) -> int:  # noqa: ARG002 - all of them come last
        return 0

    def encode(self, inputs: Inputs) -> Any:
        return self.base.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)

    def projected(self, encoded: Any) -> Tensor:
        return self.base.multi_modal_projector(encoded.last_hidden_state.flatten(0, -2))
