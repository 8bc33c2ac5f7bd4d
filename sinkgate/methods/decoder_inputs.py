"""Base and helpers of methods that change the decoder's inputs, before its first layer.

Shapes: B prompts, n beams a prompt, T positions, V visual tokens, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sinkgate.attention.cache import cache_in
from sinkgate.attention.recorder import Recorder
from sinkgate.errors import UnsupportedModelError
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM

Arguments = dict[str, Any]  # of the decoder's forward


class ChangesInputs:
    """Base of methods that change the decoder's arguments in the prefill: `first_layer` and `applied` follow from ``change``.

    Attributes:
        in_decode: change the arguments of decode steps, too.
    """

    uses_l_sinks = False
    in_decode = False

    def change(self, vlm: VLM, batch: Batch) -> Callable[[Arguments], Arguments]:
        """Return a function from the decoder's arguments to the changed ones; both raise UnsupportedModelError where that is not possible."""
        raise NotImplementedError

    def first_layer(self, vlm: VLM) -> int:  # noqa: ARG002 - the same on every model
        """See `Method`."""
        return 0

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:
        """See `Method`; raises as ``change``."""
        change = self.change(vlm, batch)

        def before_forward(_module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> tuple[Any, Arguments]:
            return args, change(kwargs) if self.in_decode or cached(kwargs) == 0 else kwargs

        with vlm.attached(None, recorder), ExitStack() as hooks:
            hooks.callback(vlm.decoder.register_forward_pre_hook(before_forward, with_kwargs=True).remove)
            yield


def cached(arguments: Arguments) -> int:
    """Return the number of cached positions before the running forward."""
    cache = cache_in(arguments)
    return int(cache.get_seq_length()) if cache is not None else 0


def embeddings(vlm: VLM, arguments: Arguments) -> Tensor:
    """Return the inputs of the first layer, (B n, T, D).

    Raises:
        UnsupportedModelError: the decoder gets no embeddings.
    """
    inputs = arguments.get("inputs_embeds")
    if inputs is None:
        raise UnsupportedModelError(
            f"{vlm.name} does not pass its decoder embeddings as inputs_embeds, so visual tokens cannot be changed there"
        )
    return inputs


def placed(batch: Batch, tokens: list[Tensor], like: Tensor) -> Tensor:
    """Spread values of each prompt's visual tokens over the positions in ``like``: B of (V,) -> (B n, T)."""
    spread = batch.spread(tokens).to(like.device)
    spread = pad(spread, (0, max(0, like.shape[1] - spread.shape[1])))[:, : like.shape[1]]
    return beams(spread, like)


def beams(values: Tensor, like: Tensor) -> Tensor:
    """Repeat each prompt's row for each of its beams: (B, ...) -> (B n, ...)."""
    return values.repeat_interleave(len(like) // len(values), 0) if len(like) != len(values) else values


def everywhere(batch: Batch) -> list[Tensor]:
    """Return masks of all visual tokens, B of (V,)."""
    return [torch.ones(len(prompt.visual), dtype=torch.bool) for prompt in batch.prompts]


def ends(batch: Batch) -> Tensor:
    """Return the position of each prompt's last visual token, (B,)."""
    last = [start + int(prompt.visual[-1]) for prompt, start in zip(batch.prompts, batch.starts, strict=True)]
    return torch.tensor(last)


def refuse_cross_attention(vlm: VLM, method: str, why: str) -> None:
    """Refuse models in which visual tokens do not stand among the text.

    Raises:
        UnsupportedModelError: the LLM reads images by cross-attention.
    """
    if vlm.adapter.cross_attention:
        raise UnsupportedModelError(
            f"{method} cannot act on {vlm.name}, whose LLM reads images by cross-attention: {why}. Gates can: Fixed, Suppress or LSG"
        )
