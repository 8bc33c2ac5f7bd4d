"""Scales of attention logits: for all queries, or limited to query rows and heads.

Shapes: L layers, B samples, n beams of a sample, H heads, KV Key heads, Q prompt rows, P Key positions, R rows and K Keys of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class LogitScales:
    """Scales of attention logits by layer, sample, head and Key, limited to rows of the queries.

    In the limited rows a logit z becomes s z (paper, section 2) or, where ``monotone``, z + (s - 1) |z|, under which s < 1 lowers
    negative logits, too. Logits of Keys behind P, and of all other rows, stay.

    Attributes:
        scales: (L, B, H, P), finite; H is 1 if all heads are scaled alike.
        rows: (B, Q) boolean, the prompt's rows that are scaled.
        later: (B,) boolean, whether rows behind those, of generated tokens, are scaled.
        monotone: (B,) boolean, the rule of each sample.
    """

    scales: Tensor
    rows: Tensor
    later: Tensor
    monotone: Tensor

    @classmethod
    def unlimited(cls, scales: Tensor, rows: int) -> LogitScales:
        """Return scales (L, B, P) of the Keys as scales of all logits; ``rows`` is the length of the prompt."""
        samples = scales.shape[1]
        true = torch.ones(samples, dtype=torch.bool)
        return cls(scales[:, :, None].cpu(), true[:, None].expand(samples, rows), true, ~true)

    def padded(self, before: int, width: int, rows_before: int) -> LogitScales:
        """Return the scales behind padding.

        Args:
            before: Keys of padding in front.
            width: Keys in all, P.
            rows_before: query rows of padding in front.
        """
        scales = pad(self.scales, (before, width - before - self.scales.shape[-1]), value=1.0)
        everywhere = self.rows.all(1, keepdim=True)  # all rows stay all rows
        return replace(self, scales=scales, rows=torch.cat([everywhere.expand(-1, rows_before), self.rows], 1))

    @classmethod
    def concatenated(cls, parts: Sequence[LogitScales]) -> LogitScales:
        """Return samples side by side: parts with as many layers, Keys and rows."""
        heads = max(part.scales.shape[2] for part in parts)
        scales = [part.scales.expand(-1, -1, heads, -1) for part in parts]
        return cls(
            torch.cat(scales, 1),
            torch.cat([part.rows for part in parts]),
            torch.cat([part.later for part in parts]),
            torch.cat([part.monotone for part in parts]),
        )

    def changed_layers(self, other: LogitScales) -> Tensor:
        """Return the layers whose logits differ from those under other scales of the same prompts, (L,) boolean."""
        limits = ("rows", "later", "monotone")
        if all(torch.equal(getattr(self, name), getattr(other, name)) for name in limits):
            return (self.scales != other.scales).flatten(1).any(1)
        return (self.scales != 1).flatten(1).any(1) | (other.scales != 1).flatten(1).any(1)

    def layer(self, index: int) -> LayerScales:
        """Return the scales of one layer."""
        return LayerScales(self.scales[index], self.rows, self.later, self.monotone)


@dataclass(eq=False)
class LayerScales:
    """`LogitScales` of one layer: scales (B, H or 1, P)."""

    scales: Tensor
    rows: Tensor
    later: Tensor
    monotone: Tensor

    def __post_init__(self) -> None:
        scaled = (self.scales != 1).any(0).any(-1)
        #: heads with a scale other than 1; None for all
        self.heads: Tensor | None = None if scaled.all() else scaled.nonzero()[:, 0]
        #: whether any sample has the monotone rule
        self.bends = bool(self.monotone.any())
        self._may_be_of_keys = bool(self.rows.all() and self.later.all()) and not self.bends

    def of_keys(self, key_heads: int) -> Tensor | None:
        """Return the same as scales of the Keys, (B, 1 or KV, P); None if the limits or the rule do not allow that."""
        if not self._may_be_of_keys:
            return None
        if self.scales.shape[1] == 1:
            return self.scales
        samples, _, keys = self.scales.shape
        grouped = self.scales.reshape(samples, key_heads, -1, keys)  # heads that share Keys side by side
        self._may_be_of_keys = bool((grouped == grouped[:, :, :1]).all())
        return grouped[:, :, 0] if self._may_be_of_keys else None

    def limited(self, first: int, end: int) -> Tensor:
        """Return the limited rows among those from position ``first`` to ``end``, (B, end - first) boolean."""
        prompt = self.rows[:, first:end]
        return torch.cat([prompt, self.later[:, None].expand(-1, end - first - prompt.shape[1])], 1)

    def window(self, first_key: int, like: Tensor, heads: Tensor | None = None) -> Tensor:
        """Return the scales of a call's Keys.

        Args:
            first_key: position of the first Key.
            like: logits of the call, (B n, H, R, K).
            heads: indices of the heads; None for all.

        Returns:
            (B n, H or 1, K), on the device of ``like``.
        """
        self.scales = self.scales.to(like.device)  # layers may lie on several devices
        keys = like.shape[-1]
        scales = self.scales[:, :, first_key : first_key + keys]
        if heads is not None and scales.shape[1] > 1:
            scales = scales[:, heads]
        scales = pad(scales, (0, keys - scales.shape[-1]), value=1.0)
        return scales.repeat_interleave(len(like) // len(scales), 0)

    def scaled(self, logits: Tensor, rows: Tensor, first_key: int, heads: Tensor | None = None) -> Tensor:
        """Return the logits of a call under the rule.

        Args:
            logits: (B n, H, R, K), before the mask.
            rows: the limited rows among them, (B, R) boolean.
            first_key: position of the first Key.
            heads: indices of the heads that ``logits`` are of; None for all.
        """
        beams = len(logits) // len(self.scales)
        factor = self.window(first_key, logits, heads)[:, :, None]
        if self.bends:
            monotone = self.monotone.to(logits.device).repeat_interleave(beams, 0)
            # z + (s - 1) |z| is s z for positive logits and (2 - s) z for negative ones
            factor = torch.where(monotone[:, None, None, None] & (logits < 0), 2 - factor, factor)
        if rows.all():
            return logits * factor
        rows = rows.to(logits.device).repeat_interleave(beams, 0)
        return torch.where(rows[:, None, :, None], logits * factor, logits)


#: Scales of the Keys (L, B, P) for all queries and heads, or limited ones.
Scales = Tensor | LogitScales
