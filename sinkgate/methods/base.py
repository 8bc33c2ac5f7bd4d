"""The `Method` protocol: fixed gates, learned gates, published baselines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sinkgate.attention.recorder import Recorder
from sinkgate.errors import SinkgateError
from sinkgate.models.batch import Batch
from sinkgate.models.finder import SinkFinder
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import AnyGates


class Method(Protocol):
    """Change of a model's work on visual tokens within a block. Methods that learn are modules too, with only their own parameters."""

    @property
    def criterion(self) -> str | None:
        """Criterion of the sinks that the method needs, as `LSGConfig` holds it; None for the default."""
        ...

    @property
    def uses_l_sinks(self) -> bool:
        """True where L-sinks and ordinary tokens are treated differently."""
        ...

    def first_layer(self, vlm: VLM) -> int:
        """Return the number of the lowest LLM layer whose work changes, in ``vlm.adapter.all_layers``; layers below it are not affected."""
        ...

    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> AbstractContextManager[Any]:
        """Apply the method to every forward and ``generate`` call on these prompts within the block.

        Args:
            vlm: the model, locked meanwhile.
            batch: prompts with their sinks, as ``vlm.batch`` makes it.
            recorder: takes attention rows.
        """
        ...


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
        v_sink: criterion of V-sinks, whatever the methods name; theirs where None.
        l_sink: criterion of L-sinks, likewise.
        l_sinks: False leaves L-sinks out, at the cost of the encoder alone, unless a method uses them.

    Raises:
        SinkgateError: methods name different criteria.
    """
    methods = list(methods)
    name = "auto" if v_sink and l_sink else criterion_of(methods)
    v_only = not l_sinks and not any(getattr(method, "uses_l_sinks", True) for method in methods)
    return SinkFinder(v_sink or name, l_sink or name, v_only)


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
        scales = None
        if not self.gates.is_identity:
            tables = [
                vlm.scales(prompt, self.gates, sinks) for prompt, sinks in zip(batch.prompts, batch.sinks, strict=True)
            ]
            scales = batch.key_scales([table for table in tables if table is not None])
        with vlm.attached(scales, recorder):
            yield
