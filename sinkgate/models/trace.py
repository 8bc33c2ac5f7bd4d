"""What one run of the model left to look at: answer, next-token distribution, attention rows.

Shapes: L layers, H heads, R recorded rows, K keys, V visual tokens, S separators.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sinkgate.images.layout import Sheet
from sinkgate.sinks.classify import SinkMap


@dataclass(frozen=True)
class Trace:
    """One run. Row r of ``attention`` is the query that produced generated token r; row 0 is the last prompt token.

    ``ids``: all that was generated; ``tokens``: their texts, special tokens left out.

    Shapes: probabilities (vocabulary,) of the first generated token; attention (L, H, R, K), rows sum to one,
    keys after the row's own position are zero; positions (V,) of the visual tokens and separators (S,) among the keys.
    """

    text: str
    ids: list[int]
    tokens: list[str]
    next_token: list[tuple[str, float]]
    probabilities: Tensor
    attention: Tensor
    positions: Tensor
    separators: Tensor
    sheets: tuple[Sheet, ...]

    def visual(
        self, layer: int, head: int | None = None, row: int = 0, hide: Tensor | None = None, sheet: int = 0
    ) -> Tensor:
        """Attention on the visual tokens of one sheet, (rows, columns); the mean over heads where ``head`` is None.

        ``hide`` (V,) boolean sets those tokens to zero and stretches the others to the same sum.
        """
        rows = self.attention[layer, :, row]
        patches = (rows.mean(0) if head is None else rows[head])[self.positions]
        if hide is not None:
            kept = patches * ~hide
            patches = kept * (patches.sum() / kept.sum().clamp_min(1e-12))
        return self.sheets[sheet].spread(patches)

    def shares(self, sinks: SinkMap, row: int = 0) -> dict[str, Tensor]:
        """Where one row's attention goes in each layer, mean over heads.

        Returns ``v_sink``, ``l_sink``, ``ordinary``, ``separator`` (newline and tile tokens) and ``text``, each (L,),
        summing to one.
        """
        rows = self.attention[:, :, row].mean(1)  # L, K
        patches = rows[:, self.positions]
        shares = {
            "v_sink": (patches * sinks.v_sink).sum(1),
            "l_sink": (patches * sinks.l_sink).sum(1),
            "ordinary": (patches * sinks.ordinary).sum(1),
        }
        separator = rows[:, self.separators].sum(1)
        return {**shares, "separator": separator, "text": rows.sum(1) - patches.sum(1) - separator}


def stack_rows(recorded: dict[int, list[Tensor]]) -> Tensor:
    """The rows of one sample over forward calls, keys padded with zeros: L lists of (1, H, R, K) -> (L, H, R, K)."""
    longest = max(rows.shape[-1] for calls in recorded.values() for rows in calls)

    def padded(rows: Tensor) -> Tensor:
        return torch.nn.functional.pad(
            rows[0].cpu(), (0, longest - rows.shape[-1])
        )  # layers may lie on several devices

    return torch.stack([torch.cat([padded(rows) for rows in recorded[layer]], 1) for layer in sorted(recorded)])
