"""Figure of the linear probes: accuracy by group of tokens, in the encoder and each LLM layer (paper, section 3)."""

from __future__ import annotations

from html import escape
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from sinkgate.plots.style import GROUP_DASHES, SOFT, dressed, group_style, groups_in, panels

Measure = Literal["accuracy", "mean_average_precision"]
UNITS: dict[Measure, str] = {"accuracy": "accuracy", "mean_average_precision": "mean average precision"}
ENCODER = "encoder"
PANELS = 2  # side by side
APART = 0.14  # of a layer: error bars of groups stand beside each other


def probes_figure(summary: pd.DataFrame, measure: Measure = "accuracy") -> go.Figure:
    """Draw one panel for each target and one line for each group, with error bars of one standard deviation over draws; shuffled labels and chance in grey.

    Args:
        summary: ``target``, ``place`` ("encoder" or a layer's number as text), ``group``, ``labels`` ("true", "shuffled"), the
            measure as a mean over draws (in [0, 1]), its deviation (the same name and ``_std``), and ``chance``, of accuracy.
        measure: what is drawn. Targets that have none are left out.
    """
    known = summary.dropna(subset=[measure])
    targets = list(dict.fromkeys(known["target"]))
    places = {place: at for at, place in enumerate(sorted(set(known["place"]), key=_depth))}
    rows = max(1, -(-len(targets) // PANELS))
    titles = [escape(str(target).replace("_", " ")) for target in targets]
    figure, cells = panels(titles, PANELS, "input of layer", (0.05, 0.26 / rows))
    for number, (target, cell) in enumerate(zip(targets, cells, strict=False)):
        panel = known[known["target"] == target].assign(at=lambda table: table["place"].map(places)).sort_values("at")
        if measure == "accuracy":
            chance = panel.groupby("at").agg({"chance": "mean"})
            figure.add_scatter(
                **_grey("chance", "dot", number == 0),
                x=chance.index,
                y=chance["chance"],
                mode="lines",
                hoverinfo="skip",
                **cell,
            )
        for shift, group in enumerate(groups_in(panel), -1):
            lines = panel[panel["group"] == group]
            shuffled, true = lines[lines["labels"] == "shuffled"], lines[lines["labels"] == "true"]
            style = group_style(group)
            style["marker"] |= {"size": 6, "maxdisplayed": 0}
            figure.add_scatter(
                **_grey("shuffled labels", GROUP_DASHES[group], number == 0 and shift == -1),
                x=shuffled["at"],
                y=shuffled[measure],
                mode="lines",
                hovertemplate=f"{style['name']}, shuffled labels: %{{y:.1%}}<extra></extra>",
                **cell,
            )
            figure.add_scatter(
                **style,
                x=true["at"] + APART * shift,
                y=true[measure],
                error_y={"array": true[f"{measure}_std"], "thickness": 1, "width": 0},
                customdata=true[["place", f"{measure}_std", "train"]],
                mode="lines+markers",
                showlegend=number == 0,
                hovertemplate=f"{style['name']}, %{{customdata[0]}}: %{{y:.1%}} ± %{{customdata[1]:.1%}}"
                "<br>trained on %{customdata[2]:.0f} pictures<extra></extra>",
                **cell,
            )
    every = 1 if len(places) <= 16 else 4
    ticks = {at: place for place, at in places.items() if place != ENCODER and int(place) % every == 0}
    if ENCODER in places:
        ticks = {0: "enc.", **{at: place for at, place in ticks.items() if at >= every}}
    span = [-0.5, len(places) - 0.5]
    figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()), range=span)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.03])
    figure.update_yaxes(title_text=UNITS[measure], col=1)
    subtitle = "Do sinks hold more information than ordinary tokens? Mean over draws, bars of one standard deviation."
    return dressed(figure, "Information on the scene in tokens", subtitle, 150 + 270 * rows)


def _depth(place: str) -> int:
    return -1 if place == ENCODER else int(place)


def _grey(name: str, dash: str, listed: bool) -> dict[str, Any]:
    return {"name": name, "legendgroup": name, "showlegend": listed, "line": {"color": SOFT, "width": 1, "dash": dash}}
