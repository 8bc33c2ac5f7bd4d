"""Figures of the demo models' cards: the training of a model, and the comparison of methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from sinkgate.demo.comparison_results import Comparison
from sinkgate.plots.style import COLORWAY, GAIN, GROUP_COLORS, INK, LOSS, SOFT, WIDTH

Record = dict[str, Any]
#: Options that all figures share.
LAYOUT: dict[str, Any] = {"template": "sinkgate", "width": WIDTH, "margin": {"t": 56, "b": 88}}


def growth_figure(history: Sequence[Record]) -> go.Figure:
    """Draw attention on the most attended patch, and its share of images with that patch on an object, over training."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    steps, first = _steps(history)
    v_sink, on_object = GROUP_COLORS["v_sink"], COLORWAY[1]
    ratio, label = [record["top_over_median"] for record in history], "attention in the encoder, times the median patch"
    figure.add_scatter(x=steps, y=ratio, name=label, line={"color": v_sink})
    key, label = "llm_top_over_median", "attention of text in the LLM, times the median patch"
    llm = [(x, record[key]) for x, record in zip(steps, history, strict=True) if key in record]
    x, y = ([point[axis] for point in llm] for axis in (0, 1))
    figure.add_scatter(x=x, y=y, name=label, line={"color": v_sink, "dash": "dot"})
    share = [record["top_on_object"] for record in history]
    figure.add_scatter(x=steps, y=share, name="it lies on an object", line={"color": on_object}, secondary_y=True)
    figure.update_yaxes(title_text="times the median", rangemode="tozero", secondary_y=False)
    figure.update_yaxes(title_text="share of images", tickformat=".0%", range=[0, 1], showgrid=False, secondary_y=True)
    figure.add_vline(x=first, line={"color": SOFT, "dash": "dash", "width": 1})
    figure.add_annotation(x=first, y=1.04, yref="paper", text="vision tower alone | with the LLM", showarrow=False)
    figure.update_xaxes(title_text="step")
    return figure.update_layout(**LAYOUT, height=420, title="The most attended patch over training")


def accuracy_figure(history: Sequence[Record]) -> go.Figure:
    """Draw the accuracy of each kind of question on held-out scenes, checkpoint by checkpoint of the LLaVA's stage."""
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


def _steps(history: Sequence[Record]) -> tuple[list[int], int]:
    """Return each record's step counted from the start of all training, and the end of the first stage."""
    first = max((record["step"] for record in history if record["stage"] == "tower"), default=0)
    return [record["step"] + (first if record["stage"] != "tower" else 0) for record in history], first


def gains_figure(comparison: Comparison, names: Sequence[str]) -> go.Figure:
    """Draw the gain of each method over the unmodified model on hazed scenes: the mean as a bar, each seed as a dot."""
    gains = [comparison.gain("hazed", name) for name in names]
    figure = go.Figure()
    colors = [GAIN if gain.mean >= 0 else LOSS for gain in gains]
    figure.add_bar(y=list(names), x=[gain.mean for gain in gains], orientation="h", marker_color=colors, opacity=0.75)
    figure.add_scatter(
        y=[name for name, gain in zip(names, gains, strict=True) for _ in gain.seeds],
        x=[point for gain in gains for point in gain.seeds],
        mode="markers",
        marker={"color": INK, "size": 5, "opacity": 0.7},
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title_text="points of accuracy over the unmodified model, hazed scenes", zeroline=True)
    return figure.update_layout(**LAYOUT, height=104 + 24 * len(names), showlegend=False)
