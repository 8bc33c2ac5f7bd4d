"""Attention masks in the forms that kernels take, read row by row.

Shapes: B samples, Q queries, K Keys, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad
from transformers import AttentionMaskInterface, masking_utils

_interface: Any = AttentionMaskInterface  # its table of functions is private
_masking: Any = masking_utils  # transformers gives no complete types for it

#: Indices of queries (R,) -> the Keys that each attends to, boolean, broadcastable to (B, H, R, K).
RowMask = Callable[[Tensor], Tensor]


def is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Return whether queries attend to no later Key: the call's ``is_causal``, else the module's."""
    option = options.get("is_causal")
    return getattr(module, "is_causal", True) if option is None else option


def row_mask(
    implementation: str,
    mask: Any,
    query: Tensor,
    key: Tensor,
    *,
    causal: bool,
    window: int | None = None,
) -> Tensor | RowMask | None:
    """Return the mask of an attention call in a form that `sinkgate.attention.recorder.attention_rows` reads.

    ``sdpa`` and ``eager`` take (B, 1, Q, K) and are returned as they are. Flash kernels take None or padding (B, K), align the queries
    with the last Keys, and apply causality and sliding windows themselves. ``flex_attention`` takes a block mask.

    Args:
        implementation: name of the kernel.
        mask: what the kernel receives.
        query: (B, H, Q, d).
        key: (B, KV, K, d).
        causal: queries attend to no later Key.
        window: number of Keys that a query of a sliding layer attends to, its own included.
    """
    if isinstance(mask, BlockMask):
        return _of_blocks(mask, query, key)
    if _interface._global_mapping.get(implementation) is not _masking.flash_attention_mask:
        return mask
    count, keys, device = query.shape[2], key.shape[2], query.device
    causal = causal and count > 1
    narrow = window is not None and window < keys
    if mask is None and not narrow and (count == keys or not causal):
        return None
    length = keys if mask is None else mask.shape[1]  # a static cache has room behind its Keys
    columns = torch.arange(keys, device=device)

    def rows(index: Tensor) -> Tensor:
        position = index.to(device)[:, None] + length - count
        visible = (columns < length).expand(len(index), keys)
        if causal:
            visible = visible & (columns <= position)
        if window is not None:
            visible = visible & ((position - columns).abs() < window)
        if mask is None:
            return visible[None, None]
        return visible & pad(mask.bool(), (0, keys - length))[:, None, None]

    return rows


def _of_blocks(mask: BlockMask, query: Tensor, key: Tensor) -> RowMask:
    sample = torch.arange(query.shape[0], device=query.device)[:, None, None, None]
    columns = torch.arange(key.shape[2], device=query.device)

    def rows(index: Tensor) -> Tensor:
        return mask.mask_mod(sample, torch.zeros_like(sample), index.to(query.device)[:, None], columns)

    return rows
