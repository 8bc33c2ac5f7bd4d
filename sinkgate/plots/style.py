"""Style of all figures: colours of the groups, template, scales, export to files.

Groups differ by colour, dash and marker, gains and losses by colour and sign, so that figures can be read by colour-blind people
and in grey print.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.sinks.glossary import GROUP_COLORS

GROUP_NAMES = {
    "v_sink": "V-sinks",
    "l_sink": "L-sinks",
    "ordinary": "ordinary",
    "separator": "separators",
    "text": "text",
    "first": "first token",
    "rest": "all but V-sinks",
}
GROUP_DASHES = {
    "v_sink": "solid",
    "l_sink": "dash",
    "ordinary": "dot",
    "separator": "longdash",
    "text": "dashdot",
    "first": "longdashdot",
    "rest": "solid",
}
GROUP_SYMBOLS = {
    "v_sink": "triangle-up",
    "l_sink": "square",
    "ordinary": "circle",
    "separator": "x",
    "text": "diamond",
    "first": "triangle-down",
    "rest": "cross",
}
INK, SOFT, GRID = "#343a40", "#868e96", "rgba(134, 142, 150, 0.22)"
#: For methods, kinds and whatever else is no group.
COLORWAY = ["#44aa99", "#75407a", "#c9a227", "#a8324a", "#8f7fe0", "#5c7a29"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"]
LOSS, GAIN = "#8c510a", "#01665e"
#: From loss through nothing to gain (ColorBrewer's BrBG): safe for colour-blind eyes, equally dark at both ends.
DIVERGING = [
    [0, LOSS],
    [0.2, "#bf812d"],
    [0.4, "#ecd9ae"],
    [0.5, "#f5f5f5"],
    [0.6, "#bfe5df"],
    [0.8, "#35978f"],
    [1, GAIN],
]
#: From little to much, or from the first layer to the last.
SEQUENTIAL = [[0, "#f1eef6"], [0.25, "#bdc9e1"], [0.5, "#74a9cf"], [0.75, "#2b8cbe"], [1, "#045a8d"]]
LEVEL = 0.05  # a corrected p below it is marked
WIDTH = 900  # pixels, in a file

#: An axis in logarithms, whose labels are whole numbers: without a format Plotly writes 2 for 200.
LOG = {"type": "log", "nticks": 4, "tickformat": ",~r"}
_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": GRID,
    "automargin": True,
    "exponentformat": "none",
    "title": {"font": {"size": 12}, "standoff": 8},
}
pio.templates["sinkgate"] = go.layout.Template(
    layout={
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "title": {
            "font": {"size": 17},
            "subtitle": {"font": {"size": 12, "color": SOFT}},
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "margin": {"l": 60, "r": 20, "t": 84, "b": 50},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "colorway": COLORWAY,
        "colorscale": {"diverging": DIVERGING, "sequential": SEQUENTIAL},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def dressed(figure: go.Figure, title: str, subtitle: str, height: int, legend: bool = True) -> go.Figure:
    """Set title, subtitle and height in pixels, with space below for a legend if there is one; return the figure."""
    figure.update_layout(template="sinkgate", height=height, title={"text": title, "subtitle": {"text": subtitle}})
    figure.update_annotations(font_size=13)  # titles of panels
    return figure.update_layout(showlegend=legend, margin_b=88 if legend else 50)


def panels(
    titles: Sequence[str], across: int, x_title: str, spacing: tuple[float, float]
) -> tuple[go.Figure, list[dict[str, Any]]]:
    """Return an empty figure of panels with shared y axes, ``across`` side by side, and the row and column of each.

    The x axis is named below the lowest panel of each column. ``spacing``: across and down, in shares of the figure.
    """
    count = max(1, len(titles))
    rows = -(-count // across)
    cells = [{"row": number // across + 1, "col": number % across + 1} for number in range(rows * across)]
    specs = [[{} if row * across + col < count else None for col in range(across)] for row in range(rows)]
    figure = make_subplots(
        rows,
        across,
        specs=specs,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=spacing[0],
        vertical_spacing=spacing[1],
    )
    for cell in cells[max(0, count - across) : count]:
        figure.update_xaxes(title_text=x_title, row=cell["row"], col=cell["col"])
    return figure, cells[:count]


def significant(table: pd.DataFrame) -> np.ndarray:
    """Return which rows of a table are significant: by ``corrected`` p, or without it by an interval ``low`` to ``high`` without 0."""
    if "corrected" in table:
        return (table["corrected"] < LEVEL).to_numpy()
    return ((table["low"] > 0) | (table["high"] < 0)).to_numpy()


def groups_in(table: pd.DataFrame) -> list[str]:
    """Return the groups of a table's column ``group``, in drawing order."""
    present = set(table["group"])
    return [group for group in GROUP_NAMES if group in present]


def group_style(group: str, width: float = 2) -> dict[str, Any]:
    """Return name, line and marker of a group, as arguments of a scatter."""
    color = GROUP_COLORS[group]
    return {
        "name": GROUP_NAMES[group],
        "legendgroup": group,
        "line": {"color": color, "width": width, "dash": GROUP_DASHES[group]},
        "marker": {"color": color, "size": 8, "symbol": GROUP_SYMBOLS[group], "maxdisplayed": 10},
    }


def layer_axis(layers: Iterable[int]) -> dict[str, Any]:
    """Label the x axis with layers, each one if there is space."""
    present = set(layers)
    span = [min(present, default=0) - 0.5, max(present, default=0) + 0.5]
    return {"title_text": "layer", "dtick": 1 if len(present) <= 16 else 4, "range": span}


def export(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as .html (self-contained), .svg, .png or .pdf.

    Raises:
        SinkgateError: another suffix; a folder that is not there; an image where kaleido or Chrome is missing.
    """
    path = Path(path)
    if path.suffix not in (".html", ".svg", ".png", ".pdf"):
        raise SinkgateError(f"{path.name} ends in {path.suffix or 'nothing'}; expected .html, .svg, .png or .pdf")
    try:
        if path.suffix == ".html":
            figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False})
        elif find_spec("kaleido") is None:
            raise SinkgateError(
                f"{path.name} is drawn by kaleido, which is missing: pip install kaleido, or take .html"
            )
        else:
            import kaleido

            layout = figure["layout"]
            size = {"width": layout["width"] or WIDTH, "height": layout["height"] or 450}
            options = {**size, "format": path.suffix[1:], "scale": 2 if path.suffix == ".png" else 1}
            kaleido.write_fig_sync(figure, path=path, opts=options, kopts={"mathjax": False})  # else from a CDN
    except OSError as error:
        raise SinkgateError(f"{path} cannot be written: {with_remedy(error)}") from error
    except RuntimeError as error:
        raise SinkgateError(
            f"{path.name} is drawn by Chrome or Chromium, which did not start: install one, or take .html"
        ) from error
    return path
