"""Figures of the oracle sweep: accuracy changes by setting and task (paper, section 3).

Unless stated otherwise they take rows of a task and a setting: ``task``, ``layer``, the scales ``v_sink``, ``l_sink`` and
``ordinary``, ``change`` of accuracy against the unmodified model with its 95 % interval ``low`` to ``high`` (shares, drawn as
points), and ``corrected``, p after correction for the number of settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sinkgate.plots.style import COLORWAY, DIVERGING, GAIN, GRID, INK, LOSS, SOFT, dressed, panels, significant

SCALES = ["v_sink", "l_sink", "ordinary"]
ACROSS = 4  # panels side by side


def layers_figure(cells: pd.DataFrame, limit: float | None = None) -> go.Figure:
    """Draw a map of tasks by layers; one table row for each task and layer, such as the best point of the paper's line.

    ``limit``: points at which the colours end, the same both ways; those of the largest change where None.
    """
    figure = _map(cells, "change", limit)
    subtitle = "Points of accuracy against the unmodified model; bold with * where it holds after correction."
    return dressed(figure, "Gains and losses by task and layer", subtitle, _height(cells), legend=False)


def lean_figure(leans: pd.DataFrame, limit: float | None = None, tasks: Sequence[str] | None = None) -> go.Figure:
    """Draw a map of leanings: accuracy with strong V-sinks minus accuracy with weak V-sinks.

    Args:
        leans: one row a task and layer: ``task``, ``layer``, ``lean``, ``low``, ``high``, ``corrected``.
        limit: points at which the colours end, as in `layers_figure`; the same for maps that are to be compared.
        tasks: rows from above, likewise; in the order of the table where None.
    """
    figure = _map(leans, "lean", limit, tasks)
    subtitle = (
        "Accuracy with V-sinks up, minus with V-sinks down, in points; bold with * where it holds after correction."
    )
    return dressed(figure, "Which way each task leans, layer by layer", subtitle, _height(leans), legend=False)


def settings_figure(gains: pd.DataFrame, limit: float | None = None) -> go.Figure:
    """Draw the whole sweep, tasks by settings; within a layer the V-sink scale rises from 0 to its maximum.

    ``limit`` as in `layers_figure`. Triangles mark what holds after correction.
    """
    tasks = list(dict.fromkeys(gains["task"]))
    cells = gains.loc[:, ["layer", *SCALES]].drop_duplicates().sort_values(by=["layer", *SCALES], ignore_index=True)
    cells["at"] = np.arange(len(cells)) + 0.5
    table = gains.merge(cells, on=["layer", *SCALES])
    table = table.assign(points=100 * table["change"], hover=[_hover_text(row) for _, row in table.iterrows()])
    z, hover = (
        table.pivot(index="task", columns="at", values=name).loc[tasks, cells["at"]] for name in ("points", "hover")
    )
    labels = {task: escape(str(task)) for task in tasks}
    figure = go.Figure()
    figure.add_heatmap(
        x=cells["at"],
        y=list(labels.values()),
        z=z.to_numpy(),
        customdata=hover.to_numpy(),
        hovertemplate="%{y}<br>%{customdata}<extra></extra>",
        ygap=1,
        **_colors(z.to_numpy(), limit),
    )
    holding = table.loc[significant(table)]
    figure.add_scatter(
        x=holding["at"],
        y=[labels[task] for task in holding["task"]],
        mode="markers",
        marker={
            "symbol": np.where(holding["change"] > 0, "triangle-up", "triangle-down"),
            "size": 7,
            "color": "white",
            "line": {"color": INK, "width": 1},
        },
        hoverinfo="skip",
        showlegend=False,
    )
    spans = cells.groupby("layer").agg(first=("at", "min"), last=("at", "max"))
    for end in list(spans["last"])[:-1]:
        figure.add_vline(x=end + 0.5, line={"color": "white", "width": 2})
    figure.update_xaxes(
        title_text="layer; within it V-sinks from their smallest scale to their largest",
        tickvals=spans.mean(axis=1),
        ticktext=[str(layer) for layer in spans.index],
        range=[0, len(cells)],
        showgrid=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category", categoryarray=list(labels.values()))
    subtitle = "Points of accuracy against the unmodified model; triangles where it holds after correction (p < 0.05)."
    return dressed(figure, "Every setting of the sweep", subtitle, 180 + 34 * len(tasks), legend=False)


def curves_figure(gains: pd.DataFrame, task: str) -> go.Figure:
    """Draw one task along the paper's line, V-sinks at rho and all other visual tokens at 1 - rho, one panel for each layer.

    Settings off the line are left out.
    """
    on_line = np.isclose(gains["v_sink"] + gains["ordinary"], 1) & np.isclose(gains["l_sink"], gains["ordinary"])
    table = gains.loc[on_line & (gains["task"] == task)].sort_values(by=["layer", "v_sink"])
    layers = list(dict.fromkeys(table["layer"]))
    rows = max(1, -(-len(layers) // ACROSS))
    titles = [f"layer {layer}" for layer in layers]
    figure, cells = panels(titles, ACROSS, "rho of V-sinks", (0.025, 0.3 / (rows + 1)))
    for number, (layer, cell) in enumerate(zip(layers, cells, strict=False)):
        line = table[table["layer"] == layer]
        rho = line["v_sink"]
        figure.add_scatter(
            x=[*rho, *rho[::-1]],
            y=100 * np.array([*line["high"], *line["low"][::-1]]),
            fill="toself",
            fillcolor=GRID,
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            name="95 % interval",
            legendgroup="interval",
            showlegend=number == 0,
            **cell,
        )
        holds, gain = significant(line), line["change"].to_numpy() > 0
        figure.add_scatter(
            x=rho,
            y=100 * line["change"],
            mode="lines+markers",
            line={"color": SOFT, "width": 1.5},
            marker={
                "size": np.where(holds, 8, 4),
                "color": np.where(holds, np.where(gain, GAIN, LOSS), SOFT),
                "symbol": np.where(holds, np.where(gain, "triangle-up", "triangle-down"), "circle"),
            },
            customdata=[_hover_text(row) for _, row in line.iterrows()],
            hovertemplate=f"layer {layer}<br>%{{customdata}}<extra></extra>",
            showlegend=False,
            **cell,
        )
    for name, color, symbol in (("gain that holds", GAIN, "triangle-up"), ("loss that holds", LOSS, "triangle-down")):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"color": color, "symbol": symbol, "size": 8}
        )
    figure.add_hline(y=0, line={"color": SOFT, "width": 1, "dash": "dot"})
    room = 100 * max(table["high"].max() - table["low"].min(), 0.01) * 0.05 if len(table) else 1.0
    ends = [100 * min(0.0, table["low"].min()) - room, 100 * max(0.0, table["high"].max()) + room]
    figure.update_xaxes(range=[-0.05, 1.05], dtick=0.5, showticklabels=False)
    figure.update_xaxes(showticklabels=True, selector=lambda axis: axis.title.text is not None)
    figure.update_yaxes(range=ends, nticks=5)
    figure.update_yaxes(title_text="points", col=1)
    subtitle = "V-sinks scaled by rho, the rest by 1 - rho: which way does each layer lean? 0 is the unmodified model."
    return dressed(figure, f"{escape(str(task))}, layer by layer", subtitle, 150 + 150 * rows)


def confirmation_figure(settings: pd.DataFrame) -> go.Figure:
    """Draw the gain of each task's best setting on the half of the items that selected it, and on the other half.

    One row a task: ``task``, ``first`` and ``second`` (the settings that the halves chose, in words), ``searched`` and ``confirmed`` (changes of
    accuracy, shares), ``low`` to ``high`` of the latter; ``family`` where there are several.
    """
    names = [_row_name(row) for _, row in settings.iterrows()]
    at = list(range(len(settings)))
    points = 100 * settings[["searched", "confirmed", "low", "high"]]
    figure = go.Figure()
    figure.add_scatter(
        x=points["searched"],
        y=at,
        mode="markers",
        name="on the half that chose it",
        marker={"symbol": "circle-open", "size": 9, "color": SOFT, "line": {"width": 2}},
        hovertemplate="promised %{x:+.1f} points<extra></extra>",
    )
    figure.add_scatter(
        x=points["confirmed"],
        y=at,
        mode="markers",
        name="on the other half, with its 95 % interval",
        marker={"symbol": "diamond", "size": 9, "color": COLORWAY[0]},
        error_x={
            "array": points["high"] - points["confirmed"],
            "arrayminus": points["confirmed"] - points["low"],
            "thickness": 1.5,
            "width": 4,
            "color": SOFT,
        },
        customdata=points[["low", "high"]],
        hovertemplate="gave %{x:+.1f} points (%{customdata[0]:+.1f} to %{customdata[1]:+.1f})<extra></extra>",
    )
    figure.add_vline(x=0, line={"color": SOFT, "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="points of accuracy against the unmodified model")
    figure.update_yaxes(tickvals=at, ticktext=names, range=[len(settings) - 0.5, -0.5])
    subtitle = "The best of many is biased upwards: what is left of it on items that had no part in the choice?"
    return dressed(figure, "Searched against confirmed", subtitle, 190 + 52 * len(settings))


def _signed(row: pd.Series, value: str, decimals: bool) -> str:
    text = f"{100 * row[value]:+z.{int(decimals)}f}"
    return f"<b>{text}*</b>" if bool(row["holds"]) else text


def _setting(row: pd.Series) -> str:
    if np.isclose(row["l_sink"], row["ordinary"]):
        return f"V-sinks {row['v_sink']:g}, rest {row['ordinary']:g}"
    return f"V-sinks {row['v_sink']:g}, L-sinks {row['l_sink']:g}, ordinary {row['ordinary']:g}"


def _hover_text(row: pd.Series, value: str = "change") -> str:
    setting = f"{_setting(row)}<br>" if set(SCALES) <= set(row.index) else ""
    p = f"<br>p = {row['corrected']:.2g}, corrected" if "corrected" in row else ""
    return f"{setting}{100 * row[value]:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}){p}"


def _row_name(row: pd.Series) -> str:
    family = f" ({row['family']})" if row.get("family", "all") != "all" else ""
    settings = dict.fromkeys((row["first"], row["second"]))
    lines = "<br>".join(f"<span style='font-size: 11px'>{escape(str(setting))}</span>" for setting in settings)
    return f"{escape(str(row['task']) + family)}<br>{lines}"


def _height(cells: pd.DataFrame) -> int:
    return 170 + 34 * len(set(cells["task"]))


def _map(cells: pd.DataFrame, value: str, limit: float | None, tasks: Sequence[str] | None = None) -> go.Figure:
    tasks, layers = list(dict.fromkeys(cells["task"] if tasks is None else tasks)), sorted(set(cells["layer"]))
    table = cells.assign(
        points=100 * cells[value],
        hover=[_hover_text(row, value) for _, row in cells.iterrows()],
        text=[_signed(row, value, len(layers) <= 24) for _, row in cells.assign(holds=significant(cells)).iterrows()],
    )
    z, hover, text = (
        table.pivot(index="task", columns="layer", values=name).loc[tasks, layers].to_numpy()
        for name in ("points", "hover", "text")
    )
    figure = go.Figure()
    figure.add_heatmap(
        x=[str(layer) for layer in layers],
        y=[escape(str(task)) for task in tasks],
        z=z,
        text=np.where(np.isnan(z), "", text),
        texttemplate="%{text}",
        textfont={"size": 11 if len(layers) <= 12 else 9 if len(layers) <= 24 else 8},
        customdata=hover,
        hovertemplate="%{y}, layer %{x}<br>%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **_colors(z, limit),
    )
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    return figure.update_yaxes(autorange="reversed", showgrid=False)


def _colors(points: np.ndarray, limit: float | None) -> dict[str, object]:
    """Return a colour scale that is symmetric about 0."""
    largest = float(np.nanmax(np.abs(points), initial=0))
    end = limit or largest or 1.0
    bar = {"title": {"text": "points"}, "thickness": 12, "outlinewidth": 0, "tickformat": "+"}
    return {"zmin": -end, "zmax": end, "zmid": 0, "colorscale": DIVERGING, "colorbar": bar}
