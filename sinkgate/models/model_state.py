"""Marks of a model's weights, adapters and hooks, by which results are recognised as out of date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sinkgate.models.adapters import Adapter

_OWN = ("sinkgate.", "transformers.")  # their hooks change nothing, or last for one call


def encoder_state(adapter: Adapter) -> int:
    """Return a number that changes with all that decides how an image is encoded: weights, adapters, hooks, replaced forwards.

    Writes through ``parameter.data`` are not noticed: torch does not count them.
    """
    llm = {*adapter.decoder.modules(), adapter.model.get_output_embeddings()}
    return hash(tuple(mark for module in adapter.model.modules() if module not in llm for mark in _marks(module)))


def model_state(adapter: Adapter) -> int:
    """Return the same number for the whole model."""
    return hash(tuple(mark for module in adapter.model.modules() for mark in _marks(module)))


def _marks(module: Any) -> Iterator[Any]:
    fleeting = module._non_persistent_buffers_set  # rotary embeddings are computed anew for longer prompts
    for tensor in module._parameters.values():
        yield from _of_tensor(tensor)
    for name, tensor in module._buffers.items():
        if name not in fleeting:
            yield from _of_tensor(tensor)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in hooks.items():
            if not (getattr(hook, "__module__", None) or "").startswith(_OWN):
                yield key
    own = module.__dict__
    if "forward" in own:
        yield id(own["forward"])
    if "_disable_adapters" in own:  # a layer of peft's
        layer: Any = module
        yield layer._disable_adapters, *layer.active_adapters, *layer.merged_adapters, *layer.scaling.items()


def _of_tensor(tensor: Tensor | None) -> Iterator[Any]:
    if tensor is not None and tensor.device.type != "meta":  # offloaded weights come anew with every call
        yield id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
