"""View model: plain JSON values made from a question's state, ready to draw. Prompt tokens and patches are in `token_view`."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict, replace
from difflib import SequenceMatcher
from itertools import pairwise, zip_longest
from typing import Any

import torch
from PIL import Image

import sinkgate as sg
from sinkgate.images.layout import Sheet
from sinkgate.sinks import words
from sinkgate.sinks.criteria import Verdict
from sinkgate.sinks.words import sentence

from .engine import MAX_NEW_TOKENS, AnswerUpdate
from .lens import Lens
from .user_session import QuestionState

JSON = dict[str, Any]
VIEW_SIDE = 448  # pixels of the picture under the maps, its longest side
TOP_WORDS = 6
DECADES = 3  # of the logarithmic scale, as in maps.js
HOLE = 255  # byte of a thumbnail's cell without a token; shades end below it
UNPLACED = "the places of the visual tokens in the picture are not known"


def frame(state: QuestionState, lens: Lens) -> JSON:
    """Return everything that depends on the faders and the scene: maps, markers, probabilities, shares."""
    rows = {"unchanged": state.unchanged, "gated": state.gated}
    if state.query and state.query.position == lens.position:
        rows = {
            "unchanged": replace(state.unchanged, attention=state.query.original),
            "gated": replace(state.gated, attention=state.query.gated),
        }
    elif lens.position is not None:
        lens = replace(lens, position=None)
    finished = state.unchanged_done and state.gated_done
    if finished and all(lens.row >= trace.attention.shape[2] for trace in rows.values()):
        lens = replace(lens, row=0)  # it belonged to another answer, which was longer
    hidden = (state.sinks.v_sink | state.sinks.l_sink[lens.layer]) if lens.hide else None
    before, after = (_map(trace, lens, hidden) for trace in rows.values())
    sheet = state.prompt.sheets[lens.sheet]
    marks, elsewhere = _marks(state, lens)
    return {
        "began": state.began,
        "sequence": state.sequence,
        "finished": finished,
        "model": state.prompt_session.vlm.name,
        "lens": asdict(lens),
        "sheets": sheet_names(state.prompt.sheets),
        "video": state.prompt.video is not None,
        "grid": list(sheet.grid),
        "placed": sheet.box is not None,
        "note": sentence(state.prompt.note or ("" if sheet.box else UNPLACED)),
        "before": before,
        "after": after,
        "exact": None if hidden is None else [_map(trace, lens, None) for trace in rows.values()],
        "top": max([1e-9, *(share for share in [*(before or []), *(after or [])] if share is not None)]),
        "marks": marks,
        "evidence": {kind: evidence_names(state.sinks, kind, lens.layer) for kind in ("v_sink", "l_sink")},
        "elsewhere": elsewhere,
        "films": _thumbnails(rows["gated"], lens.sheet),
        "heads": _head_maps(rows["gated"], lens, hidden) if lens.heads else None,
        "queries": _queries(state),
        "query": _query(state, lens),
        "words": _words(state),
        "first": _first(state),
        "shares": {name: _shares(trace, state.sinks, lens.row) for name, trace in rows.items()},
        "gates": mixer_value(state.gates),
        "groups": _groups(state.sinks),
        "identity": state.gates.is_identity,
        "learned": _learned(state),
        "summary": state.sinks.summary(),
        "cost": _cost(state),
    }


def _learned(state: QuestionState) -> JSON | None:
    """Return the scales of learned gates for every layer, 1 where a layer has none; None without learned gates."""
    if state.learned is None or state.rho is None:
        return None
    return {
        "name": state.learned.name,
        "layers": list(state.learned.layers),
        "off": sorted(state.learned.off),
        "rho": mixer_value(state.rho),
    }


def _cost(state: QuestionState) -> str:
    """Return the layers and the time that the last move of a fader took, in words."""
    if not state.seconds:
        return ""
    layers = len(state.prompt_session.vlm.adapter.all_layers)
    first = layers - state.layers_run if state.prompt_session.resumes else 0
    return f"recomputed {words.layers(list(range(first, layers)))} · {1000 * state.seconds:.0f} ms"


def answers(update: AnswerUpdate) -> JSON:
    """Return both answers, word by word, with those that differ marked once the texts are complete."""
    first, second = update.unchanged.split(), update.gated.split()
    changed: tuple[set[int], set[int]] = (set(), set())
    if update.done:
        for kind, a, b, c, d in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
            if kind != "equal":
                changed[0].update(range(a, b))
                changed[1].update(range(c, d))
    return {
        "sequence": update.sequence,
        "done": update.done,
        "cut": [MAX_NEW_TOKENS if cut else 0 for cut in update.limited],
        "unchanged": [[word, index in changed[0]] for index, word in enumerate(first)],
        "gated": [[word, index in changed[1]] for index, word in enumerate(second)],
    }


def view_urls(prompt: sg.Prompt) -> list[str | None]:
    """Return the part of the picture under each sheet, as data URLs small enough to send; None where tokens have no place."""
    views = [sheet.view(prompt.images) for sheet in prompt.sheets]
    for view in views:
        if view is not None:
            view.thumbnail((VIEW_SIDE, VIEW_SIDE))
    return [view and image_url(view) for view in views]


def image_url(image: Image.Image) -> str:
    """Return a picture as a JPEG data URL."""
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def mixer_value(gates: sg.Gates) -> JSON:
    """Return gates as the mixer's value: with ``l_sink`` where L-sinks and ordinary tokens have different scales."""
    v_sink, l_sink, ordinary = (_column(gates, group) for group in range(3))
    return {"v_sink": v_sink, **({} if l_sink == ordinary else {"l_sink": l_sink}), "rest": ordinary}


def _map(trace: sg.Trace, lens: Lens, hidden: torch.Tensor | None) -> list[float | None] | None:
    """Return attention on the sheet, row-major, None for cells without a token; None where this run has no such query."""
    if lens.row >= trace.attention.shape[2]:
        return None
    shares = trace.visual(lens.layer, lens.head, lens.row, hidden, lens.sheet)
    tokens = trace.sheets[lens.sheet].tokens
    places = zip(floats(shares.flatten(), 9), tokens.flatten().tolist(), strict=True)
    return [share if token >= 0 else None for share, token in places]


def evidence_names(sinks: sg.SinkMap, kind: str, layer: int) -> list[str]:
    """Return the names of the measurements that `evidence_values` gives for V-sinks, L-sinks or ordinary tokens of a layer."""
    names: list[str] = []
    if kind == "v_sink" and sinks.v_verdict is not None:
        names = [f"encoder: {sinks.v_verdict.unit}", "encoder norm / median"]
    elif kind == "l_sink":
        names = [sinks.l_verdict.unit]
    return [*names, f"attention / median in layer {layer}", f"Value / mean in layer {layer}"]


def evidence_values(sinks: sg.SinkMap, token: int, kind: str, layer: int) -> list[str]:
    """Return the measurements on a visual token, in words, in the order of `evidence_names`."""
    score: list[str] = []
    measured = [sinks.llm_share[layer, token], sinks.value_ratio[layer, token]]
    if kind == "v_sink":
        assert sinks.v_verdict is not None and sinks.loudest is not None
        score = [_score(sinks.v_verdict, 0, int(sinks.loudest[token]))]
        measured = [sinks.norm_ratio[token], *measured]
    elif kind == "l_sink":
        score = [_score(sinks.l_verdict, layer, token)]
    return [*score, *(f"{words.number(float(value))} ×" for value in measured)]


def _score(verdict: Verdict, row: int, column: int) -> str:
    score, threshold = float(verdict.score[row, column]), float(verdict.threshold[row, 0])
    at = "" if verdict.dimension is None else f" in dimension {int(verdict.dimension[row, column])}"
    return f"{words.number(score)}{at} (sink from {words.number(threshold)})"


def _marks(state: QuestionState, lens: Lens) -> tuple[list[JSON], str]:
    """Return the sinks on the sheet, each with its cell and the evidence; and the number of those elsewhere, in words."""
    view = lens.layer, lens.sheet
    if view not in state.marks:
        state.marks[view] = _find_marks(state.sinks, state.prompt, *view)
    return state.marks[view]


def _find_marks(sinks: sg.SinkMap, prompt: sg.Prompt, layer: int, shown: int) -> tuple[list[JSON], str]:
    """Return the sinks of a layer on one sheet, and the number of those elsewhere, in words."""
    sheets = prompt.sheets
    marks, away, outside = [], 0, 0
    for token, kind in enumerate(sinks.names(layer)):
        if kind == "ordinary":
            continue
        if cell := sheets[shown].find(token):
            values = evidence_values(sinks, token, kind, layer)
            marks.append({"token": token, "cell": cell, "kind": kind, "values": values})
        elif any(sheet.find(token) for sheet in sheets):
            away += 1
        else:
            outside += 1
    others = "on the other sheet" if prompt.video is None else "in the other frame"
    others += "s" * (len(sheets) > 2)
    counts = [(away, others), (outside, "outside of the picture")]
    return marks, ", ".join(f"{n} more {'sink' if n == 1 else 'sinks'} {where}" for n, where in counts if n)


def _thumbnails(trace: sg.Trace, sheet: int) -> list[str]:
    """Return one thumbnail a layer: the mean map of the first row, each on its own scale."""
    patches = trace.attention[:, :, 0].mean(1)[:, trace.positions]
    maps = trace.sheets[sheet].spread(patches).flatten(1)
    return _shades(maps / maps.amax(1, keepdim=True).clamp_min(1e-9), trace.sheets[sheet])


def _head_maps(trace: sg.Trace, lens: Lens, hidden: torch.Tensor | None) -> list[str]:
    """Return one thumbnail a head of the layer, on the scale of the maps; none where this run has no such query."""
    if lens.row >= trace.attention.shape[2]:
        return []
    maps = [
        trace.visual(lens.layer, head, lens.row, hidden, lens.sheet).flatten()
        for head in range(trace.attention.shape[1])
    ]
    shares = torch.stack(maps)
    parts = shares / (shares.amax(1, keepdim=True) if lens.scale == "own" else shares.max()).clamp_min(1e-9)
    if lens.scale == "log":
        parts = (1 + parts.clamp_min(1e-12).log10() / DECADES).clamp_min(0)
    return _shades(parts, trace.sheets[lens.sheet])


def _shades(parts: torch.Tensor, sheet: Sheet) -> list[str]:
    """Return each thumbnail's bytes in base64: parts (M, cells) of the brightest shade, from 0 to 1, and holes where no token is."""
    shades = (parts * (HOLE - 1)).round().masked_fill(sheet.tokens.flatten() < 0, HOLE)
    return [base64.b64encode(row.tobytes()).decode() for row in shades.to(torch.uint8).numpy()]


def sheet_names(sheets: tuple[Sheet, ...]) -> list[str]:
    """Return names of the sheets: of those of one picture the coarsest is the overview, the others are tiles; of a video their frames."""
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
        if sheet.frames is not None:
            names.append(f"{sheet.time}: {name}" if len(siblings) > 1 else sheet.time)
        else:
            names.append(f"image {sheet.image + 1}: {name}" if len(images) > 1 else name)
    return names


def _queries(state: QuestionState) -> list[str]:
    """Return a name for each query: its token and the one that it generates, of both answers where these differ."""
    answers = [trace.tokens for trace in (state.unchanged, state.gated)]
    tokens = [_either(*pair) for pair in zip_longest(*answers)]
    if not tokens:
        return ["last prompt token"]
    return [f"last prompt token → {tokens[0]}"] + [
        f"token {row}: {token} → {following}" for row, (token, following) in enumerate(pairwise(tokens), 1)
    ]


def _query(state: QuestionState, lens: Lens) -> str:
    """Return the name of the maps' query."""
    if lens.position is None:
        queries = _queries(state)
        return queries[lens.row] if lens.row < len(queries) else "not generated yet"
    vlm, ids = state.prompt_session.vlm, state.prompt.inputs["input_ids"][0]
    return f"prompt token {lens.position} “{vlm.token_name(int(ids[lens.position]))}”"


def _either(original: str | None, gated: str | None) -> str:
    shown = dict.fromkeys(f"“{token.strip() or '␣'}”" for token in (original, gated) if token is not None)
    return " / ".join(shown)


def _words(state: QuestionState) -> list[list[Any]]:
    """Return the likeliest first tokens of either run: text, probability originally, probability gated."""
    before, after = state.unchanged, state.gated
    names = {
        token: name
        for trace in (before, after)
        for token, (name, _) in zip(
            trace.probabilities.topk(len(trace.next_token)).indices.tolist(), trace.next_token, strict=True
        )
    }
    likely = sorted(names, key=lambda token: -max(before.probabilities[token], after.probabilities[token]))
    return [
        [names[token], *(short(float(trace.probabilities[token])) for trace in (before, after))]
        for token in likely[:TOP_WORDS]
    ]


def short(probability: float) -> float:
    """Return a probability with six significant digits: none above 0 becomes 0."""
    return float(f"{probability:.6g}")


def _first(state: QuestionState) -> JSON:
    """Return the first token of the original answer, its probability originally and gated, and the likeliest token gated."""
    first = int(state.unchanged.probabilities.argmax())
    before, after = (float(trace.probabilities[first]) for trace in (state.unchanged, state.gated))
    return {
        "token": state.unchanged.next_token[0][0],
        "before": short(before),
        "after": short(after),
        "top": state.gated.next_token[0][0],
    }


def _groups(sinks: sg.SinkMap) -> JSON:
    """Return the number of tokens of each group, by layer, and the criteria for sinks in words."""
    members = {"v_sink": sinks.v_sink.expand_as(sinks.l_sink), "l_sink": sinks.l_sink, "ordinary": sinks.ordinary}
    return {
        "tokens": {group: mask.sum(1).tolist() for group, mask in members.items()},
        "criteria": {group: sinks.criterion(group) for group in ("v_sink", "l_sink")},
    }


def _shares(trace: sg.Trace, sinks: sg.SinkMap, row: int) -> dict[str, list[float]] | None:
    if row >= trace.attention.shape[2]:
        return None
    return {group: floats(share) for group, share in trace.shares(sinks, row).items()}


def _column(gates: sg.Gates, group: int) -> list[float]:
    return [round(float(row[group]), 4) for row in gates.scales.tolist()]


def floats(values: torch.Tensor, digits: int = 7) -> list[float]:
    """Return a row of numbers, rounded."""
    return [round(value, digits) for value in values.tolist()]
