"""The JSON endpoint: one answer, in a form that stays as it is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from PIL import Image

import sinkgate as sg

from .engine import Engine
from .view_model import JSON

_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}}

#: JSON Schema of an answer. Keys may be added; those that are here stay as they are.
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["model", "text", "next_token", "v_sink", "l_sink", "scales"],
    "properties": {
        "model": {"type": "string", "description": "the model"},
        "text": {"type": "string", "description": "its answer under the gates"},
        "next_token": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [{"type": "string"}, _SHARE], "minItems": 2, "maxItems": 2},
            "description": "the likeliest first tokens of the answer with their probabilities, likeliest first",
        },
        "v_sink": {**_TOKENS, "description": "indices of the visual tokens that are V-sinks, from 0"},
        "l_sink": {"type": "array", "items": _TOKENS, "description": "for each layer, indices of the L-sinks"},
        "scales": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
            "description": "for each layer, the Key scales of V-sinks, of L-sinks and of ordinary visual tokens",
        },
    },
}


def answer(engine: Engine, client: Hashable, image: Image.Image, question: str, gates_json: str) -> JSON:
    """Return the answer to a question about an image, in the form of `ANSWER`.

    Args:
        engine: the model.
        client: identifies the client, for the limits of the queue.
        image: the image.
        question: the question.
        gates_json: scales of the Keys as `sinkgate.Gates.to_json` writes them; empty for the original model.

    Raises:
        SinkgateError: the question, the gates or the image cannot be used, or the queue is full.
    """
    gates = engine.parse_gates(gates_json) if gates_json.strip() else sg.Gates.ones(engine.vlm)
    trace, sinks = engine.answer(client, image, question, gates)
    return {
        "model": engine.vlm.name,
        "text": trace.text,
        "next_token": [[token, share] for token, share in trace.next_token],
        "v_sink": sinks.v_sink.nonzero().flatten().tolist(),
        "l_sink": [layer.nonzero().flatten().tolist() for layer in sinks.l_sink],
        "scales": gates.scales.tolist(),
    }
