"""Attention shares over the layers, for notebooks and the app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sinkgate.plots.style import GRID, GROUP_COLORS, GROUP_NAMES, SEQUENTIAL, dressed

_INK = "#868e96"  # readable on light and on dark


def shares_figure(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]] | None = None, height: int = 300
) -> go.Figure:
    """Draw the attention share of each group of tokens over the layers.

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
    figure.update_xaxes(title=title, dtick=1 if layers <= 16 else 4, gridcolor=GRID, zeroline=False, fixedrange=True)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", gridcolor=GRID, zeroline=False, fixedrange=True)
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


def frames_figure(shares: Mapping[tuple[int, int], Sequence[float]]) -> go.Figure:
    """Draw the attention share of each frame of a video in each layer, as `Trace.frames` gives them.

    Args:
        shares: one share a layer, in [0, 1], by the first and the last frame that its tokens cover.

    Example:
        >>> frames_figure(vlm.predict(prompt).frames())
    """
    names = [str(first) if first == last else f"{first}-{last}" for first, last in shares]
    columns = [[float(value) for value in each] for each in shares.values()]
    figure = go.Figure(
        go.Heatmap(
            x=names,
            z=list(zip(*columns, strict=True)),
            zmin=0,
            colorscale=SEQUENTIAL,
            colorbar={"tickformat": "~%", "thickness": 12, "outlinewidth": 0},
            hovertemplate="frame %{x}, layer %{y}: %{z:.1%}<extra></extra>",
        )
    )
    layers = len(columns[0]) if columns else 0
    figure.update_xaxes(title_text="frame", type="category")
    figure.update_yaxes(title_text="layer", dtick=1 if layers <= 16 else 4)
    subtitle = "Share of the attention of one query, the mean over heads."
    return dressed(figure, "Attention by frame", subtitle, 180 + 18 * max(layers, 8), legend=False)
