"""Named criteria that decide which tokens are sinks; pure functions of tensors.

Thresholds do not transfer between models: a fixed one flags most tokens of some and none of others
(residual norms grow with depth). So every criterion returns its scores beside its verdict, those defined here
compare a token with the median of its own layer, and each may find no sink.

Shapes: G layers, T all tokens, N judged tokens, D channels.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.sinks.evidence import RATIO, TINY
from sinkgate.sinks.states import HiddenStates, Reduction
from sinkgate.sinks.words import listed, numbered

TAU = 20.0  # of |h[d]| / RMS(h): Kang et al.; the paper does not say
FILLED = 0.7  # of a token's squared norm, where ``TAU`` would ask for more: 20 fills that much in SmolLM2, 576 wide


class Signals:
    """Measurements of tokens, from which criteria decide.

    A criterion that reads no more than ``norms``, ``values`` and ``attention`` costs one run of the model; one that reads whole
    states, a second.

    Args:
        states: hidden states at the input of each layer (or of the encoder's feature layer, G = 1), also as a tensor (G, T, D).
        judged: (N,) indices into T of the tokens to decide on.
        attention: (G, N), the mean attention that each of them receives, in [0, 1].
    """

    def __init__(self, states: Tensor | HiddenStates, judged: Tensor, attention: Tensor) -> None:
        self.states = HiddenStates.of(states) if isinstance(states, Tensor) else states
        self.judged, self.attention = judged, attention

    @cached_property
    def hidden(self) -> Tensor:
        """Hidden states of all tokens, (G, T, D) float32, by a second run of the model."""
        return self.states.tensor()

    @property
    def judged_hidden(self) -> Tensor:
        """Hidden states of the judged tokens, (G, N, D), likewise."""
        return self.hidden[:, self.judged]

    @property
    def norms(self) -> Tensor:
        """L2 norms of the judged tokens, (G, N)."""
        return self.states.norms[:, self.judged]

    def values(self, dims: tuple[int, ...]) -> Tensor:
        """Return the judged tokens' states in some channels, (G, N, len(dims))."""
        return self.states.values(dims)[:, self.judged]


@dataclass(frozen=True)
class Verdict:
    """Decision on each token, with its score.

    Shapes: mask (G, N) boolean; score (G, N) in units that ``unit`` names; a token is a sink where
    score >= threshold. ``dimension`` (G, N): the sink dimension of the largest magnitude, where the criterion reads any.
    """

    criterion: str
    unit: str
    mask: Tensor
    score: Tensor
    threshold: Tensor
    dimension: Tensor | None = None
    dimensions: tuple[int, ...] = ()

    @property
    def has_sinks(self) -> bool:
        """True where there is any sink."""
        return bool(self.mask.any())


class Criterion(Protocol):
    """Function of `Signals`."""

    name: ClassVar[str]

    def __call__(self, signals: Signals) -> Verdict: ...


def _set_dims(criterion: SinkDimensions | MassiveActivations) -> None:
    """Replace dimensions, given as a list, an array or a tensor, by a tuple of Python's own integers."""
    dims: Any = criterion.dims
    if dims is None:
        return
    try:
        plain = tuple(operator.index(each) for each in dims)
    except TypeError:
        plain = (-1,)
    if isinstance(dims, str | bytes) or any(each < 0 for each in plain):
        raise SinkgateError(f"sink dimensions are {dims!r}; expected whole numbers from 0, such as (1415, 2533)")
    object.__setattr__(criterion, "dims", plain)


@dataclass(frozen=True)
class SinkDimensions:
    """The paper's criterion: max over d in D_sink of \\|h[d]\\| >= tau (section 1).

    ``dims`` None discovers them on the prompt at hand; `sinkgate.find_sinks` takes those of the model instead. With
    ``normalize``, h is divided by its RMS first, as Kang et al. do with tau 20; the paper says neither tau nor whether it
    normalises, so both defaults are chosen by us. \\|h[d]\\| / RMS(h) is at most the root of the width, so 20 can only be
    reached where states are at least 400 wide: see ``tau_for``.
    """

    dims: tuple[int, ...] | None = None
    tau: float = TAU
    normalize: bool = True
    name: ClassVar[str] = "sink dimensions"

    def __post_init__(self) -> None:
        _set_dims(self)

    @property
    def reduction(self) -> Reduction:
        """Reduction that one run needs for a verdict."""
        return Reduction(self.dims or (), None if self.dims is not None else RATIO)

    def __call__(self, signals: Signals) -> Verdict:
        dims = signals.states.dimensions() if self.dims is None else self.dims
        threshold = torch.tensor(self.tau)
        if not self.normalize:
            return _by_dimensions(self.name, "|h[d]|", signals, dims, torch.tensor(1.0), threshold)
        rms = (signals.norms / math.sqrt(signals.states.width)).clamp_min(TINY)[..., None]
        return _by_dimensions(self.name, "|h[d]| / RMS(h)", signals, dims, rms, threshold)


@dataclass(frozen=True)
class MassiveActivations:
    """A spike against the layer's own median magnitude, so that norm drift does not matter (after Sun et al. 2024).

    A token is a sink where max over d of \\|h[d]\\| >= ``ratio`` times the median \\|h\\| of its layer over all tokens and
    channels, and >= ``minimum``. ``dims`` None takes those that ``discover_dimensions`` finds on the prompt at hand.
    Sun et al. use 1000 and 100.
    """

    ratio: float = 1000.0
    minimum: float = 100.0
    dims: tuple[int, ...] | None = None
    name: ClassVar[str] = "massive activations"

    def __post_init__(self) -> None:
        _set_dims(self)

    @property
    def reduction(self) -> Reduction:
        """Reduction that one run needs for a verdict."""
        return Reduction(self.dims or (), self.ratio)

    def __call__(self, signals: Signals) -> Verdict:
        dims = signals.states.dimensions(self.ratio) if self.dims is None else self.dims
        medians = signals.states.measures(self.ratio)[:, 9, 0].clamp_min(TINY)
        threshold = torch.maximum(torch.tensor(self.ratio), self.minimum / medians)[:, None]
        return _by_dimensions(self.name, "|h[d]| / median |h|", signals, dims, medians[:, None, None], threshold)


@dataclass(frozen=True)
class NormOutliers:
    """Tokens whose L2 norm lies far above the others' (Luo et al. find V-sinks of CLIP by norm >= 100).

    The threshold is ``threshold`` where given, else ``times`` the median norm of the layer's judged tokens; the factor 2 is a default chosen by us.
    """

    times: float = 2.0
    threshold: float | None = None
    name: ClassVar[str] = "norm outliers"

    def __call__(self, signals: Signals) -> Verdict:
        norms = signals.norms
        if self.threshold is not None:
            score, threshold, unit = norms, torch.tensor(self.threshold), "||h||"
        else:
            score, threshold, unit = over_median(norms), torch.tensor(self.times), "||h|| / median"
        return Verdict(self.name, unit, score >= threshold, score, threshold.expand(len(score), 1))


@dataclass(frozen=True)
class AttentionShare:
    """Tokens that receive at least ``times`` the median attention of the layer's judged tokens; the factor 5 is a default
    chosen by us.

    Such tokens may draw attention for any reason: on a model without real sinks they may show the object of the question.
    """

    times: float = 5.0
    name: ClassVar[str] = "attention share"

    def __call__(self, signals: Signals) -> Verdict:
        score = over_median(signals.attention.float())
        threshold = torch.full((len(score), 1), self.times)
        return Verdict(self.name, "attention / median", score >= threshold, score, threshold)


@dataclass(frozen=True)
class FirstThatFinds:
    """The verdict of the first criterion that finds a sink, of the last where none does. The order is chosen by us.

    It decides on tensors without a model, perhaps by another criterion for the next image. For a model "auto" is decided once
    and held: see `sinkgate.models.dimensions.sink_criteria`.
    """

    criteria: tuple[Criterion, ...] = (SinkDimensions(), MassiveActivations(), NormOutliers(), AttentionShare())
    name: ClassVar[str] = "auto"

    @property
    def reduction(self) -> Reduction:
        """Reduction that one run needs for a verdict."""
        return reduction_of(self.criteria)

    def __call__(self, signals: Signals) -> Verdict:
        verdict = self.criteria[0](signals)
        for criterion in self.criteria[1:]:
            if verdict.has_sinks:
                break
            verdict = criterion(signals)
        return verdict


def reduction_of(criteria: Iterable[Criterion]) -> Reduction:
    """Return the reduction that one run needs for some criteria: the union of their ``reduction``, where they have one."""
    reductions = [getattr(criterion, "reduction", Reduction()) for criterion in criteria]
    return reduce(Reduction.joined, reductions, Reduction())


@dataclass(frozen=True)
class Choice:
    """The criterion that is held for one side of a model, the vision encoder or the LLM.

    ``reason``: origin of its sink dimensions, "" where it has none or was given. ``tried``: names of the criteria that
    "auto" tried before it, all of which find no sinks on this model.
    """

    criterion: Criterion
    reason: str = ""
    tried: tuple[str, ...] = ()

    @property
    def dims(self) -> tuple[int, ...]:
        """Its sink dimensions, () where it has none."""
        return getattr(self.criterion, "dims", None) or ()

    def in_words(self, dims: tuple[int, ...] = ()) -> str:
        """Return the name with the dimensions (``dims``, where the criterion takes them from each prompt) and their origin."""
        dims = self.dims or dims
        numbers = f", {numbered('dimension', dims)}" if dims else ""
        return f"{self.criterion.name}{numbers} {self.reason}".rstrip()


@dataclass(frozen=True)
class SinkCriteria:
    """The criteria of both sides of a model, the same for every image. See `sinkgate.models.dimensions.sink_criteria`."""

    v_sink: Choice
    l_sink: Choice

    @property
    def settings(self) -> dict[str, Any]:
        """Both criteria with all their arguments, as text: part of what identifies a study."""
        return {"v_sink": repr(self.v_sink.criterion), "l_sink": repr(self.l_sink.criterion)}

    def __str__(self) -> str:
        named = f"V-sinks by {self.v_sink.in_words()}, L-sinks by {self.l_sink.in_words()}."
        return " ".join([named, *self.sentences()])

    def sentences(self) -> list[str]:
        """Return the criteria that "auto" tried before, in words."""
        if self.v_sink.tried == self.l_sink.tried:
            sides = [("", self.v_sink.tried)]
        else:
            sides = [(" in the encoder", self.v_sink.tried), (" in the LLM", self.l_sink.tried)]
        parts = [(listed(tried), "s" * (len(tried) == 1), side) for side, tried in sides if tried]
        return [f"{names[0].upper()}{names[1:]} find{s} none{side} on this model." for names, s, side in parts]


def tau_for(width: int) -> float:
    """Return the default of tau for states of this width: 20, or what fills 70 % of a token's squared norm where that is less.

    Example:
        >>> tau_for(4096), round(tau_for(64), 1)
        (20.0, 6.7)
    """
    return min(TAU, math.sqrt(FILLED * width))


#: Criteria by the name they have on the command line.
CRITERIA: dict[str, Criterion] = {
    "auto": FirstThatFinds(),
    "dimensions": SinkDimensions(),
    "massive": MassiveActivations(),
    "norm": NormOutliers(),
    "attention": AttentionShare(),
}


def read_criterion(text: str) -> Criterion:
    """Return the criterion that a text names: a key of ``CRITERIA``, or "dimensions" with dimensions, a threshold or both.

    Raises:
        SinkgateError: no criterion has that name, or what stands behind "dimensions" is something else.

    Example:
        >>> read_criterion("dimensions 1415,2533 tau 20")
        SinkDimensions(dims=(1415, 2533), tau=20.0, normalize=True)
    """
    if text in CRITERIA:
        return CRITERIA[text]
    if not text.startswith("dimensions "):
        raise SinkgateError(f"no criterion is called {text!r}; there are: {', '.join(CRITERIA)}")
    parts = re.fullmatch(r"dimensions((?:[\s,]+\d+)*)(?:\s+tau\s+(\d+(?:\.\d+)?(?:e-?\d+)?))?", text)
    if parts is None or not float(parts[2] or TAU):
        raise SinkgateError(f'the criterion is {text!r}; expected such as "dimensions 1415,2533 tau 20", tau above 0')
    dims = tuple(int(each) for each in re.findall(r"\d+", parts[1]))
    return SinkDimensions(dims or None, float(parts[2] or TAU))


def by_side(text: str) -> tuple[str, str]:
    """Return the criteria of V-sinks and of L-sinks that one text names: one for both, or two with a semicolon between.

    Raises:
        SinkgateError: there are more than two.

    Example:
        >>> by_side("norm"), by_side("dimensions 650; massive")
        (('norm', 'norm'), ('dimensions 650', 'massive'))
    """
    names = [name.strip() for name in text.split(";")]
    if len(names) > 2:
        raise SinkgateError(f"the criteria are {text!r}; expected two at most, of V-sinks and of L-sinks")
    return names[0], names[-1]


def _by_dimensions(
    name: str, unit: str, signals: Signals, dims: tuple[int, ...], scale: Tensor, threshold: Tensor
) -> Verdict:
    score, loudest = torch.zeros_like(signals.norms), None
    if dims:
        score, index = (signals.values(dims).abs() / scale).max(-1)
        loudest = torch.tensor(dims)[index]
    threshold = threshold.expand(len(score), 1)
    mask = (score >= threshold) & bool(dims)
    return Verdict(name, unit, mask, score, threshold, loudest, dims)


def over_median(values: Tensor) -> Tensor:
    """Return values over the median of their last dimension; any shape."""
    return values / values.median(-1, keepdim=True).values.clamp_min(TINY)
