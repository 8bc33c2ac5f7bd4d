"""Sink dimensions: the rule that separates them from channels that carry content, and the evidence for each.

Shapes: G layers, T all tokens, D channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median as median_of
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkgate.errors import SinkgateError

# Thresholds of ``gather_evidence``. Defaults chosen by us; the paper does not say how its dimensions were found.
RATIO = 100.0  # of the spike over the layer's median magnitude
SHARP = 50.0  # of the spike over its own token's median magnitude
DOMINANT = 0.05  # of the spike's square in its token's squared norm: 0.4 to 0.99 in SmolLM2's sinks, 0.03 in channels that spike beside them
AGREE = 0.9  # of the loud tokens that share a sign
DISTINCT = 10.0  # of loud tokens over quiet ones
TINY = 1e-12


@dataclass(frozen=True)
class DimensionEvidence:
    """Measures by which a channel is a sink dimension, or that the loudest channel lacks.

    Measured at the layer where ``ratio`` is highest; loud tokens are those within a factor ``DISTINCT`` of the spike.

    Attributes:
        dimension: index of the channel.
        ratio: the spike over the median magnitude of its layer.
        sharpness: the spike over the median magnitude of its own token.
        distinctiveness: the widest gap between the k loudest tokens and all but k of the rest, a ratio.
        layers: where it spikes; (): it is no sink dimension.
        share: loud tokens among all, in [0, 1].
        prompts: how many showed it.
        confidence: in [0, 1], defined by us: (prompts that showed it) / (prompts run + 1), times log(ratio) / log(1000) up to 1.
            The first factor is biased towards 0 for few prompts, even if all show the dimension: one gives 0.5 at most, the twelve
            of ``discover`` 0.92, 24 give 0.96. So confidences from different numbers of prompts cannot be compared. 1 needs many prompts
            and the 1000 times of Sun et al.; 0 where it does not spike.
        dominance: the spike's square in the squared norm of its token, in [0, 1]; None in files written before it was measured.
        agreement: loud tokens of all its massive layers that share a sign, in [0.5, 1]; None in files written before it was measured.
        first: whether the sequence's first position carries it, as the text sink does; None in files written before it was measured.
    """

    dimension: int
    ratio: float
    sharpness: float
    distinctiveness: float
    layers: tuple[int, ...]
    share: float
    prompts: int
    confidence: float
    dominance: float | None = None
    agreement: float | None = None
    first: bool | None = None


@dataclass(frozen=True)
class Evidence:
    """The sink dimensions of one side of a model, surest first, and its loudest channel, sink dimension or not.

    ``width``: channels of a state, D. ``finds``: in how many prompts each criterion, by its name in ``CRITERIA``, calls a visual token
    or patch a sink; None where only hidden states were at hand. Both None in files written before they were kept.
    """

    dimensions: tuple[DimensionEvidence, ...]
    loudest: DimensionEvidence
    width: int | None = None
    finds: dict[str, int] | None = None


def gather_evidence(
    hidden: Tensor,
    *,
    ratio: float = RATIO,
    sharp: float = SHARP,
    dominant: float = DOMINANT,
    agree: float = AGREE,
    distinct: float = DISTINCT,
    most: int = 4,
) -> Evidence:
    """Measure which channels spike in one prompt, and how clearly.

    A sink dimension differs from a channel that carries content by four properties, none of them the number of loud tokens:

    1. Massive: in some layer a token reaches ``ratio`` times the layer's median magnitude.
    2. Sharp within that token: it reaches ``sharp`` times the token's own median and holds ``dominant`` of its squared
       norm. That excludes tokens that are loud in every channel, and channels that only accompany a spike.
    3. One sign: of the tokens within a factor ``distinct`` of the spike, over all layers where 1 and 2 hold, ``agree``
       share a sign. A sink writes the same value whatever the token shows; content has both signs.
    4. Two populations of tokens in that layer. Either some k tokens are ``distinct`` times as loud as all but k of the others (k below
       a quarter of the tokens, or one; so most are quiet), or the first position is itself loud and dominated by the channel, with the same sign, though the input of layer 0
       does not bring the spike along (an early layer writes it, as the text sink shows), and some token is quiet: ``distinct`` times below
       the spike. By the second way any share of the tokens may be sinks. It needs two layers or more, so it never applies to an encoder's features.

    Every measure is relative to its layer, so norm drift does not matter. The rule and its defaults are chosen by us; the
    paper does not say.

    Args:
        hidden: (G, T, D), any float dtype; layers in order, all tokens in order, text included.
        ratio: at least 1.
        sharp: at least 1.
        dominant: in [0, 1].
        agree: in [0.5, 1].
        distinct: above 1.
        most: dimensions to return at most.

    Example:
        >>> import torch
        >>> hidden = torch.randn(4, 40, 64)
        >>> hidden[1:, 0, 5] = 3000
        >>> [evidence.dimension for evidence in gather_evidence(hidden).dimensions]
        [5]
    """
    measures = torch.stack([measure(layer, ratio, dominant, distinct) for layer in hidden])
    return evidence_of(measures, ratio=ratio, sharp=sharp, dominant=dominant, agree=agree, distinct=distinct, most=most)


def evidence_of(
    measures: Tensor,
    *,
    ratio: float = RATIO,
    sharp: float = SHARP,
    dominant: float = DOMINANT,
    agree: float = AGREE,
    distinct: float = DISTINCT,
    most: int = 4,
) -> Evidence:
    """Return the evidence in the measures of all layers, (G, 10, D); arguments as in `gather_evidence`.

    ``ratio`` may be higher than the one that was measured with: `measure` is exact in all channels that reach it.
    """
    measures = measures.cpu()
    ratios, sharpness, dominance, gap, share, first, positive, loud, start, medians = measures.unbind(1)  # G, D each
    massive = (ratios >= ratio) & (sharpness >= sharp) & (dominance >= dominant)
    # the signs of a channel that is massive nowhere are counted in all layers
    counted = torch.where(massive.any(0), massive, True)
    signs = (positive * counted).sum(0) / (loud * counted).sum(0).clamp_min(1)
    agreement = torch.maximum(signs, 1 - signs)
    written = (start[0] < ratio * medians[0]) & (torch.arange(len(measures)) > 0)[:, None]
    carried = first.bool() & written & (share < 1)
    spikes = massive & (agreement >= agree) & ((gap >= distinct) | carried)

    def evidence(dimension: int, loudness: Tensor) -> DimensionEvidence:
        at = int(loudness[:, dimension].argmax()), dimension
        layers = tuple(layer for layer, spike in enumerate(spikes[:, dimension]) if spike)
        return DimensionEvidence(
            dimension,
            ratio=float(ratios[at]),
            sharpness=float(sharpness[at]),
            distinctiveness=float(gap[at]),
            layers=layers,
            share=float(share[at]),
            prompts=int(bool(layers)),
            confidence=confidence(float(ratios[at]), int(bool(layers)), 1),
            dominance=float(dominance[at]),
            agreement=float(agreement[dimension]),
            first=bool(carried[at]),
        )

    loudness = torch.where(spikes, ratios, 0.0)
    order = loudness.amax(0).argsort(descending=True)[: min(most, int(spikes.any(0).sum()))]
    return Evidence(
        tuple(evidence(int(dimension), loudness) for dimension in order),
        evidence(int(ratios.amax(0).argmax()), ratios),
        measures.shape[-1],
    )


def confidence(ratio: float, shown: int, prompts: int) -> float:
    """Return how sure a dimension is, in [0, 1], as ``DimensionEvidence`` defines it; the definition is chosen by us."""
    return shown / (prompts + 1) * min(1.0, math.log(max(ratio, 1.0), 1000))


def discover_dimensions(hidden: Tensor, *, ratio: float = RATIO, most: int = 4) -> tuple[int, ...]:
    """Return the sink dimensions that one prompt shows, loudest first; () where it shows none. See ``gather_evidence``.

    Shapes: hidden (G, T, D) -> at most ``most`` indices into D.
    """
    return tuple(evidence.dimension for evidence in gather_evidence(hidden, ratio=ratio, most=most).dimensions)


def measure(states: Tensor, ratio: float = RATIO, dominant: float = DOMINANT, distinct: float = DISTINCT) -> Tensor:
    """Measure the channels of one layer on its device, in two passes over the states and one over their magnitudes.

    Sharpness, dominance, gap, share, first, positive and loud are 0 in channels that stay below ``ratio``, except the loudest.

    Shapes: (T, D) -> (10, D), in order: ratio, sharpness, dominance, gap, share, first, positive loud tokens, loud tokens (see
    `gather_evidence`), magnitude at the first position, median magnitude of the layer.
    """
    magnitude = states.abs()
    peak, middle = magnitude.amax(0).float(), median(magnitude)
    measures = peak.new_zeros(10, len(peak))
    measures[0] = (peak / middle).nan_to_num(0, posinf=0)  # all but a few values zero: nothing to compare with
    measures[8], measures[9] = magnitude[0], middle
    some = (measures[0] >= measures[0].amax().clamp_max(ratio)).nonzero()[:, 0]
    signed, peak = states[:, some].float(), peak[some]
    channel = signed.abs()
    loudest: Any = channel.argmax(0)  # torch leaves the type of unique open
    tokens, who = loudest.unique(return_inverse=True)
    spiking = magnitude[tokens].float()
    measures[1, some] = peak / spiking.median(1).values.clamp_min(TINY)[who]
    measures[2, some] = peak.square() / spiking.square().sum(1).clamp_min(TINY)[who]
    measures[3, some] = _gap(channel)
    loud = channel >= peak / distinct
    measures[4, some] = loud.float().mean(0)
    same = signed[0].sign() == signed[tokens[who], torch.arange(len(some), device=some.device)].sign()
    fills = channel[0].square() >= dominant * magnitude[0].float().square().sum().clamp_min(TINY)
    measures[5, some] = (loud[0] & same & fills).float()
    measures[6, some] = (loud & (signed > 0)).sum(0).float()
    measures[7, some] = loud.sum(0).float()
    return measures


def median(magnitude: Tensor) -> Tensor:
    """Return the exact median of all values as float32, the lower of two in the middle; on the CPU by NumPy, many times faster."""
    if magnitude.device.type != "cpu":
        return magnitude.median().float()
    values, middle = magnitude.flatten().float().numpy(), (magnitude.numel() - 1) // 2
    return torch.tensor(np.partition(values, middle)[middle])


def _gap(magnitude: Tensor) -> Tensor:
    """Return the widest gap between a channel's k loudest tokens and all but k of the rest, (T, C) -> (C,) ratios.

    The k in between are allowed, since few populations are perfectly apart; k is below a quarter of the tokens, or one.
    """
    tokens = len(magnitude)
    falling = magnitude.sort(0, descending=True).values
    loudest = torch.arange(max(1, (tokens - 1) // 4), device=magnitude.device)
    rest = (2 * loudest + 2).clamp_max(tokens - 1)
    return (falling[loudest] / falling[rest].clamp_min(TINY)).amax(0)


def combine(evidence: Sequence[Evidence]) -> Evidence:
    """Combine the evidence of several prompts: medians over the prompts that show a dimension, layers that half of them show.

    With ``gather_evidence`` this is discovery on hidden states of any origin, no model needed:
    ``combine([gather_evidence(hidden) for hidden in ...])``, each hidden (L, P, D).

    Raises:
        SinkgateError: no prompts.
    """
    if not evidence:
        raise SinkgateError("no prompts to look at; give at least one, several for a reliable confidence")
    by_dimension: dict[int, list[DimensionEvidence]] = {}
    for one in evidence:
        for shown in one.dimensions:
            by_dimension.setdefault(shown.dimension, []).append(shown)
    joined = [_join(shown, len(evidence)) for shown in by_dimension.values()]
    joined.sort(key=lambda shown: (-shown.confidence, -shown.ratio))
    loudest = max((one.loudest for one in evidence), key=lambda loudest: loudest.ratio)
    counts = [one.finds for one in evidence if one.finds is not None]
    finds = {name: sum(each[name] for each in counts) for name in counts[0]} if len(counts) == len(evidence) else None
    return Evidence(tuple(joined), loudest, evidence[0].width, finds)


def _join(shown: list[DimensionEvidence], prompts: int) -> DimensionEvidence:
    times = Counter(layer for one in shown for layer in one.layers)
    ratio = median_of(one.ratio for one in shown)
    return replace(
        shown[0],
        ratio=ratio,
        sharpness=median_of(one.sharpness for one in shown),
        distinctiveness=median_of(one.distinctiveness for one in shown),
        layers=tuple(layer for layer in sorted(times) if 2 * times[layer] >= len(shown)),
        share=median_of(one.share for one in shown),
        prompts=len(shown),
        confidence=confidence(ratio, len(shown), prompts),
        dominance=median_of(one.dominance or 0.0 for one in shown),
        agreement=median_of(one.agreement or 0.0 for one in shown),
        first=2 * sum(bool(one.first) for one in shown) >= len(shown),
    )
