"""Measurements on tokens of a prompt, on request: attention of the text on the picture, and the panel of a patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import sinkgate as sg
from sinkgate.analysis.logit_lens import decode

LENS_LAYERS, LENS_WORDS = 5, 3  # of the logit lens


@dataclass(frozen=True)
class PatchFacts:
    """Measurements on one visual token, and beside a sink's those on an ordinary token.

    Shapes: N tokens, P prompt positions, L layers, H heads. tokens (N,): the token, then an ordinary one if it is a sink; before and
    after (P,): attention of each query on the token in one layer, the mean over heads; received_before and received_after (N, L, H):
    attention from the text behind the image. ``words``: of the gated model, None where the LLM holds no states of visual tokens.
    """

    tokens: tuple[int, ...]
    before: Tensor
    after: Tensor
    received_before: Tensor
    received_after: Tensor
    words: sg.LogitLens | None


def patch_facts(session: sg.Session, token: int, layer: int, gates: sg.Gates | None) -> PatchFacts:
    """Measure one visual token under gates and without.

    Args:
        session: of the prompt.
        token: index of the visual token.
        layer: number of the layer, whose queries are asked.
        gates: scales of the Keys; None leaves the model as it is.
    """
    prompt, gates = session.prompt, None if gates is None or gates.is_identity else gates
    before = session.received()
    after = before if gates is None else session.received(gates)
    tokens = (token, *_ordinary(session, after, token, layer))
    positions = prompt.visual[list(tokens)].cpu()
    column = _column(session, int(positions[0]), layer, None)
    column_after = column if gates is None else _column(session, int(positions[0]), layer, gates)
    words = None
    if session.resumes and not session.vlm.adapter.cross_attention:
        states, last = session.states(gates), session.vlm.num_layers - 1
        depths = sorted({layer, *(round(last * step / (LENS_LAYERS - 2)) for step in range(LENS_LAYERS - 1))})
        words = decode(session.vlm, prompt, {depth: states[depth] for depth in depths}, tokens, LENS_WORDS)
    of_tokens = [each[..., positions].permute(2, 0, 1) for each in (before, after)]
    return PatchFacts(tokens, column, column_after, of_tokens[0], of_tokens[1], words)


def text_shares(session: sg.Session, positions: list[int], layer: int, gates: sg.Gates | None) -> Tensor:
    """Return the share of their attention in a layer that prompt positions give to visual tokens: (H, positions)."""
    visual = session.prompt.visual.tolist()
    return session.rows(positions, gates, layers=[layer], keys=visual)[0].sum(-1)


def _ordinary(session: sg.Session, received: Tensor, token: int, layer: int) -> list[int]:
    """Return for a sink an ordinary token: that of median attention among those of the layer."""
    ordinary = session.sinks.ordinary[layer]
    if ordinary[token] or not ordinary.any():
        return []
    tokens = ordinary.nonzero()[:, 0]
    order = received[layer].mean(0)[session.prompt.visual.cpu()][tokens].argsort()
    return [int(tokens[order[len(order) // 2]])]


def _column(session: sg.Session, position: int, layer: int, gates: sg.Gates | None) -> Tensor:
    """Return the attention of each query on one Key, (P,); 0 for queries in front of it."""
    first = 0 if session.vlm.adapter.cross_attention else position
    column = session.rows(range(first, session.prompt.length), gates, layers=[layer], keys=[position])[0].mean(0)[:, 0]
    return torch.cat([torch.zeros(first), column])
