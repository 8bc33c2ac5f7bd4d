"""Marks of a model's weights, adapters and hooks, by which results are recognised as out of date."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from sinkgate.models.adapters import Adapter

_OWN = ("sinkgate.", "transformers.")  # their hooks change nothing, or last for one call


def encoder_state(adapter: Adapter) -> int:
    """Return a number that changes with all that decides how an image is encoded: weights, adapters, hooks, replaced forwards.

    Writes through ``parameter.data`` are not noticed: torch does not count them.
    """
    return _state(adapter.model, {adapter.decoder, adapter.model.get_output_embeddings()})


def model_state(adapter: Adapter) -> int:
    """Return the same number for the whole model."""
    return _state(adapter.model)


def _state(model: nn.Module, without: Collection[nn.Module | None] = ()) -> int:
    """Return a hash of the marks of a module and all within it, but for some; it is taken with every prediction, so its loop is plain."""
    marks: list[Any] = []
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None or module in without:
            continue
        own: Any = module.__dict__
        left.extend(own["_modules"].values())
        fleeting = own["_non_persistent_buffers_set"]  # rotary embeddings are computed anew for longer prompts
        tensors = own["_parameters"].values()
        if own["_buffers"]:
            tensors = [*tensors, *(tensor for name, tensor in own["_buffers"].items() if name not in fleeting)]
        for tensor in tensors:
            if tensor is not None and not tensor.is_meta:  # offloaded weights come anew with every call
                marks += id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
        for hooks in (own["_forward_pre_hooks"], own["_forward_hooks"]):
            for key, hook in hooks.items():
                if not (getattr(hook, "__module__", None) or "").startswith(_OWN):
                    marks.append(key)
        if "forward" in own:
            marks.append(id(own["forward"]))
        if "_disable_adapters" in own:  # a layer of peft's
            layer: Any = module
            marks += layer._disable_adapters, *layer.active_adapters, *layer.merged_adapters, *layer.scaling.items()
    return hash(tuple(marks))
