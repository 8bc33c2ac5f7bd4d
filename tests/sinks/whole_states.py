"""Criteria and the rule for sink dimensions on whole states, without summaries: the reference that streaming is held against."""

import torch
from torch import Tensor

from sinkgate.sinks.criteria import MassiveActivations, NormOutliers, SinkDimensions
from sinkgate.sinks.evidence import AGREE, DISTINCT, DOMINANT, RATIO, SHARP

TINY = 1e-12


def mask_and_score(criterion, hidden: Tensor, judged: Tensor) -> tuple[Tensor, Tensor]:
    """Sinks among the judged tokens of (G, T, D) states, (G, N), with their scores."""
    states = hidden.float()[:, judged]
    norms = states.norm(dim=-1)
    if isinstance(criterion, NormOutliers):
        score = norms / norms.median(-1, keepdim=True).values.clamp_min(TINY)
        return score >= criterion.times, score
    ratio = criterion.ratio if isinstance(criterion, MassiveActivations) else RATIO
    dims = dimensions(hidden, ratio) if criterion.dims is None else criterion.dims
    if not dims:
        return torch.zeros_like(norms, dtype=torch.bool), torch.zeros_like(norms)
    spike = states[..., list(dims)].abs().amax(-1)
    if isinstance(criterion, SinkDimensions):
        score = spike / states.square().mean(-1).sqrt().clamp_min(TINY)
        return score >= criterion.tau, score
    medians = torch.stack([layer.float().abs().median() for layer in hidden])[:, None].clamp_min(TINY)
    return (spike >= criterion.ratio * medians) & (spike >= criterion.minimum), spike / medians


def dimensions(hidden: Tensor, ratio: float = RATIO, most: int = 4) -> tuple[int, ...]:
    """The four traits of `sinkgate.gather_evidence`, channel by channel."""
    states = hidden.float()
    magnitude = states.abs()
    medians = torch.stack([layer.median() for layer in magnitude])
    ratios = (magnitude.amax(1) / medians[:, None]).nan_to_num(0, posinf=0)
    loudness = {}
    for channel in range(states.shape[-1]):
        layers = [layer for layer in range(len(states)) if _is_massive(magnitude[layer], channel, ratios, layer, ratio)]
        loud = {at: magnitude[at, :, channel] >= magnitude[at, :, channel].max() / DISTINCT for at in layers}
        signs = torch.cat([states[at, loud[at], channel] > 0 for at in layers]) if layers else torch.tensor([True])
        share = signs.float().mean()
        if max(share, 1 - share) < AGREE:
            continue
        brought = magnitude[0, 0, channel] >= ratio * medians[0]
        spikes = [at for at in layers if _two_populations(states[at], loud[at], channel, at > 0 and not brought)]
        if spikes:
            loudness[channel] = max(float(ratios[at, channel]) for at in spikes)
    return tuple(sorted(loudness, key=lambda channel: -loudness[channel])[:most])


def _is_massive(magnitude: Tensor, channel: int, ratios: Tensor, layer: int, ratio: float) -> bool:
    token = magnitude[magnitude[:, channel].argmax()]
    sharp = token[channel] >= SHARP * token.median().clamp_min(TINY)
    return bool(
        ratios[layer, channel] >= ratio and sharp and token[channel] ** 2 >= DOMINANT * (token**2).sum().clamp_min(TINY)
    )


def _two_populations(states: Tensor, loud: Tensor, channel: int, written: bool) -> bool:
    values = states[:, channel]
    falling = values.abs().sort(descending=True).values
    tokens = len(values)
    for count in range(1, max(1, (tokens - 1) // 4) + 1):
        if falling[count - 1] >= DISTINCT * falling[min(2 * count, tokens - 1)].clamp_min(TINY):
            return True
    same = values[0].sign() == values[values.abs().argmax()].sign()
    fills = values[0] ** 2 >= DOMINANT * states[0].square().sum().clamp_min(TINY)
    return bool(written and not loud.all() and loud[0] and same and fills)
