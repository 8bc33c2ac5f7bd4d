"""The `Method` protocol: fixed gates, learned gates, published baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from math import inf, isfinite
from re import sub
from typing import Any, Protocol

import torch
from torch import nn

from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import Scales
from sinkgate.errors import GateError, SinkgateError
from sinkgate.models.batch import Batch
from sinkgate.models.finder import SinkFinder
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import AnyGates
from sinkgate.sinks.numbers import index

UNMODIFIED = "unmodified"  # name of the model without a method


class Method(Protocol):
    """A change of what a model does with visual tokens, within a block. A method that learns is an `nn.Module` with only its own parameters."""

    @property
    def criterion(self) -> str | None:
        """Criterion of the sinks that the method needs, as `LSGConfig` holds it; None for the default."""
        ...

    @property
    def uses_l_sinks(self) -> bool:
        """True where L-sinks and ordinary tokens are treated differently."""
        ...

    def first_layer(self, vlm: VLM) -> int:
        """Return the index, in ``vlm.adapter.all_layers``, of the lowest LLM layer that the method changes."""
        ...

    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> AbstractContextManager[Any]:
        """Apply the method to every forward and ``generate`` call on these prompts within the block.

        Args:
            vlm: the model, locked meanwhile.
            batch: prompts with their sinks, as ``vlm.batch`` makes it.
            recorder: takes attention rows.
        """
        ...


def configuration(method: Any) -> str:
    """Return the options of a method that learns as text. Sets are sorted, since their order differs between processes."""
    config = copy(getattr(method, "config", type(method).__name__))
    for name, value in getattr(config, "__dict__", {}).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))
    return str(config)


def described(method: Any) -> str:
    """Return as text all that a method's results depend on, options and a checksum of weights or gates; the same in every process."""
    if isinstance(method, nn.Module):
        return f"{configuration(method)}, weights {weights_checksum(method)}"
    if isinstance(method, Fixed):
        content = sha256(method.gates.to_json().encode()).hexdigest()[:16]
        return f"{method.gates!r} {content}, criterion {method.criterion}"
    if not hasattr(method, "__dataclass_fields__"):  # a class of a user's own
        return sub(r" at 0x[0-9a-f]+", "", f"{type(method).__qualname__} {getattr(method, '__dict__', {})}")
    return repr(method)


def weights_checksum(method: nn.Module) -> str:
    """Return the first 16 digits of the SHA-256 of a method's parameters and their names."""
    digest = sha256()
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def criterion_of(methods: Iterable[Any]) -> str:
    """Return the one sink criterion that methods need, "auto" if none names any.

    Args:
        methods: `Method`s that act on the same prompts; what has no criterion, such as `Gates`, accepts any.

    Raises:
        SinkgateError: methods name different criteria.
    """
    names = sorted({name for method in methods if (name := getattr(method, "criterion", None))})
    if len(names) > 1:
        raise SinkgateError(f"these methods need sinks by different criteria, {', '.join(names)}; run them apart")
    return names[0] if names else "auto"


def finder_of(
    methods: Iterable[Any], *, v_sink: str | None = None, l_sink: str | None = None, l_sinks: bool = True
) -> SinkFinder:
    """Return a finder of sinks by the criterion of these methods.

    Args:
        methods: see `criterion_of`.
        v_sink: criterion of V-sinks in place of the methods' own; theirs if None.
        l_sink: criterion of L-sinks, likewise.
        l_sinks: False finds no L-sinks, which runs the encoder only, unless a method uses them.

    Raises:
        SinkgateError: methods name different criteria.
    """
    methods = list(methods)
    name = "auto" if v_sink and l_sink else criterion_of(methods)
    v_only = not l_sinks and not any(getattr(method, "uses_l_sinks", True) for method in methods)
    return SinkFinder(v_sink or name, l_sink or name, v_only)


def reads_pixels(methods: Iterable[Any]) -> bool:
    """Return whether any of the `Method`s encodes images again, so that prompts have to keep their processed images."""
    return any(getattr(method, "reads_pixels", False) for method in methods)


@dataclass(frozen=True)
class Fixed:
    """`Gates` or `FineGates` as a method; all ones is the unmodified model."""

    gates: AnyGates
    criterion: str | None = None

    @property
    def uses_l_sinks(self) -> bool:
        """See `Method`."""
        return not torch.equal(self.gates.scales[..., 1], self.gates.scales[..., 2])

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        changed = (self.gates.for_model(vlm).scales != 1).flatten(1).any(1).nonzero()[:, 0]
        return vlm.adapter.layer_numbers[int(changed[0])] if len(changed) else len(vlm.adapter.all_layers)

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`."""
        scales = None if self.gates.is_identity else spread(vlm, batch, [self.gates] * len(batch.prompts))
        with vlm.attached(scales, recorder):
            yield


class AsGates:
    """Base of methods that are fixed gates on each model: `first_layer` and `applied` follow from ``gates``."""

    criterion: str | None
    uses_l_sinks = False

    def gates(self, vlm: VLM) -> AnyGates:
        """Return the method as fixed gates of a model.

        Raises:
            GateError: a scale is out of range, or the model has no such group.
            SinkgateError: there is no such layer.
        """
        raise NotImplementedError

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`; raises as ``gates``."""
        return Fixed(self.gates(vlm)).first_layer(vlm)

    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> AbstractContextManager[None]:
        """See `Method`; raises as ``gates``."""
        return Fixed(self.gates(vlm)).applied(vlm, batch, recorder)


def spread(vlm: VLM, batch: Batch, gates: Sequence[AnyGates]) -> Scales:
    """Return the scales of each prompt's own gates, side by side.

    Raises:
        GateError: gates do not fit the model.
    """
    cases = zip(batch.prompts, batch.sinks, gates, strict=True)
    return batch.key_scales([vlm.scales(prompt, table, sinks) for prompt, sinks, table in cases])


def checked_layers(vlm: VLM, layers: Sequence[int]) -> tuple[int, ...]:
    """Return layers as numbers from 0; negative ones count from the last, as in `Gates`.

    Raises:
        GateError: the model has no such layer, or a layer is no whole number.
    """
    count = vlm.num_layers
    numbers = [index(layer, "a layer") for layer in (layers if isinstance(layers, Iterable) else [layers])]
    outside = [layer for layer in numbers if not -count <= layer < count]
    if outside:
        raise GateError(f"there is no layer {outside[0]}: {vlm.name} has layers 0 to {count - 1}")
    return tuple(layer % count for layer in numbers)


def check_numbers(method: Method, low: float, high: float, *names: str) -> None:
    """Check options of a method that are numbers.

    Raises:
        GateError: one is no finite number from ``low`` to ``high``.
    """
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, str | bytes | bool):
            with suppress(TypeError, ValueError, RuntimeError):
                if low <= float(value) <= high and isfinite(value):
                    continue
        limit = f"of at least {low:g}" if high == inf else f"from {low:g} to {high:g}"
        raise GateError(f"{name} is {value!r}; expected a finite number {limit}")


def layers_by_depth(vlm: VLM, first: int, last: int, depth: int = 32) -> tuple[int, ...]:
    """Return layers ``first`` to ``last`` of a model with ``depth`` layers, in other models those at the same depth; one at least."""
    count, middle = vlm.num_layers, (first + last + 1) / 2
    inside = [layer for layer in range(count) if first * count <= (layer + 0.5) * depth < (last + 1) * count]
    return tuple(inside or [int(middle * count / depth)])
