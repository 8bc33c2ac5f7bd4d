"""Attention rows of selected queries, computed beside the model's kernel in O(rows x Keys), and stable ranks of head outputs.

Rows of decode steps are deferred while the cache keeps its Keys (`Recorder.defer`): the queries are stored, and the rows of all
steps of a layer are computed at once when the recorded block ends.

Shapes: B samples, H heads, KV Key heads, Q queries, K keys, R recorded rows, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sinkgate.attention import masks
from sinkgate.attention.masks import RowMask

_linalg: Any = torch.linalg  # torch gives no types for it
CHUNK = 1 << 24  # elements of attention rows computed at once if only their mean is stored: 64 MB


@dataclass
class Recorder:
    """Collect attention rows while a model runs; optionally norms of Values and stable ranks of head outputs.

    ``rows`` are absolute query positions, ``"all"``, or ``"last"``: the last query of every forward
    call, which in generation is the row that produces the next token; ``most`` bounds the number of recorded calls, and calls whose last
    query is before position ``since`` (all chunks of a chunked prefill but the last) are skipped. ``mean`` stores
    only the mean over heads and rows of each call, "rows" the mean over rows for each head. Each layer has one entry for each forward call
    with a wanted row: attention (B, H, R, K), or (B, K) with ``mean``, (B, H, K) with "rows"; value_norms (B, K), the mean over heads
    of the L2 norm. ``layers`` limits the record to these layers, and ``keys`` to the attention on these Keys, in their order, however
    many queries are wanted: (B, H, R, keys).

    ``outputs`` (B, P), boolean, selects the positions (without padding) over which `stable_ranks` (B, H) of a call are computed;
    calls that reach beyond them are skipped.
    """

    rows: Sequence[int] | Literal["last", "all"] = "last"
    mean: bool | Literal["rows"] = False
    values: bool = False
    most: int | None = None
    outputs: Tensor | None = None
    since: int = 0
    layers: Collection[int] | None = None
    keys: Sequence[int] | None = None
    attention: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    value_norms: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    stable_ranks: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    _deferred: dict[int, _Deferred] = field(default_factory=lambda: dict[int, _Deferred](), repr=False)

    @property
    def defers(self) -> bool:
        """Return whether rows of decode steps may be deferred."""
        return self.rows == "last" and not self.values and self.keys is None

    def wanted(self, layer: int, first: int, count: int) -> slice | Tensor | None:
        """Return the queries to record among ``count`` queries from position ``first`` on; None for none."""
        if self.most is not None and self._recorded(layer) >= self.most:
            return None
        if self.layers is not None and layer not in self.layers:
            return None
        if self.rows == "last":
            return slice(count - 1, count) if first + count > self.since else None
        if self.rows == "all":
            return slice(0, count)
        local = [row - first for row in self.rows if first <= int(row) < first + count]
        return torch.tensor(local) if local else None

    def record(
        self,
        layer: int,
        wanted: slice | Tensor,
        rows_of: Callable[[slice | Tensor], Tensor],
        row_size: int,
        value: Tensor | None = None,
    ) -> None:
        """Record one call. If only means or some Keys are stored, rows are computed in chunks, without a Q x K matrix.

        Args:
            layer: index of the layer.
            wanted: queries to record, from `wanted`.
            rows_of: function from queries to their attention rows (B, H, R, K).
            row_size: elements of one row of all samples and heads, B H K.
            value: the call's Values (B, KV, K, d).
        """
        if layer in self._deferred:  # entries stay in the order of calls
            self._catch_up(layer)
        most = max(1, CHUNK // row_size)
        if self.mean:
            rows = self._mean(wanted, rows_of, most)
        elif self.keys is not None:
            keys = torch.tensor(list(self.keys), dtype=torch.long)
            rows = torch.cat([rows_of(part)[..., keys] for part, _ in chunks(wanted, most)], 2)
        else:
            rows = rows_of(wanted)
        self.attention.setdefault(layer, []).append(rows)
        if self.values and value is not None:
            norms: Tensor = _linalg.vector_norm(value.float(), dim=-1).mean(1)
            self.value_norms.setdefault(layer, []).append(norms)

    def _mean(self, wanted: slice | Tensor, rows_of: Callable[[slice | Tensor], Tensor], most: int) -> Tensor:
        total, count = torch.tensor(0.0), 0
        for part, size in chunks(wanted, most):
            mean = self._reduced(rows_of(part))
            count += size
            # a single chunk is bit-identical to its mean
            total = mean if count == size else total + (mean - total) * (size / count)
        return total

    def _reduced(self, rows: Tensor) -> Tensor:
        return rows.mean(2 if self.mean == "rows" else (1, 2)) if self.mean else rows

    def add_output(self, layer: int, output: Tensor, first: int) -> None:
        """Record the head outputs (B, Q, H, d) of the queries from position ``first`` on."""
        end = first + output.shape[1]
        if self.outputs is not None and end <= self.outputs.shape[1]:
            excluded = ~self.outputs[:, first:end, None, None].to(output.device)
            self.stable_ranks.setdefault(layer, []).append(stable_rank(output.masked_fill(excluded, 0)))

    def defer(self, layer: int, module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> None:
        """Store the query (B, H, 1, d) of a decode step over all Keys so far; the newest Keys (B, KV, K, d) serve all steps."""
        later = self._deferred.setdefault(layer, _Deferred(module, options, key))
        later.key = key
        later.queries.append(query)
        later.ends.append(key.shape[2])

    def catch_up(self) -> None:
        """Compute all deferred rows."""
        for layer in list(self._deferred):
            self._catch_up(layer)

    def _catch_up(self, layer: int) -> None:
        later = self._deferred.pop(layer)
        visible = torch.arange(later.ends[-1]) < torch.tensor(later.ends)[:, None]
        query, mask = torch.cat(later.queries, 2), visible[None, None].to(later.key.device)
        with torch.no_grad():
            rows = attention_rows(later.module, query, later.key, mask, **later.options)
        for index, end in enumerate(later.ends):
            self.attention.setdefault(layer, []).append(self._reduced(rows[:, :, index : index + 1, :end]))

    def _recorded(self, layer: int) -> int:
        return len(self.attention.get(layer, ())) + (len(self._deferred[layer].ends) if layer in self._deferred else 0)


@dataclass
class _Deferred:
    """Deferred decode steps of one layer."""

    module: nn.Module
    options: dict[str, Any]
    key: Tensor
    queries: list[Tensor] = field(default_factory=list[Tensor])
    ends: list[int] = field(default_factory=list[int])


def chunks(wanted: slice | Tensor, most: int) -> Iterator[tuple[slice | Tensor, int]]:
    """Yield parts of at most ``most`` rows, each with its number of rows."""
    if isinstance(wanted, Tensor):
        yield from (
            (wanted[start : start + most], min(most, len(wanted) - start)) for start in range(0, len(wanted), most)
        )
        return
    for start in range(wanted.start, wanted.stop, most):
        end = min(start + most, wanted.stop)
        yield slice(start, end), end - start


def stable_rank(output: Tensor) -> Tensor:
    """Return the stable rank ||O||_F^2 / sigma_1^2 of each head's output O (queries x width), from 1 to the smaller of the two (paper, section 1).

    1: all outputs are multiples of one vector; n: n equally strong directions. Computed from the d x d Gram matrix as trace over
    largest eigenvalue. Rows of zeros have no effect; NaN if all are zero.

    Shapes: (B, Q, H, d) -> (B, H) on the CPU, float32 (float64 for a float64 model).
    """
    each = output.transpose(1, 2)
    each = each.to(torch.promote_types(each.dtype, torch.float32))
    each = each / each.abs().amax((-1, -2), keepdim=True)  # squares of half precision may be too small or too large
    gram = (each.transpose(-1, -2) @ each).cpu()  # small, and not every device has eigenvalues
    largest: Tensor = _linalg.eigvalsh(gram.nan_to_num(0, 0, 0))[..., -1]
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1) / largest


def attention_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | RowMask | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    rows: slice | Tensor = slice(None),
    rule: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return attention probabilities of selected query rows, equal to eager attention, in O(R K).

    ``rule`` changes the logits (B, H, R, K) before softcap and mask.

    Shapes: query (B, H, Q, d), key (B, KV, K, d), mask (B or 1, H or 1, Q, >= K) boolean or additive, a function of rows, or None
    -> (B, H, R, K), float32 (float64 for a float64 model), rows sum to one.
    """
    samples, heads, count, width = query.shape
    keys = key.shape[2]
    queries = query[:, :, rows]  # B, H, R, d
    # heads that share Keys become rows of one product, without copies of Keys
    grouped = queries.reshape(samples, key.shape[1], -1, width)
    scores = (grouped @ key.transpose(-1, -2)).view(samples, heads, -1, keys)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if rule is not None:
        scores = rule(scores)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    lowest = torch.finfo(scores.dtype).min  # not -inf: the row of a padded query, without any Key, must not be NaN
    causal = masks.is_causal(module, {"is_causal": is_causal})
    # the last query attends to every Key and needs no mask
    last_only = isinstance(rows, slice) and rows == slice(count - 1, count)
    if mask is None and causal and count > 1 and not last_only:
        position = torch.arange(count, device=query.device)[rows]
        scores = scores.masked_fill(torch.arange(keys, device=query.device) > position[:, None], lowest)
    elif isinstance(mask, Tensor) and mask.dtype != torch.bool:
        scores = scores + mask[:, :, rows, :keys]
    elif mask is not None:
        visible = mask[:, :, rows, :keys] if isinstance(mask, Tensor) else mask(torch.arange(count)[rows])
        scores = scores.masked_fill(~visible, lowest)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
