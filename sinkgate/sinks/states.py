"""Hidden states, one layer at a time: the few numbers that criteria read, reduced on the device that holds the states.

Shapes: G layers, T tokens, D channels, C kept channels, S sampled values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.sinks.evidence import RATIO, TINY, Evidence, evidence_of, measure, median

SAMPLED = 1 << 16  # values of a layer that its median is estimated from: one standard deviation is half a percent

Result = TypeVar("Result")


class Layers(Protocol):
    """Call a reduction on the states (T, D) of each layer in order, and return its results."""

    def __call__(self, reduce: Callable[[Tensor], Result], /) -> list[Result]: ...


@dataclass(frozen=True)
class LayerSummary:
    """One layer's states (T, D), reduced.

    Shapes: norms (T,) float32; values (T, C) in the kept channels, float32; sample (S,) of all magnitudes; measures as
    `sinkgate.sinks.evidence.measure` returns them, and `peaks` (T,), each None where it was not wanted.
    """

    width: int
    norms: Tensor
    values: Tensor
    sample: Tensor
    measures: Tensor | None
    peaks: Tensor | None


@dataclass(frozen=True)
class Reduction:
    """Reduce the states (T, D) of a layer to a `LayerSummary`, on their device.

    Args:
        channels: indices below D whose values are kept.
        ratio: measure every channel, those with a spike of ``ratio`` times the median in full; None leaves that out.
        peaks: compute `peaks`, a median for each token.

    Raises:
        SinkgateError: the states have no such channel.
    """

    channels: tuple[int, ...] = ()
    ratio: float | None = None
    peaks: bool = False

    def __call__(self, states: Tensor) -> LayerSummary:
        states = states.float() if states.dtype == torch.float64 else states
        width = states.shape[-1]
        if outside := [channel for channel in self.channels if not 0 <= channel < width]:
            raise SinkgateError(
                f"there is no dimension {outside[0]}: hidden states here are {width} wide; give dims of this model, as `sinkgate dimensions` and sg.discover() find them"
            )
        step = max(1, states.numel() // SAMPLED)
        while math.gcd(step, width) > 1:  # so that every channel is in the sample
            step += 1
        return LayerSummary(
            width,
            norms=norms(states),
            values=torch.cat([states[:, each : each + 1] for each in self.channels] or [states[:, :0]], 1).float(),
            sample=states.flatten()[::step].abs(),
            measures=None if self.ratio is None else measure(states, self.ratio),
            peaks=peaks(states) if self.peaks else None,
        )

    def joined(self, other: Reduction) -> Reduction:
        """Return a reduction that keeps what either keeps."""
        ratios = [each.ratio for each in (self, other) if each.ratio is not None]
        channels = tuple(sorted({*self.channels, *other.channels}))
        return Reduction(channels, min(ratios, default=None), self.peaks or other.peaks)


class HiddenStates:
    """Hidden states of one prompt, of which summaries are held and nothing as wide as a state.

    A number that the summaries lack costs another run over the layers: of a tensor, or of the model.

    Args:
        layers: function that calls a reduction on each layer's states as they pass.
        reduction: what to keep of each layer.
        summaries: the results of ``reduction``, where a run has given them already.

    Example:
        >>> states = HiddenStates.of(torch.randn(4, 40, 64))
        >>> states.norms.shape, states.values((5, 7)).shape
        (torch.Size([4, 40]), torch.Size([4, 40, 2]))
    """

    def __init__(
        self, layers: Layers, reduction: Reduction | None = None, summaries: Sequence[LayerSummary] = ()
    ) -> None:
        self.layers, self._reduction, self._summaries = layers, reduction or Reduction(), summaries

    @classmethod
    def of(cls, hidden: Tensor) -> HiddenStates:
        """Return the states of a tensor (G, T, D) of any float dtype."""

        def layers(reduce: Callable[[Tensor], Result], /) -> list[Result]:
            return [reduce(layer) for layer in hidden]

        return cls(layers)

    def tensor(self) -> Tensor:
        """Return all states by another run, (G, T, D) float32 on the CPU."""
        return torch.stack(self.layers(lambda states: states.float().cpu()))

    @property
    def width(self) -> int:
        """Channels of a state, D."""
        return self._summarised()[0].width

    @cached_property
    def norms(self) -> Tensor:
        """L2 norms, (G, T) float32."""
        return _stacked([layer.norms for layer in self._summarised()])

    @property
    def finite(self) -> bool:
        """Return whether all states are finite numbers, and their norms too."""
        return bool(self.norms.isfinite().all())

    @cached_property
    def sampled_medians(self) -> Tensor:
        """Median magnitude of each layer, (G,), estimated from `SAMPLED` values, to within about one percent."""
        samples = _stacked([layer.sample for layer in self._summarised()])
        return torch.stack([median(sample) for sample in samples]).clamp_min(TINY)

    def values(self, channels: Iterable[int]) -> Tensor:
        """Return the states in some channels, (G, T, C) float32.

        Raises:
            SinkgateError: there is no such channel.
        """
        wanted = tuple(channels)
        summaries = self._summarised(Reduction(wanted))
        index = self._reduction.channels.index
        return _stacked([layer.values for layer in summaries])[..., [index(channel) for channel in wanted]]

    def measures(self, ratio: float = RATIO) -> Tensor:
        """Return the measures of all channels, (G, 10, D); see `sinkgate.sinks.evidence.measure`."""
        summaries = self._summarised(Reduction(ratio=ratio))
        return _stacked([layer.measures for layer in summaries if layer.measures is not None])

    @property
    def peaks(self) -> Tensor:
        """Largest over median magnitude of each state, (G, T)."""
        summaries = self._summarised(Reduction(peaks=True))
        return _stacked([layer.peaks for layer in summaries if layer.peaks is not None])

    def evidence(self, ratio: float = RATIO) -> Evidence:
        """Return the evidence for sink dimensions, as `sinkgate.gather_evidence` does."""
        return evidence_of(self.measures(ratio), ratio=ratio)

    def dimensions(self, ratio: float = RATIO) -> tuple[int, ...]:
        """Return the sink dimensions, loudest first."""
        return tuple(each.dimension for each in self.evidence(ratio).dimensions)

    def _summarised(self, needed: Reduction | None = None) -> Sequence[LayerSummary]:
        needed = self._reduction.joined(needed or Reduction())
        if needed != self._reduction or not self._summaries:
            self._reduction, self._summaries = needed, self.layers(needed)
        return self._summaries


def norms(states: Tensor) -> Tensor:
    """Return L2 norms, (..., D) -> (...), summed in float32."""
    linalg: Any = torch.linalg  # without types
    return linalg.vector_norm(states, dim=-1, dtype=torch.float32)


def peaks(states: Tensor) -> Tensor:
    """Return the largest over the median magnitude of each state, (..., D) -> (...)."""
    magnitude = states.abs().float()
    return magnitude.amax(-1) / magnitude.median(-1).values.clamp_min(TINY)


def _stacked(layers: Sequence[Tensor]) -> Tensor:
    """Return tensors of layers that may lie on several devices as one on the CPU."""
    return torch.stack([layer.to(layers[0].device) for layer in layers]).cpu()
