"""Visual Attention Redistribution: attention moved from sinks to the rest of the image (Kang et al., ICLR 2025).

Shapes: B prompts, n beams a prompt, H heads, R query rows, P prompt positions, K Keys, V visual tokens, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sinkgate.attention.patch import Attached, Rewrite
from sinkgate.attention.recorder import Recorder
from sinkgate.errors import SinkgateError
from sinkgate.methods.base import check_numbers, checked_layers
from sinkgate.methods.decoder_inputs import beams, ends, everywhere, refuse_cross_attention
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM


@dataclass(frozen=True)
class VAR:
    """In heads that attend to the image, a share of the attention on sinks moves to the visual tokens that are no sinks.

    The method changes attention rows of text after the image and of generated tokens; heads are selected row by row, as in the released
    code. A layer without visual sinks is not changed. Sinks are the visual ones of the batch (the default, for models whose sink dimensions
    are not known) or, if ``dimensions`` are given, tokens of the prompt, text included, with \\|h[d]\\| / RMS(h) >= tau at the layer's
    input for one of them, as in the paper. Generated tokens are never sinks.

    Attributes:
        min_image_attention: heads with less attention on all visual tokens are not changed (0.2 in the released code).
        min_non_sink_share: least share, in [0, 1], of a head's visual attention that lies on non-sinks (the paper's rho: 0.8 in general,
            0.5 against hallucination, 0.9 for vision-centric tasks). The released code's ``rho`` is the complement, a most for sinks.
        moved: share, in [0, 1], of the attention on sinks that is moved; the released code's ``p`` 0.6 is the share that stays.
        layers: counted as `Gates` counts them; None for the paper's: from the LLM's third to its last but one.
        dimensions: sink dimensions of the LLM.
        tau: the paper's threshold.
        criterion: see `Method`; without effect where ``dimensions`` are given.

    Raises:
        SinkgateError: a share is not in [0, 1].
    """

    min_image_attention: float = 0.2
    min_non_sink_share: float = 0.8
    moved: float = 0.4
    layers: tuple[int, ...] | None = None
    dimensions: tuple[int, ...] | None = None
    tau: float = 20.0
    criterion: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, 0, 1, "min_image_attention", "min_non_sink_share", "moved")

    @property
    def uses_l_sinks(self) -> bool:
        """See `Method`."""
        return self.dimensions is None

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        numbers = [vlm.adapter.layer_numbers[layer] for layer in self._layers(vlm)]
        return min(numbers, default=len(vlm.adapter.all_layers))

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`.

        Raises:
            UnsupportedModelError: images are read by cross-attention.
            SinkgateError: there is no such layer or dimension.
        """
        refuse_cross_attention(vlm, "VAR", "image and text share no softmax, so no attention can be moved between them")
        layers, visual, last = self._layers(vlm), batch.spread(everywhere(batch)), ends(batch)
        first = int(last.min()) + 1

        def rewrite(sinks: Tensor) -> Rewrite:
            return partial(self._rewrite, sinks=sinks, visual=visual, last=last)

        with vlm.attached(None, recorder, live=layers) as block, ExitStack() as hooks:
            for layer in layers:
                if self.dimensions is None:
                    masks = [sinks.v_sink | sinks.l_sink[layer] for sinks in batch.sinks]
                    block.set_rewrite(layer, first, rewrite(batch.spread(masks)))
                else:
                    use = partial(block.set_rewrite, layer, first)
                    hook = self._sink_hook(block, batch.in_prompt, lambda sinks, use=use: use(rewrite(sinks)))
                    hooks.callback(vlm.adapter.layers[layer].register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def sinks(self, hidden: Tensor) -> Tensor:
        """Return a mask of the tokens that are sinks by the given dimensions: (B, P, D) -> (B, P)."""
        dimensions = list(self.dimensions or ())
        outside = [d for d in dimensions if not 0 <= d < hidden.shape[-1]]
        if outside:
            raise SinkgateError(
                f"there is no dimension {outside[0]}: hidden states here are {hidden.shape[-1]} wide; give dimensions of this model"
            )
        if not dimensions:
            return torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        hidden = hidden.float()
        spikes = hidden[..., dimensions].abs().amax(-1)
        return spikes >= self.tau * hidden.square().mean(-1).sqrt().clamp_min(1e-12)

    def redistributed(self, rows: Tensor, sinks: Tensor, visual: Tensor) -> Tensor:
        """Apply the rule: rows (B, H, R, K) that sum to one, sinks and visual (B, K) boolean -> rows that sum to one."""
        sinks, visual = sinks[:, None, None], visual[:, None, None]
        image, receivers = (rows * visual).sum(-1, keepdim=True), rows * (visual & ~sinks)
        non_sinks = receivers.sum(-1, keepdim=True)
        heads = (image >= self.min_image_attention) & (non_sinks >= self.min_non_sink_share * image) & (non_sinks > 0)
        heads = heads & (sinks & visual).any(-1, keepdim=True)
        budget = self.moved * (rows * sinks).sum(-1, keepdim=True)
        moved = torch.where(sinks, (1 - self.moved) * rows, rows) + budget * receivers / non_sinks.clamp_min(1e-12)
        return torch.where(heads, moved, rows)

    def _rewrite(
        self, rows: Tensor, position: Tensor, first_key: int, *, sinks: Tensor, visual: Tensor, last: Tensor
    ) -> Tensor:
        def window(tokens: Tensor) -> Tensor:
            """Return the mask over the Keys of these rows, False after the prompt."""
            part = tokens[:, first_key : first_key + rows.shape[3]]
            return beams(pad(part, (0, rows.shape[3] - part.shape[1])).to(rows.device), rows)

        reads = position > beams(last.to(position.device), rows)[:, None]  # B n, R
        return torch.where(reads[:, None, :, None], self.redistributed(rows, window(sinks), window(visual)), rows)

    def _sink_hook(self, block: Attached, prompts: Tensor, use: Callable[[Tensor], None]) -> Any:
        def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if block.begins:
                sinks = self.sinks(hidden)
                missing = prompts.shape[1] - hidden.shape[1]  # some models run their last layers on the end alone
                use(pad(sinks, (missing, 0)) & beams(prompts.to(sinks.device), sinks))

        return before_layer

    def _layers(self, vlm: VLM) -> tuple[int, ...]:
        numbers = vlm.adapter.layer_numbers
        if self.layers is None:
            return tuple(i for i, number in enumerate(numbers) if 2 <= number < len(vlm.adapter.all_layers) - 1)
        return checked_layers(vlm, self.layers)
