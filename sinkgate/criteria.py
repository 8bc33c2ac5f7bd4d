"""Named criteria that decide which tokens are sinks; pure functions of tensors.

Thresholds do not transfer between models: a fixed one flags most tokens of some and none of others
(residual norms grow with depth). So every criterion gives its scores beside its verdict, those of ours
compare a token with the median of its own layer, and "none" is a possible answer of each.

Shapes: G layers, T all tokens, N judged tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


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
    """

    dims: tuple[int, ...] | None = None
    tau: float = 20.0
    normalize: bool = True
    name: ClassVar[str] = "sink dimensions"

    def __call__(self, signals: Signals) -> Verdict:
        dims = discover_dimensions(signals.hidden) if self.dims is None else self.dims
        hidden = signals.judged_hidden.float()
        size = hidden.abs()
        if self.normalize:
            size = size / hidden.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        unit = "|h[d]| / RMS(h)" if self.normalize else "|h[d]|"
        return _by_dimensions(self.name, unit, size, dims, torch.tensor(self.tau))


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
        size = signals.judged_hidden.float().abs() / median[:, None, None]
        threshold = torch.maximum(torch.tensor(self.ratio), self.minimum / median)[:, None]
        return _by_dimensions(self.name, "|h[d]| / median |h|", size, dims, threshold)


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


def discover_dimensions(
    hidden: Tensor, *, ratio: float = 100.0, distinct: float = 10.0, most: int = 4
) -> tuple[int, ...]:
    """Channels in which a few tokens spike, loudest first; () where the model has none.

    A sink dimension is (1) massive: some token reaches ``ratio`` times the median magnitude of its layer, and
    (2) distinctive: that token reaches ``distinct`` times the channel's own median over tokens. A channel that is
    large everywhere is a content channel. The defaults are ours; the paper's own dimensions pass both tests.

    Shapes: hidden (G, T, D) -> at most ``most`` indices into D.
    """
    magnitude = hidden.float().abs()
    peak = magnitude.amax(1)  # G, D
    massive = peak / _median_magnitude(hidden)[:, None]
    distinctive = peak / magnitude.median(1).values.clamp_min(1e-12)
    loudness = torch.where((massive >= ratio) & (distinctive >= distinct), massive, 0.0).amax(0)
    order = loudness.argsort(descending=True)[:most]
    return tuple(int(d) for d in order if loudness[d] > 0)


def _by_dimensions(name: str, unit: str, size: Tensor, dims: tuple[int, ...], threshold: Tensor) -> Verdict:
    width = size.shape[-1]
    outside = [d for d in dims if not 0 <= d < width]
    if outside:
        raise ValueError(
            f"there is no dimension {outside[0]}: hidden states here are {width} wide; give dims of this model"
        )
    threshold = threshold.expand(len(size), 1)
    if not dims:
        none = torch.zeros(size.shape[:2], dtype=torch.bool)
        return Verdict(name, unit, none, torch.zeros(size.shape[:2]), threshold)
    score, loudest = size[..., list(dims)].max(-1)
    return Verdict(name, unit, score >= threshold, score, threshold, torch.tensor(dims)[loudest], dims)


def _median_magnitude(hidden: Tensor) -> Tensor:
    return hidden.float().abs().flatten(1).median(1).values.clamp_min(1e-12)


def over_median(values: Tensor) -> Tensor:
    """Values over the median of their last dimension; any shape."""
    return values / values.median(-1, keepdim=True).values.clamp_min(1e-12)
