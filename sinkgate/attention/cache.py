"""The Key-value cache among a forward's arguments and in its output, which transformers renamed in 5.24."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAMES = ("cache", "past_key_values")  # from transformers 5.24 on, and before
#: The name that the installed transformers uses.
CACHE_NAME = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})


def cache_in(values: Mapping[str, Any]) -> Any:
    """Return the cache in arguments or in a model's output, whichever name it has there; None where there is none."""
    held = dict(values.items())  # transformers 5.24 warns where an output is asked for the old name
    return next((cache for name in CACHE_NAMES if (cache := held.get(name)) is not None), None)
