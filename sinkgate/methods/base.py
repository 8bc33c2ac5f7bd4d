"""The door that everything shares which changes what a model does with visual tokens: fixed gates, learned gates, rivals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sinkgate.attention.recorder import Recorder
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.gates import Gates


class Method(Protocol):
    """What can be put on a model for a while. Methods that learn are modules too, with only their own parameters."""

    def begins(self, vlm: VLM) -> int:
        """Number of the lowest LLM layer whose work changes, among ``vlm.adapter.all_layers``; below it all is as without the method."""
        ...

    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> AbstractContextManager[Any]:
        """Within the block the method acts on every forward and ``generate`` call on these prompts, and is gone afterwards.

        Args:
            vlm: the model, locked meanwhile.
            batch: prompts with their sinks, as ``vlm.batch`` makes it.
            recorder: takes attention rows.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """Fixed `Gates` as a method; all ones is the unmodified model."""

    gates: Gates

    def begins(self, vlm: VLM) -> int:
        """See `Method`."""
        changed = (self.gates.for_model(vlm).scales != 1).any(1).nonzero()[:, 0]
        return vlm.adapter.layer_numbers[int(changed[0])] if len(changed) else len(vlm.adapter.all_layers)

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`."""
        scales = None
        if not self.gates.is_identity:
            found = zip(batch.prompts, batch.sinks, strict=True)
            tables = [self.gates.key_scales(sinks, prompt.visual, prompt.num_keys) for prompt, sinks in found]
            scales = batch.key_scales(tables).to(vlm.device)
        with vlm.attached(scales, recorder):
            yield
