"""The choice of an attention map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sinkgate as sg

SCALES = ("shared", "own", "log")  # of the maps' colours


@dataclass(frozen=True)
class Lens:
    """The attention map on the page."""

    layer: int = 0
    head: int | None = None  # None: mean over heads
    row: int = 0  # the query that generated this token; 0 is the last token of the prompt
    hide: bool = False  # mask sinks
    sheet: int = 0  # of the prompt's
    scale: str = "shared"  # of the colours, one of SCALES
    position: int | None = None  # of the prompt token that is the query; None: the row of a generated token
    heads: bool = False  # show the maps of all heads
    patch: int | None = None  # cell on the sheet, row by row, whose panel is open

    @classmethod
    def read(cls, value: Any, vlm: sg.VLM, sheets: int = 1) -> Lens:
        """Return the page's choice, each value that model or prompt do not have replaced by a default; raises nothing."""
        value = value if isinstance(value, Mapping) else {}
        layer, head, row, sheet, position, patch = (
            _whole(value.get(key)) for key in ("layer", "head", "row", "sheet", "position", "patch")
        )
        return cls(
            layer=min(max(layer or 0, 0), vlm.num_layers - 1),
            head=head if head is not None and 0 <= head < vlm.num_heads else None,
            row=max(row or 0, 0) if position is None else 0,
            hide=value.get("hide") is True,
            sheet=min(max(sheet or 0, 0), sheets - 1),
            scale=next((name for name in SCALES if name == value.get("scale")), SCALES[0]),
            position=position,
            heads=value.get("heads") is True,
            patch=patch,
        )

    def within(self, prompt: sg.Prompt) -> Lens:
        """Return this choice without a query or patch that the prompt does not have."""
        tokens = prompt.sheets[self.sheet].tokens.flatten()
        query = self.position is not None and 0 <= self.position < prompt.length - 1
        query = query and self.position not in image_positions(prompt)
        patch = self.patch is not None and 0 <= self.patch < len(tokens) and int(tokens[self.patch]) >= 0
        return replace(self, position=self.position if query else None, patch=self.patch if patch else None)


def image_positions(prompt: sg.Prompt) -> set[int]:
    """Return the prompt positions that the image takes; none where it is read by cross-attention."""
    if prompt.num_keys != prompt.length:
        return set()
    return {*prompt.visual.tolist(), *prompt.separators.tolist()}


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 else None
