"""Observations of one prompt, sorted into V-sinks (once per image), L-sinks (per LLM layer) and ordinary tokens.

V-sinks arise in the vision encoder and are decided on its patch features before the projector; L-sinks
arise inside the LLM and are decided at the input of every layer (paper, section 1). A token that is both counts as
a V-sink.

Where patches are merged, a visual token is a V-sink when any of its patches is: a default chosen by us, the paper gives none.

Shapes: L LLM layers, V visual tokens, N patches, P prompt positions, E encoder width, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.images.layout import Sheet
from sinkgate.sinks.criteria import (
    Choice,
    Criterion,
    FirstThatFinds,
    MassiveActivations,
    Signals,
    SinkCriteria,
    SinkDimensions,
    Verdict,
    over_median,
    read_criterion,
)
from sinkgate.sinks.sink_map import SinkMap, SinkMasks, TextTokens
from sinkgate.sinks.states import HiddenStates, norms

__all__ = [
    "HeadObservation",
    "Merged",
    "Observation",
    "PatchObservation",
    "PatchVerdict",
    "SinkMap",
    "SinkMasks",
    "classify",
    "classify_patches",
    "criterion",
]

Merged = Literal["any", "most", "all"]


@dataclass(frozen=True)
class PatchObservation:
    """Encoder part of an `Observation`.

    Shapes: features (N, E), the encoder's patch features before the projector, and encoder_attention (N,), the mean
    attention that a patch receives over heads and all queries of the layer that reads those features (their own layer where it
    is the encoder's last; chosen by us), times the number of Keys: 1 is an even share; both None where the encoder
    cannot be observed; token_of_patch (N,) the visual token that a patch feeds, negative for none, None where tokens mix
    patches.
    """

    features: Tensor | None
    encoder_attention: Tensor | None
    token_of_patch: Tensor | None


@dataclass(frozen=True)
class Observation(PatchObservation):
    """One run of the unmodified model on a prompt: the input of every criterion.

    ``states`` at the input of each LLM layer are reduced as they pass; ``hidden`` returns them whole, by another run.

    Shapes: as `PatchObservation`; states (L, P, D); visual (V,) positions; key_attention (L, P), the mean over heads
    and the text queries after the image; value_norms (L, P), the mean over heads.
    """

    states: HiddenStates
    visual: Tensor
    key_attention: Tensor
    value_norms: Tensor

    @property
    def attention(self) -> Tensor:
        """The attention on visual tokens, (L, V)."""
        return self.key_attention[:, self.visual]

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states, (L, P, D) float32 on the CPU: the model runs again, and they take L P D x 4 bytes from then on."""
        return self.states.tensor()


@dataclass(frozen=True)
class HeadObservation(Observation):
    """Observation of each head.

    Shapes: as `Observation`; head_attention (L, H, K): the mean over the text queries after the image, on every Key, sums to one;
    stable_rank (L, H) of a head's output over all queries of the prompt, see `sinkgate.attention.recorder.stable_rank`.
    """

    head_attention: Tensor
    stable_rank: Tensor


def classify(
    observation: Observation,
    sheets: tuple[Sheet, ...],
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
    merged: Merged = "any",
) -> SinkMap:
    """Sort visual tokens into V-sinks, L-sinks and ordinary ones.

    Args:
        observation: one run of the unmodified model on the prompt.
        sheets: positions of its visual tokens in the picture.
        v_sink: criterion for V-sinks, by name (see ``CRITERIA``) or as an object. "auto" and "dimensions" decide on this
            prompt alone, without a model; `sinkgate.find_sinks` holds one decision for all prompts of a model.
        l_sink: criterion for L-sinks.
        merged: a token of several patches is a V-sink when any, most (more than half) or all of them are sinks.

    Raises:
        SinkgateError: no criterion has that name, or ``merged`` is none of the three.
    """
    patches = classify_patches(observation, len(observation.visual), v_sink, merged)
    signals = Signals(observation.states, observation.visual, observation.attention)
    l_verdict = criterion(l_sink)(signals)
    choices = SinkCriteria(_choice(v_sink, patches.verdict), _choice(l_sink, l_verdict))
    return SinkMap(
        v_sink=patches.v_sink,
        l_sink=l_verdict.mask & ~patches.v_sink,
        v_verdict=patches.verdict,
        l_verdict=l_verdict,
        sheets=sheets,
        loudest=patches.loudest,
        encoder_share=patches.share,
        llm_share=over_median(observation.attention),
        norm_ratio=patches.norm_ratio,
        value_ratio=observation.value_norms[:, observation.visual] / observation.value_norms.mean(1, keepdim=True),
        criteria=choices,
        positions=observation.visual,
        spike=_spike(signals, l_verdict),
        text=_text_tokens(observation, choices.l_sink, l_verdict),
    )


def _choice(decided: str | Criterion | Choice, verdict: Verdict | None) -> Choice:
    """Return the criterion that decided."""
    if isinstance(decided, Choice):
        return decided
    judge = criterion(decided)
    if verdict and isinstance(judge, FirstThatFinds):
        judge = next(each for each in judge.criteria if each.name == verdict.criterion)
    return Choice(judge)


def _text_tokens(observation: Observation, choice: Choice, verdict: Verdict) -> TextTokens:
    """Decide on the Keys that are no visual tokens, where the criterion decides by a token's own state."""
    is_text = torch.ones(observation.value_norms.shape[1], dtype=torch.bool)
    is_text[observation.visual] = False
    positions = is_text.nonzero()[:, 0]
    received = observation.key_attention[:, positions]
    judge = choice.criterion
    if not verdict.dimensions or not len(positions) or not isinstance(judge, SinkDimensions | MassiveActivations):
        return TextTokens(positions, received)
    judge = replace(judge, dims=verdict.dimensions)  # those of the L-sinks, discovered once
    signals = Signals(observation.states, positions, torch.zeros(len(verdict.mask), len(positions)))
    judged = judge(signals)
    return TextTokens(positions, received, judged, _spike(signals, judged))


def _spike(signals: Signals, verdict: Verdict) -> Tensor | None:
    """Return the magnitude in the loudest sink dimension over the layer's median, (L, N); None without sink dimensions."""
    if not verdict.dimensions:
        return None
    return signals.values(verdict.dimensions).abs().amax(-1) / signals.states.sampled_medians[:, None]


@dataclass(frozen=True)
class PatchVerdict:
    """Verdict on the visual tokens by the encoder alone: the fields of a `SinkMap` that do not depend on the LLM."""

    v_sink: Tensor
    verdict: Verdict | None
    loudest: Tensor | None
    share: Tensor
    norm_ratio: Tensor


def classify_patches(
    observation: PatchObservation, count: int, v_sink: str | Criterion | Choice = "auto", merged: Merged = "any"
) -> PatchVerdict:
    """Decide on V-sinks among ``count`` visual tokens from an observation of the patches; the arguments are those of `classify`.

    Raises:
        SinkgateError: no criterion has that name, or ``merged`` is none of the three.
    """
    decide, feeds = criterion(v_sink), observation.token_of_patch
    if merged not in _PARTS:
        raise SinkgateError(f"merged is {merged!r}; expected one of {', '.join(_PARTS)}")
    none, ones = torch.zeros(count, dtype=torch.bool), torch.ones(count)
    if observation.features is None or observation.encoder_attention is None:
        return PatchVerdict(none, None, None, ones, ones)
    judged = torch.arange(len(observation.features)) if feeds is None else (feeds >= 0).nonzero()[:, 0]
    attention = observation.encoder_attention[judged]
    verdict = decide(Signals(observation.features[None], judged, attention[None]))
    if feeds is None:
        return PatchVerdict(none, verdict, None, ones, ones)
    token = feeds[judged]
    loudest = _loudest_by_token(verdict.score[0], token, count)
    lengths = norms(observation.features[judged].float())
    return PatchVerdict(
        _PARTS[merged](_mean_by_token(verdict.mask[0].float(), token, count)),
        verdict,
        loudest,
        over_median(attention)[loudest],
        over_median(lengths)[loudest],
    )


_PARTS: dict[Merged, Callable[[Tensor], Tensor]] = {
    "any": lambda share: share > 0,
    "most": lambda share: share > 0.5,
    "all": lambda share: share == 1,
}


def _mean_by_token(values: Tensor, token: Tensor, count: int) -> Tensor:
    return torch.zeros(count).scatter_reduce(0, token, values, "mean", include_self=False)


def _loudest_by_token(score: Tensor, token: Tensor, count: int) -> Tensor:
    order = score.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return order[torch.zeros(count, dtype=torch.long).scatter_reduce(0, token, rank, "amax", include_self=False)]


def criterion(choice: str | Criterion | Choice) -> Criterion:
    """Return a criterion by its name, or the object itself.

    Raises:
        SinkgateError: no criterion has that name, or this is no criterion.
    """
    if isinstance(choice, Choice):
        return choice.criterion
    if isinstance(choice, str):
        return read_criterion(choice)
    if isinstance(choice, type) or not callable(choice):
        raise SinkgateError(
            f"the criterion is {choice!r}; expected a name of sg.CRITERIA, or an object such as SinkDimensions((1415, 2533))"
        )
    return choice
