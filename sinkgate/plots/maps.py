"""Maps over a picture, and distributions of the next token, for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from sinkgate.plots.style import COLORWAY, dressed

SIDE = 224  # pixels of the picture in a figure
_OVER = [[0, "rgba(194, 37, 92, 0)"], [1, "#a61e4d"]]  # from nothing to much; the picture shows through


def maps_figure(
    image: Image.Image,
    maps: Mapping[str, Tensor],
    title: str,
    subtitle: str,
    *,
    columns: int = 4,
    shared: bool = False,
) -> go.Figure:
    """Draw maps over a picture.

    Args:
        image: picture, or the part of it that the maps cover.
        maps: (rows, columns) by title, values from 0 up.
        title: of the figure.
        subtitle: of the figure.
        columns: panels side by side, at least 1.
        shared: the darkest red is the largest value of all maps; False: that of each map alone.

    Example:
        >>> maps_figure(image, {"layer 2": trace.visual(2)}, "Attention", "Mean over heads.")
    """
    rows = -(-len(maps) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(maps), horizontal_spacing=0.02, vertical_spacing=0.1)
    most = max((float(grid.max()) for grid in maps.values()), default=1.0)
    for number, grid in enumerate(maps.values()):
        cell: Any = {"row": number // columns + 1, "col": number % columns + 1}
        height, width = grid.shape
        at = {"x": -0.5, "y": -0.5, "sizex": width, "sizey": height, "sizing": "stretch", "layer": "below"}
        figure.add_layout_image(source=image.resize((SIDE, SIDE)), **at, **cell)
        figure.add_heatmap(
            z=grid.tolist(), colorscale=_OVER, zmin=0, zmax=most if shared else None, showscale=False, **cell
        )
        figure.update_yaxes(scaleanchor=f"x{number + 1 if number else ''}", **cell)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    dressed(figure, title, subtitle, 120 + 240 * rows, legend=False)
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 110, "b": 10})


def words_figure(
    distributions: Mapping[str, Sequence[tuple[str, float]]],
    title: str,
    subtitle: str,
    *,
    colors: Sequence[str] = COLORWAY,
    most: int = 3,
) -> go.Figure:
    """Draw the distributions of the next token side by side, as bars.

    Args:
        distributions: words with their probabilities in [0, 1], falling, as ``Trace.next_token`` has them, by the name of a run.
        title: of the figure.
        subtitle: of the figure.
        colors: of the runs, in their order.
        most: words of each run that are drawn, at least 1; a word of one run is drawn for all.

    Example:
        >>> words_figure({"unmodified": vlm.predict(prompt).next_token}, "Next token", "As it is.")
    """
    words = list(dict.fromkeys(word for each in distributions.values() for word, _ in each[:most]))
    figure = go.Figure()
    for number, (name, each) in enumerate(distributions.items()):
        probabilities = dict(each)
        figure.add_bar(
            x=words,
            y=[probabilities.get(word, 0.0) for word in words],
            name=name,
            marker_color=colors[number % len(colors)],
        )
    figure.update_xaxes(type="category", title_text="next token")
    figure.update_yaxes(title_text="probability", range=[0, 1])
    figure.update_layout(autotypenumbers="strict")
    return dressed(figure, title, subtitle, 360)
