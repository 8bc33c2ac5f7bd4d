"""Result of one run of the model: answer, next-token distribution, attention rows.

Shapes: L layers, H heads, R recorded rows, K keys, V visual tokens, S separators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sinkgate.errors import SinkgateError
from sinkgate.images.layout import Sheet, by_time
from sinkgate.sinks.classify import SinkMasks
from sinkgate.sinks.numbers import index, position

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Trace:
    """One run of the model. Row r of ``attention`` is the query that produced token r of ``tokens``; row 0 is the last prompt token.

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

    def __repr__(self) -> str:
        word, share = self.next_token[0]
        written = f"{self.text!r}, {len(self.tokens)} tokens" if self.ids else "no answer yet"
        layers, heads, rows, keys = self.attention.shape
        return f"Trace({written}, next token {word!r} {share:.1%}, attention of {layers} layers x {heads} heads x {rows} rows x {keys} keys)"

    def to_frame(self, sinks: SinkMasks | None = None) -> pd.DataFrame:
        """Return the shares of each recorded row's attention as a table: one line for each row and layer, shares sum to one.

        Columns: ``row``, ``token`` that it produced, ``layer``, then ``visual`` (with ``sinks``: ``v_sink``, ``l_sink`` and ``ordinary``),
        ``separator`` and ``text``, each the mean over heads, in [0, 1].
        """
        try:
            import pandas as pd  # takes a second, and gates need none of it
        except ModuleNotFoundError as error:
            raise SinkgateError('to_frame needs pandas: pip install "sinkgate[plots]"') from error
        lines: list[dict[str, Any]] = []
        for row in range(self.attention.shape[2]):
            token = self.tokens[row] if row < len(self.tokens) else self.next_token[0][0]
            shares = {name: cast(Any, share).tolist() for name, share in self.shares(sinks, row).items()}
            for layer in range(len(self.attention)):
                lines.append(
                    {"row": row, "token": token, "layer": layer, **{name: shares[name][layer] for name in shares}}
                )
        return pd.DataFrame(lines)

    def visual(
        self, layer: int, head: int | None = None, row: int = 0, hide: Tensor | None = None, sheet: int = 0
    ) -> Tensor:
        """Return the attention on the visual tokens of one sheet, (rows, columns); the mean over heads where ``head`` is None.

        ``hide`` (V,) boolean sets those tokens to zero and scales the others to the same sum.

        Raises:
            SinkgateError: there is no such layer, head or sheet, or no such row was recorded.
        """
        layers, heads = self.attention.shape[:2]
        rows = self._row(row)[position(layer, layers, "a layer")]
        patches = (rows.mean(0) if head is None else rows[position(head, heads, "a head")])[self.positions]
        if hide is not None:
            shown = patches * ~hide
            patches = shown * (patches.sum() / shown.sum().clamp_min(1e-12))
        return self.sheets[position(sheet, len(self.sheets), "a sheet")].spread(patches)

    def shares(self, sinks: SinkMasks | None = None, row: int = 0) -> dict[str, Tensor]:
        """Return the shares of one row's attention in each layer, the mean over heads.

        Returns ``v_sink``, ``l_sink`` and ``ordinary`` (without ``sinks`` all three as ``visual``), ``separator`` (newline and tile
        tokens) and ``text``, each (L,), summing to one.

        Raises:
            SinkgateError: no such row was recorded.
        """
        rows = self._row(row).mean(1)  # L, K
        patches, separator = rows[:, self.positions], rows[:, self.separators].sum(1)
        if sinks is None:
            shares = {"visual": patches.sum(1)}
        else:
            groups = {"v_sink": sinks.v_sink, "l_sink": sinks.l_sink, "ordinary": sinks.ordinary}
            shares = {name: (patches * mask).sum(1) for name, mask in groups.items()}
        return {**shares, "separator": separator, "text": rows.sum(1) - patches.sum(1) - separator}

    def frames(self, row: int = 0, hide: Tensor | None = None) -> dict[tuple[int, int], Tensor]:
        """Return the share of one row's attention on each frame of a video in each layer, the mean over heads.

        Args:
            row: of the recorded ones.
            hide: (V,) boolean, tokens that are left out, such as ``sinks.v_sink``.

        Returns:
            Shares (L,) by the first and the last frame that the tokens cover, in order of time; together they are the share of the visual tokens.

        Raises:
            SinkgateError: no such row was recorded, or the prompt holds no video.

        Example:
            >>> {frames: float(share.mean()) for frames, share in vlm.predict(prompt).frames().items()}
        """
        spans = by_time(self.sheets)
        if not spans:
            raise SinkgateError(
                "the prompt holds no video whose frames are known; make it with vlm.prompt(video, question)"
            )
        patches = self._row(row).mean(1)[:, self.positions]
        if hide is not None:
            patches = patches * ~hide
        return {span: patches[:, tokens].sum(1) for span, tokens in spans.items()}

    def _row(self, row: int) -> Tensor:
        """Return the attention of one recorded row, (L, H, K)."""
        recorded, row = self.attention.shape[2], index(row, "an attention row")
        if not -recorded <= row < recorded:
            raise SinkgateError(
                f"there is no attention row {row}: this trace holds {recorded}, from 0; max_rows says how many an answer records"
            )
        return self.attention[:, :, row]


def stack_rows(recorded: dict[int, list[Tensor]]) -> Tensor:
    """Return the rows of one sample over forward calls, keys padded with zeros: L lists of (1, H, R, K) -> (L, H, R, K)."""
    longest = max(rows.shape[-1] for calls in recorded.values() for rows in calls)

    def padded(rows: Tensor) -> Tensor:
        missing = longest - rows.shape[-1]
        return torch.nn.functional.pad(rows[0], (0, missing)) if missing else rows[0]

    # layers may lie on several devices
    return torch.stack([torch.cat([*map(padded, recorded[layer])], 1).cpu() for layer in sorted(recorded)])
