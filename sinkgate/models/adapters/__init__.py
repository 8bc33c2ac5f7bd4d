"""One generic adapter, and small ones for the families that differ."""

from __future__ import annotations

from typing import Any

from sinkgate.models.adapters.base import Adapter
from sinkgate.models.adapters.llama4 import Llama4Adapter
from sinkgate.models.adapters.llava_next import AnyResAdapter
from sinkgate.models.adapters.mllama import CrossAttentionAdapter
from sinkgate.models.adapters.qwen2_5_vl import WindowAdapter

#: Families that differ from the generic adapter, by ``config.model_type``.
FAMILIES: dict[str, type[Adapter]] = {
    "llama4": Llama4Adapter,
    "llava_next": AnyResAdapter,
    "llava_next_video": AnyResAdapter,
    "llava_onevision": AnyResAdapter,
    "mllama": CrossAttentionAdapter,
    "qwen2_5_vl": WindowAdapter,
}


def adapt(model: Any, name: str) -> Adapter:
    """Return the adapter of a loaded model.

    Raises:
        UnsupportedModelError: the model takes no images, or no layer can be gated.
    """
    return FAMILIES.get(model.config.model_type, Adapter)(model, name)
