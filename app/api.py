"""The one thing that programs can ask of the page: an answer, as JSON that keeps its form."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from PIL import Image

import sinkgate as sg

from .state import Desk
from .view_model import JSON

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}

#: What an answer looks like, as JSON Schema. Keys may be added; those that are here stay as they are.
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model", "text", "next_token", "v_sink", "l_sink", "scales"],
    "properties": {
        "model": {"type": "string", "description": "the model that answers"},
        "text": {"type": "string", "description": "its answer under the gates"},
        "next_token": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [{"type": "string"}, _SHARE], "minItems": 2, "maxItems": 2},
            "description": "the likeliest first tokens of the answer with their probabilities, likeliest first",
        },
        "v_sink": {**_TOKENS, "description": "which visual tokens are V-sinks, counted from 0"},
        "l_sink": {"type": "array", "items": _TOKENS, "description": "for each layer, which are L-sinks"},
        "scales": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
            "description": "for each layer, the Key scales at work: of V-sinks, of L-sinks, of ordinary visual tokens",
        },
    },
}


def answer(desk: Desk, visitor: Hashable, image: Image.Image, question: str, gates_json: str) -> JSON:
    """The answer to a question about an image under gates (JSON; empty: the unchanged model), in the form of `ANSWER`.

    Raises:
        SinkgateError: the question, the gates or the image cannot be used, or too many people ask.
    """
    gates = desk.parse_gates(gates_json) if gates_json.strip() else sg.Gates.ones(desk.vlm)
    trace, sinks = desk.answer(visitor, image, question, gates)
    return {
        "model": desk.vlm.name,
        "text": trace.text,
        "next_token": [[token, share] for token, share in trace.next_token],
        "v_sink": sinks.v_sink.nonzero().flatten().tolist(),
        "l_sink": [layer.nonzero().flatten().tolist() for layer in sinks.l_sink],
        "scales": gates.scales.tolist(),
    }
