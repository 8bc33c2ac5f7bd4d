"""What all widgets are made with."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from importlib.util import find_spec
from typing import Any

import plotly.graph_objects as go
from PIL import Image

from sinkgate.errors import SinkgateError
from sinkgate.plots.style import INK, SOFT

MAX_NEW_TOKENS = 32  # of answers; ours
WARN = "var(--jp-error-color1, #a61e4d)"  # as the notebook's theme has it


def ipywidgets() -> Any:
    """The package; raises SinkgateError where it, or what Plotly needs beside it, is missing."""
    missing = [name for name in ("ipywidgets", "anywidget") if find_spec(name) is None]
    if missing:
        raise SinkgateError(f'widgets are made with {" and ".join(missing)}: pip install "sinkgate[notebooks]"')
    import ipywidgets

    return ipywidgets


def still(figure: go.Figure) -> Any:
    """The figure as a widget as wide as its cell, without the buttons that would hide its titles."""
    widget: Any = go.FigureWidget(figure.update_layout(autosize=True))
    widget._config = {**widget._config, "displayModeBar": False, "responsive": True}
    return widget


def following() -> Any:
    """A widget that nobody sees: with it in a box, figures there take the box's width whenever that changes.

    Plotly looks only when the window changes, and draws first when its width is not yet known.
    """
    import anywidget

    class Following(anywidget.AnyWidget):
        _esm = """
          export default {
            render({ el }) {
              let box;
              const observer = new ResizeObserver(() => {
                if (!box && (box = el.parentElement)) observer.observe(box);
                window.dispatchEvent(new Event("resize"));
              });
              observer.observe(el);
              return () => observer.disconnect();
            },
          };
        """

    return Following()


class Shown:
    """What a notebook shows by its ``box``; where there is no front end for widgets, such as on a code host, by its ``repr``."""

    box: Any

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {**self.box._repr_mimebundle_(**options), "text/plain": repr(self)}


def small(text: str) -> str:
    """A remark."""
    return f'<span style="color: {SOFT}">{escape(text)}</span>'


def card(content: str) -> str:
    """HTML on white, as figures are, whatever the notebook's theme."""
    return f'<div style="background: white; color: {INK}; padding: 8px 12px">{content}</div>'


def cards(answers: Mapping[str, str | None], colors: Iterable[str]) -> str:
    """Answers side by side, by name, in the colours of their bars; None is not written yet."""
    style = "flex: 1; padding: 0 12px; line-height: 1.5; border-left: 4px solid"
    each = (
        f'<div style="{style} {color}">{small(name)}<br><b class="sinkgate-answer" style="font-size: 16px">{"…" if text is None else escape(text)}</b></div>'
        for (name, text), color in zip(answers.items(), colors, strict=True)
    )
    return card(f'<div style="display: flex; gap: 12px">{"".join(each)}</div>')


def data_url(image: Image.Image, side: int) -> str:
    """A picture of at most so many pixels a side, to stand in a page."""
    image = image.copy()
    image.thumbnail((side, side))
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def fault(text: str) -> str:
    """What is wrong, as a sentence in place; nothing stays nothing."""
    sentence = f"{text[:1].upper()}{text[1:].rstrip('.')}."
    return text and f'<div role="alert" style="color: {WARN}">{escape(sentence)}</div>'
