"""Values of the row of prompt tokens and of the panel of a patch, ready to draw."""

from __future__ import annotations

import torch

import sinkgate as sg

from .inspection import PatchFacts
from .lens import Lens, image_positions
from .user_session import QuestionState
from .view_model import JSON, evidence_names, evidence_values, floats, short

TOP_QUERIES = 4  # text tokens, and as many patches, of a patch's panel


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
        mean = [floats(each.mean(0) if lens.head is None else each[lens.head], 5) for each in shares]
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
        "received": [[floats(each.mean(-1)) for each in side] for side in (facts.received_before, facts.received_after)],
        "heads": [floats(row) for row in facts.received_after[0]],
        "ordinary": sinks.where(others[0]) if others else None,
        "words": [
            [layer, *([[word, short(share)] for word, share in facts.words.words(each, layer)] for each in facts.tokens)]
            for layer in facts.words.layers
        ] if facts.words else None,
    }  # fmt: skip
