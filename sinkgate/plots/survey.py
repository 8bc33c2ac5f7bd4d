"""Figure of a survey: the effect of a scale on the next token, by layer and group."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sinkgate.plots.style import dressed, group_style, groups_in, layer_axis


def effects_figure(effects: pd.DataFrame, scale: float) -> go.Figure:
    """Draw the mean change of the next token's probabilities. Columns: ``layer``, ``group``, ``variation`` in [0, 1].

    Args:
        effects: rows of the same layer and group are averaged.
        scale: of the group's Keys, for the title.
    """
    figure = go.Figure()
    means = effects.groupby(["layer", "group"])["variation"].mean().reset_index()
    for group in groups_in(means):
        rows = means[means["group"] == group]
        figure.add_scatter(x=rows["layer"], y=rows["variation"], mode="lines+markers", **group_style(group))
    figure.update_xaxes(**layer_axis(means["layer"]))
    figure.update_yaxes(title_text="total variation of the next token", tickformat="~%", rangemode="tozero")
    subtitle = f"Keys of one group in one layer × {scale:g}, everything else unmodified."
    return dressed(figure, "Effect of a scale on the next token", subtitle, 420)
