"""Figures of the anatomy: norms, spikes, attention, Values and outputs by layer and group (paper, section 3)."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sinkgate.plots.style import (
    GROUP_COLORS,
    GROUP_NAMES,
    GROUP_SYMBOLS,
    LOG,
    SEQUENTIAL,
    SOFT,
    dressed,
    group_style,
    groups_in,
    layer_axis,
)

MOST_DOTS = 400  # images of which each is drawn as a dot; beyond, outliers alone


def norm_figure(tokens: pd.DataFrame) -> go.Figure:
    """Draw norms of hidden states. Columns: ``layer``, ``group``, ``norm``. In all figures of this module, rows of the same layer and group are averaged."""
    figure = _panels(tokens, {"norm": ("", "mean L2 norm at the layer's input")})
    return dressed(
        figure, "Norm of hidden states", "Do V-sinks enter the LLM longer than other tokens? Log scale.", 440
    )


def spike_figure(tokens: pd.DataFrame) -> go.Figure:
    """Draw massive activations. Columns: ``layer``, ``group``, ``peak``, and ``spike``, whose panel is left out if all values are NaN (no dimension spikes)."""
    columns = {
        "spike": ("in the sink dimensions", "mean of max |h[d]|"),
        "peak": ("in any dimension", "mean of max |h| / median |h|"),
    }
    if not tokens["spike"].notna().to_numpy().any():
        del columns["spike"]
    figure = _panels(tokens, columns)
    return dressed(figure, "Spikes", "Which tokens hold massive activations, and from which layer on? Log scale.", 440)


def tokens_figure(table: pd.DataFrame, column: str, title: str, subtitle: str, unit: str) -> go.Figure:
    """Draw one dot for each visual token and layer, by group, on a log scale.

    Args:
        table: as ``SinkMap.to_frame()`` returns it: ``layer``, ``group``, ``token`` and the measure.
        column: the measure, positive.
        title: of the figure.
        subtitle: of the figure.
        unit: of the measure, for the axis.

    Example:
        >>> tokens_figure(sinks.to_frame(), "spike", "Spikes", "Layer by layer.", "times the median")
    """
    figure = go.Figure()
    for group in groups_in(table):
        rows = table.loc[table["group"] == group]
        color, symbol = GROUP_COLORS[group], GROUP_SYMBOLS[group]
        shift = (rows["token"] - table["token"].mean()) / (len(set(table["token"])) + 1) * 0.6  # side by side
        figure.add_scatter(
            x=rows["layer"] + shift,
            y=rows[column],
            name=GROUP_NAMES[group],
            mode="markers",
            marker={"color": color, "size": 7, "symbol": symbol, "opacity": 0.8},
            customdata=rows[["token", "layer"]],
            hovertemplate="token %{customdata[0]}, layer %{customdata[1]}<br>%{y:.3g}<extra></extra>",
        )
    figure.update_xaxes(**layer_axis(table["layer"]))
    figure.update_yaxes(title_text=unit, **LOG)
    return dressed(figure, title, subtitle, 420)


def attention_figure(tokens: pd.DataFrame) -> go.Figure:
    """Draw the attention of the text after the image. Columns: ``layer``, ``group``, ``per_token``, ``share`` (in [0, 1])."""
    columns = {
        "per_token": ("per token (log scale)", "share of attention, per token"),
        "share": ("of the group together", "share of attention"),
    }
    figure = _panels(tokens, columns, linear=("share",))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", col=2)
    figure.update_yaxes(tickformat="~%", col=1)
    return dressed(
        figure, "Attention of the text", "A sink draws far more per token; a few of them may hold little together.", 440
    )


def value_ratio_figure(tokens: pd.DataFrame) -> go.Figure:
    """Draw the norm of Values relative to the mean over all positions. Columns: ``layer``, ``group``, ``value_ratio``."""
    figure = _panels(tokens, {"value_ratio": ("", "mean ||v|| over that of all tokens")}, linear=("value_ratio",))
    figure.add_hline(y=1, line={"color": SOFT, "width": 1, "dash": "dot"})
    figure.update_yaxes(rangemode="tozero")
    return dressed(
        figure,
        "Length of Values",
        "Near 0 a sink gives nothing (no-op); near 1 it gives as others do (broadcast).",
        420,
    )


def broadcast_figure(heads: pd.DataFrame, group: str = "v_sink") -> go.Figure:
    """Draw one point for each head. Columns: ``layer``, ``head``, the group (share of attention, [0, 1]), ``stable_rank``; averaged over samples."""
    each = heads.groupby(["layer", "head"]).agg({group: "mean", "stable_rank": "mean"}).reset_index()
    name = GROUP_NAMES[group]
    figure = go.Figure()
    figure.add_scatter(
        x=each[group],
        y=each["stable_rank"],
        customdata=each[["layer", "head"]],
        mode="markers",
        marker={
            "color": each["layer"],
            "colorscale": SEQUENTIAL,
            "size": 8,
            "line": {"color": SOFT, "width": 0.5},
            "colorbar": {"title": {"text": "layer"}, "thickness": 12, "outlinewidth": 0},
        },
        hovertemplate=f"layer %{{customdata[0]}}, head %{{customdata[1]}}<br>{name} get %{{x:.1%}}<br>stable rank %{{y:.2f}}<extra></extra>",
    )
    figure.update_xaxes(title_text=f"share of attention on {name}", tickformat="~%", rangemode="tozero")
    figure.update_yaxes(title_text="stable rank of the head's output", **LOG)
    return dressed(
        figure,
        "Broadcast or no-op, head by head",
        "Right and low: one content for every query (broadcast). Right and high: next to nothing (no-op).",
        460,
        legend=False,
    )


def projector_figure(projector: pd.DataFrame) -> go.Figure:
    """Draw norms and peaks before and after the projector. Columns: ``group``, ``norm_before``, ``norm_after``, ``peak_before``, ``peak_after``; one row for each sample and group."""
    columns = {"norm": "norm, times the median token's", "peak": "max |h| / median |h| within the token (log scale)"}
    figure = make_subplots(cols=2, subplot_titles=list(columns.values()), horizontal_spacing=0.12)
    for col, column in enumerate(columns, 1):
        for group in groups_in(projector):
            rows = projector.loc[projector["group"] == group]
            long = rows[[f"{column}_before", f"{column}_after"]].melt()
            style = group_style(group)
            figure.add_box(
                x=long["variable"].map({f"{column}_before": "before the projector", f"{column}_after": "after"}),
                y=long["value"],
                name=style["name"],
                legendgroup=group,
                offsetgroup=group,
                showlegend=col == 1,
                line={"color": GROUP_COLORS[group], "width": 1.5},
                marker={"size": 4, "symbol": GROUP_SYMBOLS[group]},
                boxpoints="all" if len(rows) <= MOST_DOTS else "outliers",
                jitter=0.5,
                pointpos=0,
                hovertemplate="%{y:.2f}<extra></extra>",
                row=1,
                col=col,
            )
    figure.update_layout(boxmode="group")
    figure.update_yaxes(rangemode="tozero", col=1)
    figure.update_yaxes(**LOG, col=2)
    return dressed(
        figure, "Through the projector", "Is the spike flattened, and what is left of the norm? One dot an image.", 460
    )


def sinks_figure(images: pd.DataFrame) -> go.Figure:
    """Draw the number of sinks in an image. Columns: ``criterion``, ``v_sinks``, ``l_sinks`` (in any layer), ``l_sinks_most`` (largest number in one layer)."""
    panels = {
        "v_sinks": ("V-sinks", "v_sink"),
        "l_sinks": ("L-sinks in any layer", "l_sink"),
        "l_sinks_most": ("L-sinks in the layer with most", "l_sink"),
    }
    figure = make_subplots(
        cols=3, subplot_titles=[name for name, _ in panels.values()], shared_yaxes=True, horizontal_spacing=0.04
    )
    for col, (column, (_, group)) in enumerate(panels.items(), 1):
        for criterion, rows in images.groupby("criterion", sort=False):
            figure.add_box(
                x=rows[column],
                y=[escape(str(criterion))] * len(rows),
                orientation="h",
                showlegend=False,
                line={"color": GROUP_COLORS[group], "width": 1.5},
                marker={"size": 4, "opacity": 0.6, "symbol": GROUP_SYMBOLS[group]},
                boxpoints="all" if len(rows) <= MOST_DOTS else "outliers",
                jitter=0.7,
                pointpos=0,
                hovertemplate="%{x:.0f} in this image<extra></extra>",
                row=1,
                col=col,
            )
        most = max(1, images[column].max())
        figure.update_xaxes(title_text="tokens", range=[-0.05 * most, 1.08 * most], col=col)
    criteria = len(set(images["criterion"]))
    figure.update_yaxes(autorange="reversed")
    figure.update_yaxes(ticks="", selector=lambda axis: axis.matches is not None)
    return dressed(
        figure,
        "Sinks in an image, by criterion",
        "Do criteria find as many? One dot an image.",
        180 + 56 * criteria,
        legend=False,
    )


def agreement_figure(agreement: pd.DataFrame) -> go.Figure:
    """Draw the overlap of criteria. Columns: ``place``, ``first``, ``second``, ``jaccard`` (in [0, 1], NaN if neither finds a sink)."""
    names = {"encoder": "patches of the encoder", "llm": "tokens of the LLM"}
    places = list(dict.fromkeys(agreement["place"]))
    titles = [names.get(place, escape(place)) for place in places]
    figure = make_subplots(cols=len(places), subplot_titles=titles, horizontal_spacing=0.2)
    most = 0
    for col, place in enumerate(places, 1):
        rows = agreement.loc[agreement["place"] == place]
        criteria = list(dict.fromkeys([*rows["first"], *rows["second"]]))
        most = max(most, len(criteria))
        pairs = map(frozenset, zip(rows["first"], rows["second"], strict=True))
        overlaps = dict(zip(pairs, rows["jaccard"], strict=True))
        z = [[overlaps.get(frozenset((down, across))) for across in criteria[:-1]] for down in criteria[1:]]
        z = [[value if j <= i else None for j, value in enumerate(row)] for i, row in enumerate(z)]
        labels = [escape(name) for name in criteria]
        figure.add_heatmap(
            x=labels[:-1],
            y=labels[1:],
            z=z,
            text=[["" if value is None or pd.isna(value) else f"{value:.2f}" for value in row] for row in z],
            texttemplate="%{text}",
            zmin=0,
            zmax=1,
            colorscale=SEQUENTIAL,
            xgap=3,
            ygap=3,
            showscale=False,
            hovertemplate="%{y} and %{x}: Jaccard %{z:.2f}<extra></extra>",
            hoverongaps=False,
            row=1,
            col=col,
        )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return dressed(
        figure,
        "Agreement of criteria",
        "Jaccard: tokens that both call sinks, of those that either does. 1 is the same.",
        190 + 60 * most,
        legend=False,
    )


def _panels(tokens: pd.DataFrame, columns: dict[str, tuple[str, str]], linear: tuple[str, ...] = ()) -> go.Figure:
    """Draw one panel for each column and one line for each group over the layers; ``columns`` maps each to its title and unit."""
    figure = make_subplots(
        cols=len(columns), subplot_titles=[title for title, _ in columns.values()], horizontal_spacing=0.12
    )
    for col, (column, (_, unit)) in enumerate(columns.items(), 1):
        for group in groups_in(tokens):
            means = tokens.loc[tokens["group"] == group].groupby("layer").agg({column: "mean"})
            style = group_style(group)
            figure.add_scatter(
                x=means.index,
                y=means[column],
                mode="lines+markers",
                showlegend=col == 1,
                hovertemplate=f"{style['name']}, layer %{{x}}: %{{y:.3~g}}<extra></extra>",
                row=1,
                col=col,
                **style,
            )
        figure.update_yaxes(title_text=unit, row=1, col=col)
        if column not in linear:
            figure.update_yaxes(**LOG, row=1, col=col)
    return figure.update_xaxes(layer_axis(tokens["layer"]))
