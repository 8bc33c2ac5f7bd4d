"""ScalingVis and AdaptVis: the last row's logits on the image scaled, by the model's confidence or always (Chen et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkgate.attention.recorder import Recorder
from sinkgate.methods.base import AsGates, check_numbers, checked_layers, spread
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import FineGates
from sinkgate.sinks.numbers import MAX_SCALE


@dataclass(frozen=True)
class ScalingVis(AsGates):
    """Attention logits of the prompt's last position on all visual tokens, times one number.

    Attributes:
        weight: the paper's alpha, in [0, 4]: below 1 the row spreads its attention over the image, above 1 it sharpens it.
        layers: counted as `Gates` counts them; None for all, as in the paper.
        criterion: see `Method`; without effect, all visual tokens are scaled alike.

    Raises:
        GateError: the weight is out of range.
    """

    weight: float = 0.5
    layers: tuple[int, ...] | None = None
    criterion: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, 0, MAX_SCALE, "weight")

    def gates(self, vlm: VLM) -> FineGates:
        """Return the method as fixed gates."""
        layers = None if self.layers is None else checked_layers(vlm, self.layers)
        return FineGates.ones(vlm.num_layers, rows="last").set("visual", self.weight, layers)


@dataclass(frozen=True)
class AdaptVis:
    """`ScalingVis` with a weight for each prompt: one if the unmodified model is sure of its first token, another if it is not.

    It costs one more prefill. The paper takes thresholds and weights from a validation set, by data set and model: alpha1 0.5 or 0.8 below a
    threshold beta of 0.3 to 0.4, alpha2 1.2 to 2.0 above. Defaults within these ranges are chosen by us.

    Attributes:
        unsure: weight where the most probable first token has a probability below the threshold (the paper's alpha1).
        sure: weight elsewhere (alpha2).
        threshold: in [0, 1] (beta).
        layers: see `ScalingVis`.
        criterion: see `ScalingVis`.

    Raises:
        GateError: a weight or the threshold is out of range.
    """

    unsure: float = 0.5
    sure: float = 1.5
    threshold: float = 0.3
    layers: tuple[int, ...] | None = None
    criterion: str | None = None
    uses_l_sinks = False

    def __post_init__(self) -> None:
        check_numbers(self, 0, MAX_SCALE, "unsure", "sure")
        check_numbers(self, 0, 1, "threshold")

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        return min(ScalingVis(weight, self.layers).first_layer(vlm) for weight in (self.unsure, self.sure))

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`. The prompts are run once, unmodified, before the block.

        Raises:
            GateError: there is no such layer.
        """
        choices = [ScalingVis(weight, self.layers).gates(vlm) for weight in (self.unsure, self.sure)]
        with vlm.lock:
            sure = (self.confidence(vlm, batch) >= self.threshold).long().tolist()
            with vlm.attached(spread(vlm, batch, [choices[each] for each in sure]), recorder):
                yield

    def confidence(self, vlm: VLM, batch: Batch) -> Tensor:
        """Return the unmodified model's probability of its first token, the most probable one, for each prompt, (B,)."""
        answers = batch.inputs["input_ids"].shape[1] - batch.length  # positions of answers, 0 in a batch without them
        with torch.no_grad(), vlm.attached(None, None):
            logits = vlm.model(**batch.inputs, use_cache=False, logits_to_keep=answers + 1).logits
        return logits[:, -answers - 1].float().softmax(-1).amax(-1)
