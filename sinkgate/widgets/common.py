"""Parts shared by all widgets."""

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
from sinkgate.sinks.words import sentence

MAX_NEW_TOKENS = 32  # of answers; default chosen by us
WARN = "var(--jp-error-color1, #a61e4d)"  # the colour of the notebook's theme


def ipywidgets() -> Any:
    """Import ipywidgets.

    Raises:
        SinkgateError: ipywidgets, or anywidget, which live Plotly figures need, is not installed.
    """
    missing = [name for name in ("ipywidgets", "anywidget") if find_spec(name) is None]
    if missing:
        raise SinkgateError(f'widgets need {" and ".join(missing)}: pip install "sinkgate[notebooks]"')
    import ipywidgets

    return ipywidgets


def still(figure: go.Figure) -> Any:
    """Return the figure as a widget as wide as its cell, without the buttons that would cover its titles."""
    widget: Any = go.FigureWidget(figure.update_layout(autosize=True))
    widget._config = {**widget._config, "displayModeBar": False, "responsive": True}
    return widget


def following() -> Any:
    """Return an invisible widget that makes the figures of its box follow the width of the box.

    Plotly measures only when the window is resized, and draws first when its width is not yet known.
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
    """Base of widgets: a notebook displays ``box``; without a widget front end, as on a code host, the ``repr``."""

    box: Any

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {**self.box._repr_mimebundle_(**options), "text/plain": repr(self)}


def small(text: str) -> str:
    """Return HTML of a remark."""
    return f'<span style="color: {SOFT}">{escape(text)}</span>'


def card(content: str) -> str:
    """Return HTML on a white background, as figures have in every theme of a notebook."""
    return f'<div style="background: white; color: {INK}; padding: 8px 12px">{content}</div>'


def cards(answers: Mapping[str, str | None], colors: Iterable[str]) -> str:
    """Return HTML of answers side by side, in the colours of their bars; None stands for an answer not generated yet."""
    style = "flex: 1; padding: 0 12px; line-height: 1.5; border-left: 4px solid"
    each = (
        f'<div style="{style} {color}">{small(name)}<br><b class="sinkgate-answer" style="font-size: 16px">{"…" if text is None else escape(text)}</b></div>'
        for (name, text), color in zip(answers.items(), colors, strict=True)
    )
    return card(f'<div style="display: flex; gap: 12px">{"".join(each)}</div>')


def data_url(image: Image.Image, side: int) -> str:
    """Return an image, at most ``side`` pixels wide and high, as a PNG data URL."""
    image = image.copy()
    image.thumbnail((side, side))
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def fault(text: str) -> str:
    """Return HTML of an error sentence; empty for an empty text."""
    return text and f'<div role="alert" style="color: {WARN}">{escape(sentence(text))}</div>'
