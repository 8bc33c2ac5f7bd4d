"""Visual Amplification Fusion (VAF): text reads more of the image and less of the system prompt (Yin et al., ClearSight, CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from sinkgate.methods.base import AsGates, check_numbers, checked_layers, layers_by_depth
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import FineGates
from sinkgate.sinks.numbers import MAX_SCALE


@dataclass(frozen=True)
class VAF(AsGates):
    """Attention logits on visual tokens are raised, and on text before the image lowered, in middle layers.

    The scales apply to the rows of the text after the image and of generated tokens, in all heads.

    Attributes:
        image: scale on visual tokens, in [0, 4] (the released code's enh_para).
        system: scale on the text before the first image, the text sink included (sup_para).
        layers: counted as `Gates` counts them; None for the paper's 9 to 14 of 32, at the same depth in other models.
        criterion: see `Method`; without effect, all visual tokens are scaled alike.

    Raises:
        GateError: a scale is out of range.
    """

    image: float = 1.15
    system: float = 0.95
    layers: tuple[int, ...] | None = None
    criterion: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, 0, MAX_SCALE, "image", "system")

    def gates(self, vlm: VLM) -> FineGates:
        """Return the method as fixed gates."""
        layers = layers_by_depth(vlm, 9, 14) if self.layers is None else checked_layers(vlm, self.layers)
        gates = FineGates.ones(vlm.num_layers, rows="after, generated")
        return gates.set("visual", self.image, layers).set("before", self.system, layers)
