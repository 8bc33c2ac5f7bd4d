"""Named criteria that decide which tokens are sinks; pure functions of tensors.

Thresholds do not transfer between models: a fixed one flags most tokens of some and none of others
(residual norms grow with depth). So every criterion gives its scores beside its verdict, those of ours
compare a token with the median of its own layer, and "none" is a possible answer of each.

Shapes: G layers, T all tokens, N judged tokens, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError

RATIO, DISTINCT, SHARP, RARE = 100.0, 10.0, 50.0, 0.1  # what ``gather_evidence`` asks of a sink dimension; ours


@dataclass(frozen=True)
class Signals:
    """What is known about tokens before any of them is called a sink.

    Shapes: hidden (G, T, D) at the input of each layer (or the encoder's feature layer, G = 1);
    judged (N,) indices into T of the tokens to decide on; attention (G, N), the mean attention that each of them
    receives, in [0, 1].
    """

    hidden: Tensor
    judged: Tensor
    attention: Tensor

    @property
    def judged_hidden(self) -> Tensor:
        """Hidden states of the judged tokens, (G, N, D)."""
        return self.hidden[:, self.judged]


@dataclass(frozen=True)
class Verdict:
    """Which tokens are sinks, and by how much.

    Shapes: mask (G, N) boolean; score (G, N) in units that ``unit`` names; a token is a sink where
    score >= threshold. ``dimension`` (G, N): the sink dimension that spoke loudest, where the criterion looks at any.
    """

    criterion: str
    unit: str
    mask: Tensor
    score: Tensor
    threshold: Tensor
    dimension: Tensor | None = None
    dimensions: tuple[int, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is any sink at all."""
        return bool(self.mask.any())


class Criterion(Protocol):
    """Anything that decides from ``Signals``."""

    name: ClassVar[str]

    def __call__(self, signals: Signals) -> Verdict: ...


@dataclass(frozen=True)
class SinkDimensions:
    """The paper's criterion: max over d in D_sink of \\|h[d]\\| >= tau (section 1).

    ``dims`` None discovers them on the model at hand. With ``normalize``, h is divided by its RMS first, as
    Kang et al. do with tau 20; the paper says neither tau nor whether it normalises, so both defaults are ours.
    \\|h[d]\\| / RMS(h) is at most the root of the width, so 20 can only be reached where states are at least 400 wide.
    """

    dims: tuple[int, ...] | None = None
    tau: float = 20.0
    normalize: bool = True
    name: ClassVar[str] = "sink dimensions"

    def __call__(self, signals: Signals) -> Verdict:
        dims = discover_dimensions(signals.hidden) if self.dims is None else self.dims
        hidden, threshold = signals.judged_hidden.float(), torch.tensor(self.tau)
        if not self.normalize:
            return _by_dimensions(self.name, "|h[d]|", hidden, torch.tensor(1.0), dims, threshold)
        rms = hidden.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        return _by_dimensions(self.name, "|h[d]| / RMS(h)", hidden, rms, dims, threshold)


@dataclass(frozen=True)
class MassiveActivations:
    """A spike against the layer's own median magnitude, so that norm drift does not matter (after Sun et al. 2024).

    A token is a sink where max over d of \\|h[d]\\| >= ``ratio`` times the median \\|h\\| of its layer over all tokens and
    channels, and >= ``minimum``. Only dimensions that ``discover_dimensions`` finds distinctive count. Sun et al.
    use 1000 and 100.
    """

    ratio: float = 1000.0
    minimum: float = 100.0
    name: ClassVar[str] = "massive activations"

    def __call__(self, signals: Signals) -> Verdict:
        dims = discover_dimensions(signals.hidden, ratio=self.ratio)
        median = _median_magnitude(signals.hidden)
        threshold = torch.maximum(torch.tensor(self.ratio), self.minimum / median)[:, None]
        return _by_dimensions(
            self.name, "|h[d]| / median |h|", signals.judged_hidden, median[:, None, None], dims, threshold
        )


@dataclass(frozen=True)
class NormOutliers:
    """Tokens whose L2 norm lies far above the others' (Luo et al. find V-sinks of CLIP by norm >= 100).

    The threshold is ``threshold`` where given, else ``times`` the median norm of the layer's judged tokens; the factor 2 is ours.
    """

    times: float = 2.0
    threshold: float | None = None
    name: ClassVar[str] = "norm outliers"

    def __call__(self, signals: Signals) -> Verdict:
        norms = torch.linalg.vector_norm(signals.judged_hidden.float(), dim=-1)
        if self.threshold is not None:
            score, threshold, unit = norms, torch.tensor(self.threshold), "||h||"
        else:
            score, threshold, unit = over_median(norms), torch.tensor(self.times), "||h|| / median"
        return Verdict(self.name, unit, score >= threshold, score, threshold.expand(len(score), 1))


@dataclass(frozen=True)
class AttentionShare:
    """Tokens that receive at least ``times`` the median attention of the layer's judged tokens; the factor 5 is ours.

    It names what draws attention, whatever the reason: on a model without real sinks that may be the object asked for.
    """

    times: float = 5.0
    name: ClassVar[str] = "attention share"

    def __call__(self, signals: Signals) -> Verdict:
        score = over_median(signals.attention.float())
        threshold = torch.full((len(score), 1), self.times)
        return Verdict(self.name, "attention / median", score >= threshold, score, threshold)


@dataclass(frozen=True)
class FirstThatFinds:
    """The verdict of the first criterion that finds a sink, of the last where none does. The order is ours."""

    criteria: tuple[Criterion, ...] = (MassiveActivations(), NormOutliers(), AttentionShare())
    name: ClassVar[str] = "auto"

    def __call__(self, signals: Signals) -> Verdict:
        verdict = self.criteria[0](signals)
        for criterion in self.criteria[1:]:
            if verdict.found:
                break
            verdict = criterion(signals)
        return verdict


#: Criteria by the name they have on the command line.
CRITERIA: dict[str, Criterion] = {
    "auto": FirstThatFinds(),
    "dimensions": SinkDimensions(),
    "massive": MassiveActivations(),
    "norm": NormOutliers(),
    "attention": AttentionShare(),
}


@dataclass(frozen=True)
class DimensionEvidence:
    """Why a channel is called a sink dimension, or how far the loudest channel is from being one.

    ``ratio``: the spike over the median magnitude of its layer. ``sharpness``: over the median magnitude of its own token.
    ``distinctiveness``: over the channel's magnitude in the loudest token beyond the few that may spike. All three at the
    layer where the ratio is highest. ``layers`` where it spikes, (): it is no sink dimension. ``share`` of the
    tokens, in [0, 1], that come within the distinctiveness asked for of the spike. ``prompts`` that showed it.
    ``confidence`` in [0, 1], ours: (prompts that showed it) / (prompts seen + 1), times log(ratio) / log(1000) up to 1.
    So one prompt gives 0.5 at most, and full marks need many prompts and the 1000 times of Sun et al.; 0 where it does not spike.
    """

    dimension: int
    ratio: float
    sharpness: float
    distinctiveness: float
    layers: tuple[int, ...]
    share: float
    prompts: int
    confidence: float


@dataclass(frozen=True)
class Evidence:
    """The sink dimensions of one side of a model, surest first, and its loudest channel, sink dimension or not."""

    dimensions: tuple[DimensionEvidence, ...]
    loudest: DimensionEvidence


def gather_evidence(
    hidden: Tensor,
    *,
    ratio: float = RATIO,
    distinct: float = DISTINCT,
    sharp: float = SHARP,
    rare: float = RARE,
    most: int = 4,
) -> Evidence:
    """Which channels spike in one prompt, and how clearly.

    A sink dimension is, in one and the same layer, (1) massive: some token reaches ``ratio`` times the layer's median
    magnitude; (2) sharp: and ``sharp`` times its own median, so that a token loud in every channel names none, nor does what
    rides along with a spike; (3) rare and distinctive: only a share ``rare`` of the tokens (always one) may come within
    a factor ``distinct`` of it; where more are loud, the channel carries content. Every measure is relative to its layer, so norm
    drift does not matter. All defaults are ours.

    Shapes: hidden (G, T, D), any float dtype; all tokens, text included: the text sink at position 0 shows the
    dimensions best.
    """
    measured = [_measure(layer.float().abs(), ratio, distinct, rare) for layer in hidden]  # one in memory at a time
    ratios, sharpness, distinctiveness, share = torch.stack(measured, 1)  # G, D each
    spikes = (ratios >= ratio) & (sharpness >= sharp) & (distinctiveness >= distinct)

    def evidence(dimension: int, loudness: Tensor) -> DimensionEvidence:
        at = int(loudness[:, dimension].argmax()), dimension
        layers = tuple(spikes[:, dimension].nonzero()[:, 0].tolist())
        return DimensionEvidence(
            dimension,
            ratio=float(ratios[at]),
            sharpness=float(sharpness[at]),
            distinctiveness=float(distinctiveness[at]),
            layers=layers,
            share=float(share[at]),
            prompts=int(bool(layers)),
            confidence=confidence(float(ratios[at]), int(bool(layers)), 1),
        )

    loudness = torch.where(spikes, ratios, 0.0)
    order = loudness.amax(0).argsort(descending=True)[: min(most, int(spikes.any(0).sum()))]
    return Evidence(
        tuple(evidence(int(dimension), loudness) for dimension in order),
        evidence(int(ratios.amax(0).argmax()), ratios),
    )


def confidence(ratio: float, shown: int, prompts: int) -> float:
    """How sure a dimension is, in [0, 1], as ``DimensionEvidence`` defines it; the definition is ours."""
    return shown / (prompts + 1) * min(1.0, math.log(max(ratio, 1.0), 1000))


def discover_dimensions(
    hidden: Tensor,
    *,
    ratio: float = RATIO,
    distinct: float = DISTINCT,
    sharp: float = SHARP,
    rare: float = RARE,
    most: int = 4,
) -> tuple[int, ...]:
    """Channels in which a few tokens spike, loudest first; () where the model has none. See ``gather_evidence``.

    Shapes: hidden (G, T, D) -> at most ``most`` indices into D.
    """
    found = gather_evidence(hidden, ratio=ratio, distinct=distinct, sharp=sharp, rare=rare, most=most)
    return tuple(evidence.dimension for evidence in found.dimensions)


def _measure(magnitude: Tensor, ratio: float, distinct: float, rare: float) -> Tensor:
    """Ratio, sharpness, distinctiveness and share in one layer: (T, D) -> (4, D); the last three 0 in quiet channels."""
    tokens, width = magnitude.shape
    median = magnitude.median()
    peak, who = magnitude.max(0)
    measures = magnitude.new_zeros(4, width)
    measures[0] = (peak / median).nan_to_num(0, posinf=0)  # all but a few values zero: nothing to compare with
    loud = measures[0] >= min(ratio, float(measures[0].max()))
    peak, few = peak[loud], min(tokens - 1, max(1, int(rare * tokens)))
    own = magnitude[who[loud]].median(1).values
    others = magnitude[:, loud].topk(few + 1, dim=0).values[-1]  # the loudest of those that may not spike
    measures[1, loud] = peak / own.clamp_min(1e-12)
    measures[2, loud] = peak / others.clamp_min(1e-12)
    measures[3, loud] = (magnitude[:, loud] >= peak / distinct).float().mean(0)
    return measures


def _by_dimensions(
    name: str, unit: str, hidden: Tensor, scale: Tensor, dims: tuple[int, ...], threshold: Tensor
) -> Verdict:
    width = hidden.shape[-1]
    outside = [d for d in dims if not 0 <= d < width]
    if outside:
        raise SinkgateError(
            f"there is no dimension {outside[0]}: hidden states here are {width} wide; give dims of this model"
        )
    threshold = threshold.expand(len(hidden), 1)
    if not dims:
        none = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        return Verdict(name, unit, none, torch.zeros(hidden.shape[:2]), threshold)
    score, loudest = (hidden[..., list(dims)].float().abs() / scale).max(-1)
    return Verdict(name, unit, score >= threshold, score, threshold, torch.tensor(dims)[loudest], dims)


def _median_magnitude(hidden: Tensor) -> Tensor:
    return torch.stack([layer.float().abs().median() for layer in hidden]).clamp_min(1e-12)


def over_median(values: Tensor) -> Tensor:
    """Values over the median of their last dimension; any shape."""
    return values / values.median(-1, keepdim=True).values.clamp_min(1e-12)
