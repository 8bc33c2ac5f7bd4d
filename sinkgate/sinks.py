"""Which visual tokens are sinks, and the evidence: V-sinks once per image, L-sinks per LLM layer.

V-sinks are born in the vision encoder and decided on its patch features before the projector; L-sinks are
born inside the LLM and decided at the input of every layer (paper, section 1). A token that is both counts as
a V-sink.

Shapes: L LLM layers, V visual tokens, P prompt positions, E encoder width, D LLM width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkgate.criteria import CRITERIA, AttentionShare, Criterion, Signals, Verdict, over_median
from sinkgate.errors import SinkgateError

_LOOKED_AT = " Attention alone says so: it may be looked at for what it shows."


@dataclass(frozen=True)
class Observation:
    """One prompt seen by the unmodified model: the raw material of every criterion.

    Shapes: features (V, E), the encoder's patch features before the projector; encoder_attention (V,), the
    mean attention that a patch receives over heads and all queries of the layer that reads those features (their own layer
    where it is the encoder's last; the choice is ours); hidden (L, P, D) at the input of each LLM layer; visual (V,) positions; attention (L, V), the mean over heads and the text queries after the image;
    value_norms (L, P), the mean over heads.
    """

    features: Tensor
    encoder_attention: Tensor
    hidden: Tensor
    visual: Tensor
    attention: Tensor
    value_norms: Tensor


@dataclass(frozen=True)
class SinkMap:
    """The three groups of visual tokens with the evidence for each.

    Four measurements are kept apart because they come apart: spike or norm (the verdicts' scores),
    attention, value-norm ratio, and the norm of the token.

    Shapes: v_sink (V,) boolean; l_sink and ordinary (L, V) boolean, disjoint, together with v_sink all tokens;
    encoder_share (V,) and llm_share (L, V): attention over the median token's; norm_ratio (V,): encoder norm over the
    median's; value_ratio (L, V): length of the Value over the mean length of all Values in the layer.
    """

    v_sink: Tensor
    l_sink: Tensor
    v_verdict: Verdict
    l_verdict: Verdict
    grid: tuple[int, int]
    encoder_share: Tensor
    llm_share: Tensor
    norm_ratio: Tensor
    value_ratio: Tensor

    @property
    def ordinary(self) -> Tensor:
        """Neither V-sink nor L-sink, (L, V)."""
        return ~(self.v_sink | self.l_sink)

    def group(self, name: str, layer: int) -> Tensor:
        """The tokens of ``v_sink``, ``l_sink``, ``ordinary`` or ``rest`` at a layer, (V,) boolean."""
        if name == "rest":
            return ~self.v_sink
        return self.v_sink if name == "v_sink" else getattr(self, name)[layer]

    def summary(self) -> str:
        """A few plain sentences: how many of each kind, where, by which criterion."""
        tokens = len(self.v_sink)
        v_count = int(self.v_sink.sum())
        v_text = f"{v_count} of {tokens} visual tokens are V-sinks" if v_count else "No V-sinks"
        sentences = [f"{v_text} ({self.v_verdict.criterion}{_dimension_list(self.v_verdict)})."]
        layers = [layer for layer in range(len(self.l_sink)) if self.l_sink[layer].any()]
        if layers:
            most = int(self.l_sink.sum(1).max())
            sentences.append(
                f"L-sinks in layers {_ranges(layers)}, at most {most} in one ({self.l_verdict.criterion}{_dimension_list(self.l_verdict)})."
            )
        else:
            beside = " beside the V-sinks" if self.l_verdict.found else ""
            sentences.append(f"No L-sinks{beside} ({self.l_verdict.criterion}).")
        if self.v_sink.any():
            sentences.append(
                f"The V-sinks receive {self.encoder_share[self.v_sink].mean():.1f} times the median attention in the encoder"
                f" and, at their strongest LLM layer, {self.llm_share[:, self.v_sink].mean(1).max():.1f} times."
            )
        return " ".join(sentences)

    def explain(self, token: int, layer: int | None = None) -> str:
        """Why one visual token is in its group, at a layer (or by its V-verdict alone), in one sentence."""
        row, column = divmod(token, self.grid[1])
        where = f"patch row {row}, column {column}"
        facts = [
            f"encoder norm {self.norm_ratio[token]:.2g} x and attention {self.encoder_share[token]:.2g} x the median"
        ]
        if layer is not None:
            facts.append(
                f"layer {layer}: attention {self.llm_share[layer, token]:.2g} x the median, Value {self.value_ratio[layer, token]:.2g} x the mean"
            )
        if self.v_sink[token]:
            return f"V-sink ({where}): {_reason(self.v_verdict, 0, token)}; {'; '.join(facts)}."
        if layer is not None and self.l_sink[layer, token]:
            doubt = _LOOKED_AT if self.l_verdict.criterion == AttentionShare.name else ""
            return f"L-sink ({where}): {_reason(self.l_verdict, layer, token)}; {'; '.join(facts)}.{doubt}"
        return f"ordinary ({where}): {'; '.join(facts)}."


def classify(
    seen: Observation,
    grid: tuple[int, int],
    *,
    v_sink: str | Criterion = "auto",
    l_sink: str | Criterion = "auto",
) -> SinkMap:
    """Sort visual tokens into V-sinks, L-sinks and ordinary ones.

    Args:
        seen: what the unmodified model did with the prompt.
        grid: rows and columns of patches.
        v_sink: criterion for V-sinks, by name (see ``CRITERIA``) or as an object.
        l_sink: criterion for L-sinks.

    Raises:
        SinkgateError: no criterion has that name.
    """
    encoder = Signals(seen.features[None], torch.arange(len(seen.features)), seen.encoder_attention[None])
    llm = Signals(seen.hidden, seen.visual, seen.attention)
    v_verdict, l_verdict = criterion(v_sink)(encoder), criterion(l_sink)(llm)
    norms = torch.linalg.vector_norm(seen.features.float(), dim=-1)
    return SinkMap(
        v_sink=v_verdict.mask[0],
        l_sink=l_verdict.mask & ~v_verdict.mask,
        v_verdict=v_verdict,
        l_verdict=l_verdict,
        grid=grid,
        encoder_share=over_median(seen.encoder_attention),
        llm_share=over_median(seen.attention),
        norm_ratio=over_median(norms),
        value_ratio=seen.value_norms[:, seen.visual] / seen.value_norms.mean(1, keepdim=True),
    )


def criterion(choice: str | Criterion) -> Criterion:
    """A criterion by name, or the object itself.

    Raises:
        SinkgateError: no criterion has that name.
    """
    if not isinstance(choice, str):
        return choice
    if choice not in CRITERIA:
        raise SinkgateError(f"no criterion is called {choice!r}; there are: {', '.join(CRITERIA)}")
    return CRITERIA[choice]


def _reason(verdict: Verdict, layer: int, token: int) -> str:
    at = f" in dimension {int(verdict.dimension[layer, token])}" if verdict.dimension is not None else ""
    return (
        f"{verdict.unit} is {verdict.score[layer, token]:.3g}{at}, at least {verdict.threshold[layer, 0]:.3g} is a sink"
    )


def _dimension_list(verdict: Verdict) -> str:
    return f", dimensions {', '.join(map(str, verdict.dimensions))}" if verdict.dimensions else ""


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
