"""What the page is sent: plain JSON values made from a case, ready to draw."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import torch
from live import Case, Told
from PIL import Image

import sinkgate as sg

JSON = dict[str, Any]
TOP_WORDS = 6
GROUPS = ("v_sink", "l_sink", "ordinary", "text")


@dataclass(frozen=True)
class Lens:
    """Which attention map is looked at."""

    layer: int = 0
    head: int | None = None  # None: mean over heads
    row: int = 0  # the query that wrote this generated token; 0 is the last token of the prompt
    hide: bool = False

    @classmethod
    def read(cls, value: Any, vlm: sg.VLM) -> Lens:
        """The page's choice, bent to what the model has: a lens is never a reason to fail."""
        value = value if isinstance(value, Mapping) else {}
        layer, head, row = (_whole(value.get(key)) for key in ("layer", "head", "row"))
        return cls(
            layer=min(max(layer or 0, 0), vlm.num_layers - 1),
            head=head if head is not None and 0 <= head < vlm.num_heads else None,
            row=max(row or 0, 0),
            hide=value.get("hide") is True,
        )


def frame(case: Case, lens: Lens, peak: int) -> JSON:
    """Everything that follows the faders and the scene: maps, markers, probabilities, shares."""
    hidden = (case.sinks.v_sink | case.sinks.l_sink[lens.layer]) if lens.hide else None
    before, after = (_map(trace, lens, hidden) for trace in (case.unchanged, case.gated))
    rows = {"unchanged": case.unchanged, "gated": case.gated}
    return {
        "tick": time.monotonic_ns() // 1000,  # rises: the page drops frames that arrive late
        "began": case.began,
        "sequence": case.sequence,
        "peak": peak,
        "lens": {"layer": lens.layer, "head": lens.head, "row": lens.row, "hide": lens.hide},
        "grid": list(case.prompt.grid),
        "before": before,
        "after": after,
        "top": max([*(before or []), *(after or []), 1e-9]),
        "marks": _marks(case, lens.layer),
        "films": _films(case.gated),
        "queries": _queries(case),
        "words": _words(case),
        "shares": {
            name: _shares(trace, case.sinks, min(lens.row, trace.attention.shape[2] - 1))
            for name, trace in rows.items()
        },
        "gates": {"v_sink": _column(case.gates, 0), "rest": _column(case.gates, 2)},
        "identity": case.gates.is_identity,
        "summary": case.sinks.summary(),
    }


def answers(told: Told) -> JSON:
    """Both answers, word by word, with those that differ marked once the texts are whole."""
    first, second = told.unchanged.split(), told.gated.split()
    changed: tuple[set[int], set[int]] = (set(), set())
    if told.done:
        for kind, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
            if kind != "equal":
                changed[0].update(range(a, b))
                changed[1].update(range(c, d))
    return {
        "sequence": told.sequence,
        "done": told.done,
        "unchanged": [[word, index in changed[0]] for index, word in enumerate(first)],
        "gated": [[word, index in changed[1]] for index, word in enumerate(second)],
    }


def view_url(case: Case, side: int = 448) -> str:
    """The part of the image under the patch grid, as a data URL small enough to send."""
    image = case.prompt.view.convert("RGB")
    image.thumbnail((side, side))
    return image_url(image)


def image_url(image: Image.Image) -> str:
    """A picture as a JPEG data URL."""
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def mixer_value(gates: sg.Gates) -> JSON:
    """Gates as the mixer's value; raises `sinkgate.GateError` where it has no fader for them."""
    if _column(gates, 1) != _column(gates, 2):
        raise sg.GateError(
            "These gates treat L-sinks and ordinary tokens apart; the mixer has one fader for both and cannot show them."
        )
    return {"v_sink": _column(gates, 0), "rest": _column(gates, 2)}


def _map(trace: sg.Trace, lens: Lens, hidden: torch.Tensor | None) -> list[float] | None:
    """Attention on the patches, row-major; None where this run has no such query yet."""
    if lens.row >= trace.attention.shape[2]:
        return None
    return _floats(trace.visual(lens.layer, lens.head, lens.row, hidden).flatten())


def _marks(case: Case, layer: int) -> list[JSON]:
    if layer not in case.reasons:
        tokens = (case.sinks.v_sink | case.sinks.l_sink[layer]).nonzero().flatten().tolist()
        case.reasons[layer] = {token: case.sinks.explain(token, layer) for token in tokens}
    return [
        {"token": token, "kind": "v_sink" if case.sinks.v_sink[token] else "l_sink", "why": why}
        for token, why in case.reasons[layer].items()
    ]


def _films(trace: sg.Trace) -> list[str]:
    """One small picture a layer: the mean map of the first generated token, each on its own scale."""
    films = []
    for layer in range(trace.attention.shape[0]):
        shades = trace.visual(layer).flatten()
        shades = shades / shades.max().clamp_min(1e-9) * 255
        films.append(base64.b64encode(bytes(shades.round().to(torch.uint8).tolist())).decode())
    return films


def _queries(case: Case) -> list[str]:
    """A name for each query that can be looked at."""
    trace = case.gated if case.gated_done or not case.unchanged_done else case.unchanged
    tokens = [token.strip() or "␣" for token in trace.tokens]
    if not tokens:
        return ["last prompt token"]
    return [f"last prompt token, writes “{tokens[0]}”"] + [
        f"“{said}”, writes “{next_}”" for said, next_ in pairwise(tokens)
    ]


def _words(case: Case) -> list[list[Any]]:
    """The likeliest first tokens of either run: text, probability unchanged, probability gated."""
    before, after = dict(case.unchanged.next_token), dict(case.gated.next_token)
    likely = sorted({*before, *after}, key=lambda word: -max(before.get(word, 0), after.get(word, 0)))
    return [[word, round(before.get(word, 0), 5), round(after.get(word, 0), 5)] for word in likely[:TOP_WORDS]]


def _shares(trace: sg.Trace, sinks: sg.SinkMap, row: int) -> dict[str, list[float]]:
    shares = trace.shares(sinks, row)
    return {group: _floats(shares[group]) for group in GROUPS}


def _column(gates: sg.Gates, group: int) -> list[float]:
    return [round(float(row[group]), 4) for row in gates.scales.tolist()]


def _floats(values: torch.Tensor) -> list[float]:
    return [round(value, 7) for value in values.tolist()]


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 else None
