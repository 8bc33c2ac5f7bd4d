"""Which visual tokens are sinks, and the evidence: V-sinks once per image, L-sinks per LLM layer.

V-sinks are born in the vision encoder and decided on its patch features before the projector; L-sinks are
born inside the LLM and decided at the input of every layer (paper, section 1). A token that is both counts as
a V-sink.

Where patches are merged, a visual token is a V-sink when any of its patches is; the choice is ours and can be changed.

Shapes: L LLM layers, V visual tokens, N patches, P prompt positions, E encoder width, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.images.layout import Sheet
from sinkgate.sinks.criteria import CRITERIA, AttentionShare, Criterion, Signals, Verdict, over_median

Merged = Literal["any", "most", "all"]
_LOOKED_AT = " Attention alone says so: it may be looked at for what it shows."


@dataclass(frozen=True)
class PatchObservation:
    """The encoder's half of an `Observation`.

    Shapes: features (N, E), the encoder's patch features before the projector, and encoder_attention (N,), the mean
    attention that a patch receives over heads and all queries of the layer that reads those features (their own layer where it
    is the encoder's last; the choice is ours), times the number of Keys: 1 is an even share; both None where the encoder
    cannot be looked into; token_of_patch (N,) the visual token that a patch feeds, negative for none, None where tokens mix
    patches.
    """

    features: Tensor | None
    encoder_attention: Tensor | None
    token_of_patch: Tensor | None


@dataclass(frozen=True)
class Observation(PatchObservation):
    """One prompt seen by the unmodified model: the raw material of every criterion.

    Shapes: as `PatchObservation`; hidden (L, P, D) at the input of each LLM layer; visual (V,) positions; attention (L, V), the mean over heads
    and the text queries after the image; value_norms (L, P), the mean over heads.
    """

    hidden: Tensor
    visual: Tensor
    attention: Tensor
    value_norms: Tensor


@dataclass(frozen=True)
class HeadObservation(Observation):
    """An observation that tells the heads apart.

    Shapes: as `Observation`; head_attention (L, H, K): the mean over the text queries after the image, on every Key, sums to one;
    stable_rank (L, H) of a head's output over all queries of the prompt, see `sinkgate.attention.recorder.stable_rank`.
    """

    head_attention: Tensor
    stable_rank: Tensor


@dataclass(frozen=True)
class SinkMasks:
    """The three groups of visual tokens, no more: v_sink (V,) boolean; l_sink and ordinary (L, V) boolean, disjoint, all tokens together."""

    v_sink: Tensor
    l_sink: Tensor

    @property
    def ordinary(self) -> Tensor:
        """Neither V-sink nor L-sink, (L, V)."""
        return ~(self.v_sink | self.l_sink)

    def group(self, name: str, layer: int) -> Tensor:
        """The tokens of ``v_sink``, ``l_sink``, ``ordinary`` or ``rest`` at a layer, (V,) boolean."""
        if name == "rest":
            return ~self.v_sink
        return self.v_sink if name == "v_sink" else getattr(self, name)[layer]


@dataclass(frozen=True)
class SinkMap(SinkMasks):
    """The three groups of visual tokens with the evidence for each.

    Four measurements are kept apart because they come apart: spike or norm (the verdicts' scores),
    attention, value-norm ratio, and the norm of the token.

    Shapes: as `SinkMasks`; v_verdict over the patches that feed tokens, None where the encoder cannot be looked into, loudest (V,) the index there of each
    token's loudest patch, None where tokens mix patches; encoder_share (V,) and llm_share (L, V): attention over the
    median; norm_ratio (V,): encoder norm over the median's; value_ratio (L, V): length of the Value over the mean
    length of all Values in the layer. ``sheets``: where tokens lie in the picture.
    """

    v_verdict: Verdict | None
    l_verdict: Verdict
    sheets: tuple[Sheet, ...]
    loudest: Tensor | None
    encoder_share: Tensor
    llm_share: Tensor
    norm_ratio: Tensor
    value_ratio: Tensor

    def summary(self) -> str:
        """A few plain sentences: how many of each kind, where, by which criterion."""
        sentences = [self._v_sentence()]
        layers = [layer for layer in range(len(self.l_sink)) if self.l_sink[layer].any()]
        if layers:
            most = int(self.l_sink.sum(1).max())
            sentences.append(
                f"L-sinks in layers {ranges(layers)}, at most {most} in one ({self.l_verdict.criterion}{_dimension_list(self.l_verdict)})."
            )
        else:
            beside = " beside the V-sinks" if self.l_verdict.found else ""
            sentences.append(f"No L-sinks{beside} ({self.l_verdict.criterion}).")
        if self.v_sink.any():
            sentences.append(
                f"The V-sinks receive {self.encoder_share[self.v_sink].mean():.1f} times the median attention in the encoder"
                f" and, at their strongest LLM layer, {self.llm_share[:, self.v_sink].mean(1).max():.1f} times."
            )
        return " ".join(sentences)

    def _v_sentence(self) -> str:
        if self.v_verdict is None:
            return "V-sinks cannot be named: this encoder cannot be looked into."
        by = f"({self.v_verdict.criterion}{_dimension_list(self.v_verdict)})"
        if self.loudest is None:
            found = int(self.v_verdict.mask.sum())
            return f"{found} patches are sinks in the encoder {by}, but tokens mix patches: no token is a V-sink of its own."
        count = int(self.v_sink.sum())
        return f"{count} of {len(self.v_sink)} visual tokens are V-sinks {by}." if count else f"No V-sinks {by}."

    def where(self, token: int) -> str:
        """Where a visual token lies in the picture, in words."""
        for index, sheet in enumerate(self.sheets):
            place = sheet.find(token)
            if place and sheet.box is None:
                return f"visual token {token}"
            if place:
                on = f"sheet {index}, " if len(self.sheets) > 1 else ""
                return f"{on}patch row {place[0]}, column {place[1]}"
        return f"visual token {token}, outside of the picture"

    def explain(self, token: int, layer: int | None = None) -> str:
        """Why one visual token is in its group, at a layer (or by its V-verdict alone), in one sentence."""
        where, facts = self.where(token), []
        if self.loudest is not None:
            facts.append(
                f"encoder norm {self.norm_ratio[token]:.2g} x and attention {self.encoder_share[token]:.2g} x the median"
            )
        if layer is not None:
            facts.append(
                f"layer {layer}: attention {self.llm_share[layer, token]:.2g} x the median, Value {self.value_ratio[layer, token]:.2g} x the mean"
            )
        if self.v_sink[token]:
            assert self.v_verdict is not None and self.loudest is not None
            why = _reason(self.v_verdict, 0, int(self.loudest[token]))
            return f"V-sink ({where}): {why}; {'; '.join(facts)}."
        if layer is not None and self.l_sink[layer, token]:
            doubt = _LOOKED_AT if self.l_verdict.criterion == AttentionShare.name else ""
            return f"L-sink ({where}): {_reason(self.l_verdict, layer, token)}; {'; '.join(facts)}.{doubt}"
        return f"ordinary ({where}): {'; '.join(facts)}."


def classify(
    seen: Observation,
    sheets: tuple[Sheet, ...],
    *,
    v_sink: str | Criterion = "auto",
    l_sink: str | Criterion = "auto",
    merged: Merged = "any",
) -> SinkMap:
    """Sort visual tokens into V-sinks, L-sinks and ordinary ones.

    Args:
        seen: what the unmodified model did with the prompt.
        sheets: where its visual tokens lie in the picture.
        v_sink: criterion for V-sinks, by name (see ``CRITERIA``) or as an object.
        l_sink: criterion for L-sinks.
        merged: a token of several patches is a V-sink when any, most (more than half) or all of them are sinks.

    Raises:
        SinkgateError: no criterion has that name, or ``merged`` is none of the three.
    """
    patches = classify_patches(seen, len(seen.visual), v_sink, merged)
    l_verdict = criterion(l_sink)(Signals(seen.hidden, seen.visual, seen.attention))
    return SinkMap(
        v_sink=patches.v_sink,
        l_sink=l_verdict.mask & ~patches.v_sink,
        v_verdict=patches.verdict,
        l_verdict=l_verdict,
        sheets=sheets,
        loudest=patches.loudest,
        encoder_share=patches.share,
        llm_share=over_median(seen.attention),
        norm_ratio=patches.norm_ratio,
        value_ratio=seen.value_norms[:, seen.visual] / seen.value_norms.mean(1, keepdim=True),
    )


@dataclass(frozen=True)
class PatchVerdict:
    """What the encoder alone says of the visual tokens; the fields of a `SinkMap` that do not depend on the LLM."""

    v_sink: Tensor
    verdict: Verdict | None
    loudest: Tensor | None
    share: Tensor
    norm_ratio: Tensor


def classify_patches(
    seen: PatchObservation, count: int, v_sink: str | Criterion = "auto", merged: Merged = "any"
) -> PatchVerdict:
    """V-sinks among ``count`` visual tokens, by what was seen of the patches; the arguments are those of `classify`.

    Raises:
        SinkgateError: no criterion has that name, or ``merged`` is none of the three.
    """
    decide, feeds = criterion(v_sink), seen.token_of_patch
    if merged not in _PARTS:
        raise SinkgateError(f"merged is {merged!r}; expected one of {', '.join(_PARTS)}")
    none, ones = torch.zeros(count, dtype=torch.bool), torch.ones(count)
    if seen.features is None or seen.encoder_attention is None:
        return PatchVerdict(none, None, None, ones, ones)
    judged = torch.arange(len(seen.features)) if feeds is None else (feeds >= 0).nonzero()[:, 0]
    attention = seen.encoder_attention[judged]
    verdict = decide(Signals(seen.features[None], judged, attention[None]))
    if feeds is None:
        return PatchVerdict(none, verdict, None, ones, ones)
    token = feeds[judged]
    loudest = _loudest_by_token(verdict.score[0], token, count)
    norms = torch.linalg.vector_norm(seen.features[judged].float(), dim=-1)
    return PatchVerdict(
        _PARTS[merged](_mean_by_token(verdict.mask[0].float(), token, count)),
        verdict,
        loudest,
        over_median(attention)[loudest],
        over_median(norms)[loudest],
    )


_PARTS = {"any": lambda share: share > 0, "most": lambda share: share > 0.5, "all": lambda share: share == 1}


def _mean_by_token(values: Tensor, token: Tensor, count: int) -> Tensor:
    return torch.zeros(count).scatter_reduce(0, token, values, "mean", include_self=False)


def _loudest_by_token(score: Tensor, token: Tensor, count: int) -> Tensor:
    order = score.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return order[torch.zeros(count, dtype=torch.long).scatter_reduce(0, token, rank, "amax", include_self=False)]


def criterion(choice: str | Criterion) -> Criterion:
    """A criterion by name, or the object itself.

    Raises:
        SinkgateError: no criterion has that name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in CRITERIA:
        raise SinkgateError(f"no criterion is called {choice!r}; there are: {', '.join(CRITERIA)}")
    return CRITERIA[choice]


def _reason(verdict: Verdict, layer: int, token: int) -> str:
    at = f" in dimension {int(verdict.dimension[layer, token])}" if verdict.dimension is not None else ""
    return (
        f"{verdict.unit} is {verdict.score[layer, token]:.3g}{at}, at least {verdict.threshold[layer, 0]:.3g} is a sink"
    )


def _dimension_list(verdict: Verdict) -> str:
    return f", dimensions {', '.join(map(str, verdict.dimensions))}" if verdict.dimensions else ""


def ranges(numbers: list[int]) -> str:
    """Rising whole numbers in words: [1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
