"""Figure of an evaluation: methods against the unmodified model."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinkgate.plots.style import COLORWAY, GRID, SOFT, SYMBOLS, dressed, significant

ROW = 17  # pixels


def changes_figure(changes: pd.DataFrame, by: str = "task") -> go.Figure:
    """Draw the accuracy change of each method by task, with 95 % intervals.

    Args:
        changes: one row a task and method: ``method``, ``change`` with ``low`` to ``high`` (shares, drawn as points); ``corrected``, p
            after correction, where there is one.
        by: the column that is the task, or the name of a score.
    """
    tasks, methods = list(dict.fromkeys(changes[by])), list(dict.fromkeys(changes["method"]))
    step = len(methods) + 1  # a row a method, and one between tasks
    figure = go.Figure()
    for number, method in enumerate(methods):
        rows = changes.loc[changes["method"] == method]
        color, symbol = COLORWAY[number % len(COLORWAY)], SYMBOLS[number % len(SYMBOLS)]
        points = 100 * rows.loc[:, ["change", "low", "high"]]
        figure.add_scatter(
            x=points["change"],
            y=[step * tasks.index(task) + number for task in rows[by]],
            name=escape(str(method)),
            mode="markers",
            marker={
                "color": color,
                "size": 8,
                "symbol": np.where(significant(rows), symbol, f"{symbol}-open"),
                "line": {"width": 1.5, "color": color},
            },
            error_x={
                "array": points["high"] - points["change"],
                "arrayminus": points["change"] - points["low"],
                "color": color,
                "thickness": 1.5,
                "width": 3,
            },
            customdata=points[["low", "high"]].assign(task=[escape(str(task)) for task in rows[by]]),
            hovertemplate=f"{escape(str(method))}, %{{customdata[2]}}<br>%{{x:+.1f}} points "
            "(%{customdata[0]:+.1f} to %{customdata[1]:+.1f})<extra></extra>",
        )
    for number in range(1, len(tasks)):
        figure.add_hline(y=step * number - 1, line={"color": GRID, "width": 1})
    figure.add_vline(x=0, line={"color": SOFT, "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="points of accuracy against the unmodified model")
    figure.update_yaxes(
        tickvals=[step * task + number for task in range(len(tasks)) for number in range(len(methods))],
        ticktext=[escape(str(method)) for _ in tasks for method in methods],
        range=[step * len(tasks) - 1, -1.2],
        showgrid=False,
    )
    for number, task in enumerate(tasks):
        figure.add_annotation(
            text=f"<b>{escape(str(task))}</b>",
            x=0,
            xref="paper",
            xanchor="left",
            y=step * number - 0.9,
            showarrow=False,
        )
    subtitle = "95 % intervals; a filled mark holds after correction (p < 0.05). Right of 0 is a gain."
    return dressed(figure, "What each method changes", subtitle, 150 + ROW * step * len(tasks), legend=False)
