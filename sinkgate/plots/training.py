"""Figures of learned gates: the lines that their scales move on, losses while they learn, and the scales that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinkgate.plots.style import COLORWAY, DIVERGING, SOFT, dressed, panels

Point = tuple[float, float]  # scale of V-sinks, scale of all others
COLORS = {"paper": COLORWAY[1], "identity": COLORWAY[0]}  # of gates by their start


def lines_figure(
    lines: Mapping[str, tuple[Sequence[Point], float]], loss: Mapping[Point, float], layer: int
) -> go.Figure:
    """Draw lines in the plane of the scales, and the loss along them.

    Args:
        lines: points with the scale at which gates begin, by the name of a start, a key of ``COLORS``.
        loss: nats a token by point; (1, 1) is the unmodified model.
        layer: number of the scaled layer.

    Example:
        >>> lines_figure({"paper": ([(0, 1), (1, 0)], 0.5)}, {(0, 1): 2.0, (1, 0): 3.0, (1, 1): 1.0}, 2)
    """
    figure, (plane, along) = panels(["scales of one layer", "loss"], 2, "scale of V-sinks", (0.12, 0.1))
    figure.update_yaxes(matches=None, showticklabels=True)
    for name, (line, start) in lines.items():
        v, rest = zip(*line, strict=True)
        style = {"name": name, "legendgroup": name, "mode": "lines+markers", "line": {"color": COLORS[name]}}
        sizes = {"size": [13 if scale == start else 6 for scale in v]}
        figure.add_scatter(x=v, y=rest, marker=sizes, **style, **plane)
        figure.add_scatter(x=v, y=[loss[point] for point in line], marker=sizes, showlegend=False, **style, **along)
    figure.add_hline(y=loss[1.0, 1.0], line={"color": SOFT, "dash": "dot"}, **along)
    figure.update_yaxes(title_text="scale of all others", **plane)
    figure.update_yaxes(title_text="nats a token", **along)
    subtitle = "Large marks: where gates begin. Dotted: the loss of the unmodified model, which is (1, 1)."
    return dressed(figure, f"Two lines, fixed for all questions, in layer {layer}", subtitle, 400)


def losses_figure(
    curves: Mapping[str, Mapping[str, pd.Series]],
    unmodified: float,
    title: str = "Gates learn",
    colors: Mapping[str, str] = COLORS,
) -> go.Figure:
    """Draw the validation loss of gates while they learn.

    Args:
        curves: for each panel, by its title, the loss in nats a token by step and name of the gates.
        unmodified: loss of the unmodified model, drawn dotted.
        title: of the figure.
        colors: of the names.
    """
    figure, cells = panels(list(curves), len(curves), "step", (0.04, 0.1))
    labelled: set[str] = set()
    for panel, cell in zip(curves.values(), cells, strict=True):
        for name, curve in panel.items():
            style = {"name": name, "legendgroup": name, "line": {"color": colors[name]}}
            figure.add_scatter(
                x=curve.index, y=curve, mode="lines+markers", showlegend=name not in labelled, **style, **cell
            )
            labelled.add(name)
        figure.add_hline(y=unmodified, line={"color": SOFT, "dash": "dot"}, **cell)
    figure.update_yaxes(title_text="nats a token", **cells[0])
    subtitle = "Loss on questions that gates do not learn from. Dotted: the unmodified model."
    return dressed(figure, title, subtitle, 380)


def scales_figure(tables: Mapping[str, tuple[pd.DataFrame, float]]) -> go.Figure:
    """Draw mean scales of V-sinks, kinds of question by layers.

    Args:
        tables: for each panel, by its title, scales with a row a kind and a column a layer, and the scale at which gates begin: its
            colour is neutral, and twice of it the end of the colours. All panels have the rows of the first, in its order.
    """
    kinds = next(iter(tables.values()))[0].index
    figure, cells = panels(list(tables), len(tables), "layer", (0.04, 0.1))
    for (table, start), cell in zip(tables.values(), cells, strict=True):
        figure.add_heatmap(
            x=[str(layer) for layer in table.columns],
            y=list(kinds),
            z=table.loc[kinds].to_numpy(),
            zmin=0,
            zmid=start,
            zmax=2 * start,
            colorscale=DIVERGING,
            text=np.round(table.loc[kinds].to_numpy(), 2),
            texttemplate="%{text:.2f}",
            showscale=False,
            **cell,
        )
    figure.update_xaxes(type="category").update_yaxes(autorange="reversed")
    subtitle = "Mean over questions. Green: above where the gate began; brown: below."
    return dressed(figure, "Scale of V-sinks, by kind of question", subtitle, 200 + 25 * len(kinds), legend=False)
