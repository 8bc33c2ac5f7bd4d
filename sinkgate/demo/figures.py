"""The card's figures: what was measured, as Plotly figures that can be written as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from sinkgate.plots.style import COLORWAY, DIVERGING, GROUP_COLORS, INK, SOFT, WIDTH

Record = dict[str, Any]

_V, _OBJECT = GROUP_COLORS["v_sink"], COLORWAY[1]
#: What all figures share.
LAYOUT: dict[str, Any] = {"template": "sinkgate", "width": WIDTH, "margin": {"t": 56, "b": 88}}
GROUP_STYLES = {
    "v_sink": ("V-sinks", _V),
    "background": ("ordinary background", GROUP_COLORS["ordinary"]),
    "object": ("ordinary, on the leftmost object", _OBJECT),
    "shuffled": ("shuffled labels", SOFT),
}


def growth_figure(history: Sequence[Record]) -> go.Figure:
    """When the sinks appear: attention on the most attended patch, and how often it lies on an object, over training."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    steps, first = _steps(history)
    ratio = [record["top_over_median"] for record in history]
    figure.add_scatter(x=steps, y=ratio, name="attention in the encoder, times the median patch", line={"color": _V})
    llm = [
        (x, record["llm_top_over_median"])
        for x, record in zip(steps, history, strict=True)
        if "llm_top_over_median" in record
    ]
    figure.add_scatter(
        x=[x for x, _ in llm],
        y=[y for _, y in llm],
        name="attention of text in the LLM, times the median patch",
        line={"color": _V, "dash": "dot"},
    )
    share = [record["top_on_object"] for record in history]
    figure.add_scatter(x=steps, y=share, name="it lies on an object", line={"color": _OBJECT}, secondary_y=True)
    figure.update_yaxes(title_text="times the median", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title_text="share of images", tickformat=".0%", range=[0, 1], showgrid=False, secondary_y=True)
    return _over_steps(figure, first, "The most attended patch over training")


def accuracy_figure(history: Sequence[Record]) -> go.Figure:
    """Accuracy of every kind of question on held-out scenes, checkpoint by checkpoint of the LLaVA's stage."""
    records = [record for record in history if "kinds" in record]
    figure = go.Figure()
    for kind in records[0]["kinds"] if records else ():
        reached = [record["kinds"][kind] for record in records]
        figure.add_scatter(x=[record["step"] for record in records], y=reached, name=kind, line={"width": 1.5})
    overall = [record["overall"] for record in records]
    figure.add_scatter(x=[r["step"] for r in records], y=overall, name="all", line={"color": INK, "width": 3})
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_xaxes(title_text="step of the LLaVA's stage")
    title = "Accuracy of the checkpoints, 48 held-out scenes"
    return figure.update_layout(**LAYOUT, height=420, title=title, colorway=qualitative.Dark24)


def probes_figure(targets: dict[str, dict[str, dict[str, list[float]]]]) -> go.Figure:
    """Probe accuracy along encoder and LLM: one panel a target, one line a group of tokens."""
    figure = make_subplots(
        cols=len(targets), subplot_titles=[name.replace("_", " ") for name in targets], shared_yaxes=True
    )
    for column, places in enumerate(targets.values(), 1):
        for group, (name, color) in GROUP_STYLES.items():
            figure.add_scatter(
                x=list(places),
                y=[place[group][0] for place in places.values()],
                error_y={"array": [place[group][1] for place in places.values()], "thickness": 1, "width": 2},
                name=name,
                line={"color": color},
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03])
    figure.update_xaxes(type="category", tickangle=60)
    return figure.update_layout(**LAYOUT, height=380)


def gating_figure(gating: Record) -> go.Figure:
    """Change of accuracy, kinds by layers and scales: V-sinks on the left, all other patches on the right."""
    kinds = list(gating["plain"])
    groups = list(dict.fromkeys(row["group"] for row in gating["table"]))
    names = {"v_sink": "Keys of V-sinks scaled", "rest": "Keys of all other patches scaled"}
    figure = make_subplots(cols=len(groups), subplot_titles=[names[group] for group in groups], shared_yaxes=True)
    for column, group in enumerate(groups, 1):
        rows = [row for row in gating["table"] if row["group"] == group]
        figure.add_heatmap(
            x=[[f"layer {row['layer']}" for row in rows], [f"{row['scale']:g}" for row in rows]],
            y=kinds,
            z=[[100 * (row["kinds"][kind] - gating["plain"][kind]) for row in rows] for kind in kinds],
            zmid=0,
            zmin=-15,
            zmax=15,
            colorscale=DIVERGING,
            colorbar={"title": "points"},
            showscale=column == 1,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickfont={"size": 8})
    return figure.update_layout(**LAYOUT, height=430).update_layout(width=1300)


def _steps(history: Sequence[Record]) -> tuple[list[int], int]:
    """Each record's step counted from the start of all training, and where the first stage ends."""
    first = max((record["step"] for record in history if record["stage"] == "tower"), default=0)
    return [record["step"] + (first if record["stage"] != "tower" else 0) for record in history], first


def _over_steps(figure: go.Figure, first: int, title: str) -> go.Figure:
    figure.add_vline(x=first, line={"color": SOFT, "dash": "dash", "width": 1})
    figure.add_annotation(x=first, y=1.04, yref="paper", text="vision tower alone | with the LLM", showarrow=False)
    figure.update_xaxes(title_text="step")
    return figure.update_layout(**LAYOUT, height=420, title=title)
