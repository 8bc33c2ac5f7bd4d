"""FastV: visual tokens that receive little attention are dropped after an early layer (Chen et al., ECCV 2024), with rules for V-sinks.

Shapes: B prompts, n beams a prompt, H heads, R query rows, K Keys, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sinkgate.attention.recorder import Recorder
from sinkgate.errors import SinkgateError
from sinkgate.methods.base import check_numbers, checked_layers
from sinkgate.methods.decoder_inputs import refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.numbers import index

SinkRule = Literal["ranked", "kept", "first", "dropped"]


@dataclass(frozen=True)
class FastV:
    """From layer K on, the share R of the visual tokens that the prompt's last position attends to least is masked out.

    Tokens are ranked by the mean over heads in layer K - 1, once, in the prefill. The others keep their positions. Masking gives the logits
    of dropping tokens but saves no time. Layers without attention (convolutions, linear attention) still read the tokens.

    Attributes:
        layer: the first layer without them (the paper's K: 2 or 3), at least 1, counted as `Gates` counts.
        share: dropped share of the visual tokens, in [0, 1] (R: 0.25 to 0.75), rounded to whole tokens.
        sinks: "ranked" treats V-sinks as all tokens, as the paper does; "kept" never drops them; "first" drops them before any other
            token; "dropped" drops all of them in addition to the lowest ranked tokens. The last three are additions by us, to measure
            how much pruning depends on sinks.
        criterion: see `Method`; without effect where sinks are "ranked".

    Raises:
        SinkgateError: the share is not in [0, 1], the layer is less than 1, or there is no such rule for sinks.
    """

    layer: int = 2
    share: float = 0.5
    sinks: SinkRule = "ranked"
    criterion: str | None = None
    uses_l_sinks = False

    def __post_init__(self) -> None:
        check_numbers(self, 0, 1, "share")
        if index(self.layer, "the layer") < 1:
            raise SinkgateError(f"layer is {self.layer}; expected 1 or more: tokens are ranked in the layer before")
        if self.sinks not in get_args(SinkRule):
            raise SinkgateError(f"sinks is {self.sinks!r}; expected one of {', '.join(get_args(SinkRule))}")

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`; the layer that ranks has to run."""
        return vlm.adapter.layer_numbers[checked_layers(vlm, [self.layer])[0] - 1]

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`.

        Raises:
            UnsupportedModelError: images are read by cross-attention.
            SinkgateError: there is no such layer.
        """
        refuse_cross_attention(vlm, "FastV", "there are no visual tokens in the prompt that could be dropped")
        (layer,) = checked_layers(vlm, [self.layer])
        pruned, last = range(layer, vlm.num_layers), batch.length - 1
        with vlm.attached(None, recorder, live=range(layer - 1, vlm.num_layers)) as block:

            def rank(rows: Tensor, position: Tensor, first_key: int) -> Tensor:
                at = (position == last).nonzero()[:, 0]
                if len(at):
                    row = torch.nn.functional.pad(rows[:, :, int(at[0])].mean(1), (first_key, 0))  # B n, K
                    row = row[:: len(row) // len(batch.prompts)].cpu()  # the beams of a prompt are alike in its prefill
                    hidden = self._hidden(batch, row)
                    for each in pruned:
                        block.set_hidden(each, hidden)
                return rows

            block.set_rewrite(layer - 1, last, rank)
            yield

    def dropped(self, attention: Tensor, v_sink: Tensor) -> Tensor:
        """Return the dropped tokens by the attention that each receives, (V,) and (V,) boolean -> (V,) boolean."""
        count = round(self.share * len(attention))
        priority = v_sink.long() * {"first": -1, "kept": 1}.get(self.sinks, 0)
        if self.sinks == "kept":
            count = min(count, int((~v_sink).sum()))
        order = attention.argsort(stable=True)  # the first are dropped
        order = order[priority[order].argsort(stable=True)]
        dropped = torch.zeros_like(v_sink)
        dropped[order[:count]] = True
        return dropped | v_sink if self.sinks == "dropped" else dropped

    def _hidden(self, batch: Batch, rows: Tensor) -> Tensor:
        """Return the Keys that are dropped, (B, P), from the last position's attention (B, K)."""
        tokens: list[Tensor] = []
        for row, prompt, masks, start in zip(rows, batch.prompts, batch.sinks, batch.starts, strict=True):
            tokens.append(self.dropped(row[start + prompt.visual.cpu()], masks.v_sink.cpu()))
        return batch.spread(tokens)
