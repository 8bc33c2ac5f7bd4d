"""View model: plain JSON values made from a question's state, ready to draw."""

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
from sinkgate.sinks import words
from sinkgate.sinks.criteria import Verdict
from sinkgate.sinks.gates import GROUPS
from sinkgate.sinks.words import sentence

from .engine import MAX_NEW_TOKENS, AnswerUpdate
from .inspection import PatchFacts
from .user_session import QuestionState

JSON = dict[str, Any]
SCALES = ("shared", "own", "log")  # of the maps' colours
VIEW_SIDE = 448  # pixels of the picture under the maps, its longest side
TOP_WORDS = 6
TOP_QUERIES = 4  # text tokens, and as many patches, of a patch's panel
DECADES = 3  # of the logarithmic scale, as in maps.js
HOLE = 255  # byte of a thumbnail's cell without a token; shades end below it
UNPLACED = "the places of the visual tokens in the picture are not known"


@dataclass(frozen=True)
class Lens:
    """The attention map on the page."""

    layer: int = 0
    head: int | None = None  # None: mean over heads
    row: int = 0  # the query that generated this token; 0 is the last token of the prompt
    hide: bool = False  # mask sinks
    sheet: int = 0  # of the prompt's
    scale: str = "shared"  # of the colours, one of SCALES
    position: int | None = None  # of the prompt token that is the query; None: the row of a generated token
    heads: bool = False  # show the maps of all heads
    patch: int | None = None  # cell on the sheet, row by row, whose panel is open

    @classmethod
    def read(cls, value: Any, vlm: sg.VLM, sheets: int = 1) -> Lens:
        """Return the page's choice, each value that model or prompt do not have replaced by a default; raises nothing."""
        value = value if isinstance(value, Mapping) else {}
        layer, head, row, sheet, position, patch = (
            _whole(value.get(key)) for key in ("layer", "head", "row", "sheet", "position", "patch")
        )
        return cls(
            layer=min(max(layer or 0, 0), vlm.num_layers - 1),
            head=head if head is not None and 0 <= head < vlm.num_heads else None,
            row=max(row or 0, 0) if position is None else 0,
            hide=value.get("hide") is True,
            sheet=min(max(sheet or 0, 0), sheets - 1),
            scale=next((name for name in SCALES if name == value.get("scale")), SCALES[0]),
            position=position,
            heads=value.get("heads") is True,
            patch=patch,
        )

    def within(self, prompt: sg.Prompt) -> Lens:
        """Return this choice without a query or patch that the prompt does not have."""
        tokens = prompt.sheets[self.sheet].tokens.flatten()
        query = self.position is not None and 0 <= self.position < prompt.length - 1
        query = query and self.position not in image_positions(prompt)
        patch = self.patch is not None and 0 <= self.patch < len(tokens) and int(tokens[self.patch]) >= 0
        return replace(self, position=self.position if query else None, patch=self.patch if patch else None)


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
        "tick": time.monotonic_ns() // 1000,  # rises, so that the page can drop frames that arrive late
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
    places = zip(_floats(shares.flatten(), 9), tokens.flatten().tolist(), strict=True)
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
    layer, sheets = lens.layer, state.prompt.sheets
    if layer not in state.evidence:
        state.evidence[layer] = {
            token: (kind, evidence_values(state.sinks, token, kind, layer))
            for token, kind in enumerate(state.sinks.names(layer))
            if kind != "ordinary"
        }
    marks, away, outside = [], 0, 0
    for token, (kind, values) in state.evidence[layer].items():
        if cell := sheets[lens.sheet].find(token):
            marks.append({"token": token, "cell": cell, "kind": kind, "values": values})
        elif any(sheet.find(token) for sheet in sheets):
            away += 1
        else:
            outside += 1
    others = "on the other sheet" if state.prompt.video is None else "in the other frame"
    others += "s" * (len(sheets) > 2)
    counts = [(away, others), (outside, "outside of the picture")]
    return marks, ", ".join(f"{n} more {'sink' if n == 1 else 'sinks'} {where}" for n, where in counts if n)


def _thumbnails(trace: sg.Trace, sheet: int) -> list[str]:
    """Return one thumbnail a layer: the mean map of the first row, each on its own scale."""
    holes = trace.sheets[sheet].tokens.flatten() < 0
    maps = (trace.visual(layer, sheet=sheet).flatten() for layer in range(trace.attention.shape[0]))
    return [_shades(shares / shares.max().clamp_min(1e-9), holes) for shares in maps]


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
    return [_shades(part, trace.sheets[lens.sheet].tokens.flatten() < 0) for part in parts]


def _shades(parts: torch.Tensor, holes: torch.Tensor) -> str:
    """Return a thumbnail's bytes in base64: parts of the brightest shade, from 0 to 1, and holes where no token is."""
    shades = (parts * (HOLE - 1)).round().masked_fill(holes, HOLE)
    return base64.b64encode(shades.to(torch.uint8).numpy().tobytes()).decode()


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


def image_positions(prompt: sg.Prompt) -> set[int]:
    """Return the prompt positions that the image takes; none where it is read by cross-attention."""
    if prompt.num_keys != prompt.length:
        return set()
    return {*prompt.visual.tolist(), *prompt.separators.tolist()}


def prompt_tokens(vlm: sg.VLM, prompt: sg.Prompt) -> list[JSON]:
    """Return the prompt's tokens in order: ``position``, ``text`` and ``kind``; those of the image, between texts, as one with their number.

    Kinds: "question"; "template", what the chat format adds; "special", tokens with a meaning of their own; "picture". Where the
    question cannot be told from the template, all text counts as question.
    """
    ids, image = prompt.inputs["input_ids"][0].tolist(), image_positions(prompt)
    special = set(vlm.tokenizer.all_special_ids)
    texts = [
        "" if position in image else "".join(vlm.tokenizer.decode([token]).split())
        for position, token in enumerate(ids)
    ]
    owners = [position for position, text in enumerate(texts) for _ in text]
    question = "".join(prompt.question.split())
    start = "".join(texts).rfind(question)
    of_question = (
        {owners[place] for place in range(start, start + len(question))} if start >= 0 else set(range(len(ids)))
    )
    tokens: list[JSON] = []
    for position, token in enumerate(ids):
        if position in image:
            if tokens and tokens[-1]["kind"] == "picture":
                tokens[-1]["count"] += 1
            else:
                tokens.append({"position": position, "text": "", "kind": "picture", "count": 1})
            continue
        kind = "special" if token in special else "question" if position in of_question else "template"
        tokens.append({"position": position, "text": vlm.token_name(token), "kind": kind})
    return tokens


def inspection(
    state: QuestionState, lens: Lens, shares: tuple[torch.Tensor, torch.Tensor] | None, facts: PatchFacts | None
) -> JSON:
    """Return the row of prompt tokens and the panel of a patch.

    Args:
        state: of the question.
        lens: the maps on the page.
        shares: attention of each text token on the picture, (H, tokens), original and gated; None where it was not measured.
        facts: of the patch; None for none.
    """
    tokens = prompt_tokens(state.prompt_session.vlm, state.prompt)
    if shares is not None:
        mean = [_floats(each.mean(0) if lens.head is None else each[lens.head], 5) for each in shares]
        texts = (token for token in tokens if token["kind"] != "picture")
        for token, before, after in zip(texts, *mean, strict=True):
            token["shares"] = [before, after]
    return {
        "sequence": state.sequence,
        "tokens": tokens,
        "layer": lens.layer,
        "patch": facts and _panel(state, lens, facts),
    }


def _panel(state: QuestionState, lens: Lens, facts: PatchFacts) -> JSON:
    """Return everything about one patch, ready to draw."""
    sinks, vlm, prompt = state.sinks, state.prompt_session.vlm, state.prompt
    token, *others = facts.tokens
    kind = sinks.names(lens.layer)[token]
    evidence = evidence_names(sinks, kind, lens.layer), evidence_values(sinks, token, kind, lens.layer)
    ids, image = prompt.inputs["input_ids"][0], image_positions(prompt)
    patches = {position: index for index, position in enumerate(prompt.visual.tolist())} if image else {}
    order = [position for position in facts.after.argsort(descending=True).tolist() if facts.after[position] > 0]
    texts = [position for position in order if position not in image]
    looking = [position for position in order if position in patches and patches[position] != token]

    def name(position: int) -> str:
        if position in patches:
            return sinks.where(patches[position])
        return f"“{vlm.token_name(int(ids[position]))}”"

    return {
        "patch": lens.patch,
        "kind": kind,
        "where": sinks.where(token),
        "evidence": [list(pair) for pair in zip(*evidence, strict=True)],
        "attended": [
            [name(each), *(round(float(side[each]), 7) for side in (facts.before, facts.after))]
            for each in texts[:TOP_QUERIES] + looking[:TOP_QUERIES]
        ],
        "received": [[_floats(each.mean(-1)) for each in side] for side in (facts.received_before, facts.received_after)],
        "heads": [_floats(row) for row in facts.received_after[0]],
        "ordinary": sinks.where(others[0]) if others else None,
        "words": [
            [layer, *([[word, _short(share)] for word, share in facts.words.words(each, layer)] for each in facts.tokens)]
            for layer in facts.words.layers
        ] if facts.words else None,
    }  # fmt: skip


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
        [names[token], *(_short(float(trace.probabilities[token])) for trace in (before, after))]
        for token in likely[:TOP_WORDS]
    ]


def _short(probability: float) -> float:
    """Return a probability with six significant digits: none above 0 becomes 0."""
    return float(f"{probability:.6g}")


def _first(state: QuestionState) -> JSON:
    """Return the first token of the original answer, its probability originally and gated, and the likeliest token gated."""
    first = int(state.unchanged.probabilities.argmax())
    before, after = (float(trace.probabilities[first]) for trace in (state.unchanged, state.gated))
    return {
        "token": state.unchanged.next_token[0][0],
        "before": _short(before),
        "after": _short(after),
        "top": state.gated.next_token[0][0],
    }


def _groups(sinks: sg.SinkMap) -> JSON:
    """Return the number of tokens of each group, by layer, and the criteria for sinks in words."""
    layers = range(len(sinks.l_sink))
    return {
        "tokens": {group: [int(sinks.group(group, layer).sum()) for layer in layers] for group in GROUPS},
        "criteria": {group: sinks.criterion(group) for group in ("v_sink", "l_sink")},
    }


def _shares(trace: sg.Trace, sinks: sg.SinkMap, row: int) -> dict[str, list[float]] | None:
    if row >= trace.attention.shape[2]:
        return None
    return {group: _floats(share) for group, share in trace.shares(sinks, row).items()}


def _column(gates: sg.Gates, group: int) -> list[float]:
    return [round(float(row[group]), 4) for row in gates.scales.tolist()]


def _floats(values: torch.Tensor, digits: int = 7) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 else None
