"""Sink dimensions that others or we have reported, each with its source: a start for ``SinkDimensions``, no proof."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sinkgate.errors import SinkgateError

Side = Literal["vision", "llm"]
SIDES: dict[Side, str] = {"vision": "vision encoder", "llm": "LLM"}


def known(name: str, side: Side) -> tuple[int, ...]:
    """Return the sink dimensions that others or we have reported for a model, for ``SinkDimensions(known("llama-2-7b", "llm"))``.

    ``known_dimensions.json`` names the source of each. They are a start, no proof: ``discover`` looks at your model.

    Args:
        name: in any spelling of the same words, with or without the organisation ("meta-llama/Llama-2-7b-hf").
        side: "vision" or "llm".

    Raises:
        SinkgateError: nothing is known of that model, or not of that side.
    """
    table = {entry["model"]: tuple(entry["dimensions"]) for entry in _known_table() if entry["side"] == side}
    if not table:
        raise SinkgateError(f"a model has no side {side!r}; expected one of {', '.join(map(repr, SIDES))}")
    for spelling in (name, name.rsplit("/", 1)[-1]):
        word = re.sub(r"[^a-z0-9.]+", "-", spelling.lower()).removesuffix("-hf")
        if word in table:
            return table[word]
    near = get_close_matches(word, table, n=3, cutoff=0.5)
    hint = f"near it: {', '.join(near)}" if near else f"known are: {', '.join(table)}"
    raise SinkgateError(
        f"no sink dimensions are known for the {SIDES[side]} of {name!r}; {hint}. discover(vlm) looks for them"
    )


@cache
def _known_table() -> list[dict[str, Any]]:
    return json.loads(Path(__file__).with_name("known_dimensions.json").read_text(encoding="utf-8"))
