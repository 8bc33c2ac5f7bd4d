"""What the page is sent: plain JSON values made from a case, ready to draw."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise, zip_longest
from typing import Any

import torch
from PIL import Image

import sinkgate as sg
from sinkgate.images.layout import Sheet

from .gate_library import in_layers
from .state import MAX_NEW_TOKENS, Case, Told

JSON = dict[str, Any]
TOP_WORDS = 6
HOLE = 255  # in films, where a sheet has no token; shades end below it
UNPLACED = "where the visual tokens lie in the picture is not known"


@dataclass(frozen=True)
class Lens:
    """Which attention map is looked at."""

    layer: int = 0
    head: int | None = None  # None: mean over heads
    row: int = 0  # the query that wrote this generated token; 0 is the last token of the prompt
    hide: bool = False
    sheet: int = 0  # of the prompt's

    @classmethod
    def read(cls, value: Any, vlm: sg.VLM, sheets: int = 1) -> Lens:
        """The page's choice, bent to what model and prompt have: a lens is never a reason to fail."""
        value = value if isinstance(value, Mapping) else {}
        layer, head, row, sheet = (_whole(value.get(key)) for key in ("layer", "head", "row", "sheet"))
        return cls(
            layer=min(max(layer or 0, 0), vlm.num_layers - 1),
            head=head if head is not None and 0 <= head < vlm.num_heads else None,
            row=max(row or 0, 0),
            hide=value.get("hide") is True,
            sheet=min(max(sheet or 0, 0), sheets - 1),
        )


def frame(case: Case, lens: Lens) -> JSON:
    """Everything that follows the faders and the scene: maps, markers, probabilities, shares."""
    rows = {"unchanged": case.unchanged, "gated": case.gated}
    finished = case.unchanged_done and case.gated_done
    if finished and all(lens.row >= trace.attention.shape[2] for trace in rows.values()):
        lens = replace(lens, row=0)  # of another answer, which was longer
    hidden = (case.sinks.v_sink | case.sinks.l_sink[lens.layer]) if lens.hide else None
    before, after = (_map(trace, lens, hidden) for trace in rows.values())
    sheet = case.prompt.sheets[lens.sheet]
    marks, elsewhere = _marks(case, lens)
    return {
        "tick": time.monotonic_ns() // 1000,  # rises: the page drops frames that arrive late
        "began": case.began,
        "sequence": case.sequence,
        "finished": finished,
        "model": case.warm.vlm.name,
        "lens": asdict(lens),
        "sheets": sheet_names(case.prompt.sheets),
        "grid": list(sheet.grid),
        "placed": sheet.box is not None,
        "note": sentence(case.prompt.note or ("" if sheet.box else UNPLACED)),
        "before": before,
        "after": after,
        "exact": None if hidden is None else [_map(trace, lens, None) for trace in rows.values()],
        "top": max([1e-9, *(share for share in [*(before or []), *(after or [])] if share is not None)]),
        "marks": marks,
        "elsewhere": elsewhere,
        "films": _films(case.gated, lens.sheet),
        "queries": _queries(case),
        "words": _words(case),
        "shares": {name: _shares(trace, case.sinks, lens.row) for name, trace in rows.items()},
        "gates": {"v_sink": _column(case.gates, 0), "rest": _column(case.gates, 2)},
        "identity": case.gates.is_identity,
        "learned": _learned(case),
        "summary": case.sinks.summary(),
        "cost": _cost(case),
    }


def _learned(case: Case) -> JSON | None:
    """What learned gates said: rho of every layer, 1 where no gate read; None where none are at work."""
    if case.learned is None or case.rho is None:
        return None
    return {
        "name": case.learned.name,
        "layers": list(case.learned.layers),
        "off": sorted(case.learned.off),
        "rho": {"v_sink": _column(case.rho, 0), "rest": _column(case.rho, 2)},
    }


def _cost(case: Case) -> str:
    """Return the layers and the time that the last move of a fader took, in words."""
    if not case.seconds:
        return ""
    layers = len(case.warm.vlm.adapter.all_layers)
    first = layers - case.layers_run if case.warm.resumes else 0
    return f"recomputed {in_layers(range(first, layers))} · {1000 * case.seconds:.0f} ms"


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
        "cut": [MAX_NEW_TOKENS if cut else 0 for cut in told.limited],
        "unchanged": [[word, index in changed[0]] for index, word in enumerate(first)],
        "gated": [[word, index in changed[1]] for index, word in enumerate(second)],
    }


def view_urls(prompt: sg.Prompt, side: int = 448) -> list[str | None]:
    """The part of the picture under each sheet, as data URLs small enough to send; None where tokens have no place."""
    views = [sheet.view(prompt.images) for sheet in prompt.sheets]
    for view in views:
        if view is not None:
            view.thumbnail((side, side))
    return [view and image_url(view) for view in views]


def image_url(image: Image.Image) -> str:
    """A picture as a JPEG data URL."""
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def sentence(text: str) -> str:
    """A message that begins in lower case and ends without a stop, as a sentence; nothing stays nothing."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def mixer_value(gates: sg.Gates) -> JSON:
    """Gates as the mixer's value; raises `sinkgate.GateError` where it has no fader for them."""
    if _column(gates, 1) != _column(gates, 2):
        raise sg.GateError(
            "These gates treat L-sinks and ordinary tokens apart; the mixer has one fader for both and cannot show them."
        )
    return {"v_sink": _column(gates, 0), "rest": _column(gates, 2)}


def _map(trace: sg.Trace, lens: Lens, hidden: torch.Tensor | None) -> list[float | None] | None:
    """Attention on the sheet, row-major, None in its holes; None altogether where this run has no such query yet."""
    if lens.row >= trace.attention.shape[2]:
        return None
    shares = trace.visual(lens.layer, lens.head, lens.row, hidden, lens.sheet)
    tokens = trace.sheets[lens.sheet].tokens
    places = zip(_floats(shares.flatten()), tokens.flatten().tolist(), strict=True)
    return [share if token >= 0 else None for share, token in places]


def _marks(case: Case, lens: Lens) -> tuple[list[JSON], str]:
    """The sinks on the sheet, each with its cell and why it is one; and how many there are elsewhere, in words."""
    layer, sheets = lens.layer, case.prompt.sheets
    if layer not in case.reasons:
        tokens = (case.sinks.v_sink | case.sinks.l_sink[layer]).nonzero().flatten().tolist()
        case.reasons[layer] = {token: case.sinks.explain(token, layer) for token in tokens}
    marks, away, outside = [], 0, 0
    for token, why in case.reasons[layer].items():
        kind = "v_sink" if case.sinks.v_sink[token] else "l_sink"
        if cell := sheets[lens.sheet].find(token):
            marks.append({"token": token, "cell": cell, "kind": kind, "why": why})
        elif any(sheet.find(token) for sheet in sheets):
            away += 1
        else:
            outside += 1
    others = "on the other sheet" if len(sheets) == 2 else "on the other sheets"
    counted = [(away, others), (outside, "outside of the picture")]
    return marks, ", ".join(f"{n} more {'sink' if n == 1 else 'sinks'} {where}" for n, where in counted if n)


def _films(trace: sg.Trace, sheet: int) -> list[str]:
    """One small picture a layer: the mean map of the first generated token, each on its own scale."""
    films, holes = [], trace.sheets[sheet].tokens.flatten() < 0
    for layer in range(trace.attention.shape[0]):
        shares = trace.visual(layer, sheet=sheet).flatten()
        shades = (shares / shares.max().clamp_min(1e-9) * (HOLE - 1)).round().masked_fill(holes, HOLE)
        films.append(base64.b64encode(shades.to(torch.uint8).numpy().tobytes()).decode())
    return films


def sheet_names(sheets: tuple[Sheet, ...]) -> list[str]:
    """What the sheets are called: of those of one picture the coarsest is its overview, the others are its tiles."""
    images = {sheet.image for sheet in sheets}
    names = []
    for sheet in sheets:
        siblings = [other for other in sheets if other.image == sheet.image]
        name = "picture"
        if len(siblings) > 1:
            coarsest = min(siblings, key=lambda other: other.tokens.numel())
            name = f"{'overview' if sheet is coarsest else 'tiles'} {sheet.grid[0]} x {sheet.grid[1]}"
        if sheet.box is None:
            name = "list of tokens"
        names.append(f"image {sheet.image + 1}: {name}" if len(images) > 1 else name)
    return names


def _queries(case: Case) -> list[str]:
    """Return a name for each query: its token and the one that it generates, of both answers where these differ."""
    answers = [trace.tokens for trace in (case.unchanged, case.gated)]
    tokens = [_either(*pair) for pair in zip_longest(*answers)]
    if not tokens:
        return ["last prompt token"]
    return [f"last prompt token → {tokens[0]}"] + [
        f"token {row}: {token} → {following}" for row, (token, following) in enumerate(pairwise(tokens), 1)
    ]


def _either(original: str | None, gated: str | None) -> str:
    shown = dict.fromkeys(f"“{token.strip() or '␣'}”" for token in (original, gated) if token is not None)
    return " / ".join(shown)


def _words(case: Case) -> list[list[Any]]:
    """Return the likeliest first tokens of either run: text, probability originally, probability gated."""
    before, after = case.unchanged, case.gated
    names = {
        token: name
        for trace in (before, after)
        for token, (name, _) in zip(
            trace.probabilities.topk(len(trace.next_token)).indices.tolist(), trace.next_token, strict=True
        )
    }
    likely = sorted(names, key=lambda token: -max(before.probabilities[token], after.probabilities[token]))
    return [
        [names[token], *(round(float(trace.probabilities[token]), 5) for trace in (before, after))]
        for token in likely[:TOP_WORDS]
    ]


def _shares(trace: sg.Trace, sinks: sg.SinkMap, row: int) -> dict[str, list[float]] | None:
    if row >= trace.attention.shape[2]:
        return None
    return {group: _floats(share) for group, share in trace.shares(sinks, row).items()}


def _column(gates: sg.Gates, group: int) -> list[float]:
    return [round(float(row[group]), 4) for row in gates.scales.tolist()]


def _floats(values: torch.Tensor) -> list[float]:
    return [round(value, 7) for value in values.tolist()]


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 else None
