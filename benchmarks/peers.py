"""Peers: the same intervention by a hook on ``k_proj`` in a full run from the pixels, by hand or by nnsight.

A scale on a Key's projection is a scale on the Key: the rotation that follows is linear, and these models have no norm in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from models import Subject
from torch import Tensor, nn

NNSIGHT = find_spec("nnsight") is not None


@contextmanager
def hooked(subject: Subject, layer: int, scales: Tensor) -> Iterator[None]:
    """A forward hook scales the Keys of one layer while a prompt is read; scales (K,)."""
    column = scales[:, None].to(subject.model.dtype)

    def scale(_module: nn.Module, _args: tuple[Tensor], output: Tensor) -> Tensor | None:
        return output * column if output.shape[1] == len(column) else None  # later steps bring text only

    projection: Any = subject.vlm.attention[layer].k_proj
    hook = projection.register_forward_hook(scale)
    try:
        yield
    finally:
        hook.remove()


def rerun(subject: Subject, layer: int, scales: Tensor) -> Tensor:
    """Next-token logits (vocabulary,): pixels in, encoder and all layers again."""
    with torch.no_grad(), hooked(subject, layer, scales):
        return subject.model(**subject.pixels, use_cache=False, logits_to_keep=1).logits[0, -1]


def generate(subject: Subject, layer: int, scales: Tensor, max_new_tokens: int) -> list[int]:
    """The answer's token ids, pixels in."""
    with torch.no_grad(), hooked(subject, layer, scales):
        ids = subject.model.generate(**subject.pixels, max_new_tokens=max_new_tokens, do_sample=False)
    return ids[0, subject.prompt.length :].tolist()


def nnsight_rerun(subject: Subject, layer: int) -> Callable[[Tensor], Tensor]:
    """The same through nnsight, on a copy that shares the weights: wrapping leaves the model changed."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    model = subject.model
    copy = deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    wrapped = NNsight(copy)
    projection = wrapped.model.language_model.layers[layer].self_attn.k_proj

    def run(scales: Tensor) -> Tensor:
        column = scales[:, None].to(model.dtype)
        with torch.no_grad(), wrapped.trace(**subject.pixels, use_cache=False, logits_to_keep=1):
            projection.output = projection.output * column
            logits = wrapped.output.logits[0, -1].save()
        return logits  # noqa: RET504 - nnsight runs the block above elsewhere, and a return would not be of this function

    return run
