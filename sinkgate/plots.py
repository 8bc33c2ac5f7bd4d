"""Figures for notebooks and the page: floats in, a Plotly figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

GROUP_NAMES = {
    "v_sink": "V-sinks",
    "l_sink": "L-sinks",
    "ordinary": "ordinary",
    "separator": "separators",
    "text": "text",
}
GROUP_COLORS = {  # told apart with normal, red-blind, green-blind and blue-blind sight
    "v_sink": "#e8590c",
    "l_sink": "#1864ab",
    "ordinary": "#4dabf7",
    "separator": "#9030f0",
    "text": "#868e96",
}
_INK, _GRID = "#868e96", "rgba(134, 142, 150, 0.22)"  # readable on light and on dark


def shares_figure(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]] | None = None, height: int = 300
) -> go.Figure:
    """Attention share of each group of tokens over the layers.

    ``before`` and ``after`` map a group's name to one share a layer (0 to 1, as `Trace.shares` gives
    them); ``before`` is drawn dotted where there is an ``after``. Separators (newline and tile tokens) are drawn
    only where there are any.
    """
    figure = go.Figure()
    for group, name in GROUP_NAMES.items():
        if group not in before or (group == "separator" and not any(before[group])):
            continue
        color = GROUP_COLORS[group]
        if after is not None:
            figure.add_scatter(
                y=list(before[group]),
                name=f"{name}, unchanged",
                mode="lines",
                line={"color": color, "width": 1.5, "dash": "dot"},
                opacity=0.75,
                showlegend=False,
                hovertemplate="layer %{x}: %{y:.1%}",
            )
        figure.add_scatter(
            y=list((after or before)[group]),
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"size": 5},
            hovertemplate="layer %{x}: %{y:.1%}",
        )
    layers = max((len(shares) for shares in before.values()), default=0)
    title = {"text": "layer", "font": {"size": 12}, "standoff": 4}
    figure.update_xaxes(title=title, dtick=1 if layers <= 16 else 4, gridcolor=_GRID, zeroline=False, fixedrange=True)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", gridcolor=_GRID, zeroline=False, fixedrange=True)
    figure.update_layout(
        height=height,
        margin={"l": 40, "r": 8, "t": 8, "b": 30},
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "indentation": -5, "font": {"size": 11}},
        hovermode="x unified",
    )
    return figure
