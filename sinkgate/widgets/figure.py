"""One figure of several runs: attention maps with sinks marked, and next-token probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

from plotly.subplots import make_subplots

from sinkgate.images.layout import Sheet
from sinkgate.models.session import Session
from sinkgate.models.trace import Trace
from sinkgate.plots.style import COLORWAY, DIVERGING, INK
from sinkgate.sinks.classify import SinkMap
from sinkgate.sinks.glossary import DARK_GROUP_COLORS, DIFFERENCE
from sinkgate.widgets.common import data_url, ipywidgets, small, still

ACROSS = 3  # maps side by side
HEIGHT = 230  # pixels of a row of maps
TOP_WORDS = 6
VIEW = 448  # pixels of the picture on a map
UNCHANGED = "#adb5bd"
SHARE = "Share of attention"
MARKS = [("circle-open", DARK_GROUP_COLORS["v_sink"]), ("square-open", DARK_GROUP_COLORS["l_sink"])]  # maps are dark


class Screen:
    """A Plotly figure updated in place: one map and one colour of bars for each run; the first run is the unmodified model.

    ``maps``, ``v_sinks``, ``l_sinks`` and ``bars`` are its traces, one for each run; ``controls`` hold the slider ``layer`` and ``kind``, what the maps show:
    shares of attention, or, beside the unmodified model's, differences from it. Of a video the slider ``time`` chooses the frame; of several token
    grids of pictures the first is shown.
    """

    def __init__(self, names: Sequence[str], layers: int) -> None:
        ipw = ipywidgets()
        self.layer = ipw.IntSlider(0, max=layers - 1, description="Layer", style={"description_width": "initial"})
        self.caption = ipw.HTML()
        self.kind = ipw.Dropdown(options=[SHARE, DIFFERENCE], description="Maps", layout={"width": "200px"})
        self.time = ipw.SelectionSlider(options=[("picture", 0)], description="Time", layout={"display": "none"})
        self.controls = ipw.HBox([self.time, self.layer, self.kind, self.caption])
        rows = -(-len(names) // ACROSS)
        across = -(-len(names) // rows)
        maps = [[{} if row * across + col < len(names) else None for col in range(across)] for row in range(rows)]
        specs: list[list[Any]] = [[*line, None if row else {"rowspan": rows}] for row, line in enumerate(maps)]
        titles = [escape(name) for name in names]
        heads = [*titles[:across], "next-token probabilities", *titles[across:]]
        space: dict[str, Any] = {"horizontal_spacing": 0.085, "vertical_spacing": 0.12 / rows}
        figure = make_subplots(rows, across + 1, specs=specs, subplot_titles=heads, **space)
        bars: dict[str, Any] = {"row": 1, "col": across + 1}
        others = [INK] if len(names) == 2 else COLORWAY
        self.colors = [UNCHANGED, *(others[number % len(others)] for number in range(len(names) - 1))]
        for number, title in enumerate(titles):
            place = {"row": number // across + 1, "col": number % across + 1}
            figure.add_heatmap(showscale=False, **place)
            for symbol, color in MARKS:
                marker = {"symbol": symbol, "color": color, "size": 11, "line": {"width": 2.5}}
                figure.add_scatter(mode="markers", marker=marker, hoverinfo="text", **place)
            label = f"{title}: %{{x:.1%}}<extra></extra>"
            figure.add_bar(orientation="h", marker_color=self.colors[number], hovertemplate=label, **bars)
        size = {"height": 52 + HEIGHT * rows, "margin": {"t": 28, "r": 24, "b": 24, "l": 12}}
        # without "strict", a restyle turns an axis of words that are numbers into a numeric axis
        figure.update_layout(template="sinkgate", showlegend=False, dragmode=False, autotypenumbers="strict", **size)
        figure.update_annotations(font_size=13)
        figure.update_xaxes(visible=False, constrain="domain")
        figure.update_yaxes(visible=False, constrain="domain", constraintoward="top")
        figure.update_xaxes(visible=True, range=[0, 1], tickformat=".0%", dtick=0.5, **bars)
        figure.update_yaxes(visible=True, type="category", autorange="reversed", ticks="", ticklabelstandoff=5, **bars)
        self.figure = still(figure)
        self.maps, self.v_sinks, self.l_sinks, self.bars = (self.figure.data[kind::4] for kind in range(4))
        self._warm: Session | None = None
        self._placed = -1  # index of the sheet whose picture is under the maps
        self._marked = (0, -1, -1)  # identity of the SinkMap whose sinks are marked, the layer and the sheet

    def place(self, warm: Session) -> None:
        """Show another prompt, of a video with a slider through time."""
        video = warm.prompt.video is not None
        names = [sheet.time for sheet in warm.prompt.sheets] if video else ["picture"]
        self._warm, self._placed = warm, -1
        self.time.options = [(name, index) for index, name in enumerate(names)]
        self.time.layout.display = None if len(names) > 1 else "none"
        self._place(warm, 0)

    def _place(self, warm: Session, index: int) -> None:
        """Set the axes to a token grid and draw its image in faint grey over the maps."""
        self._placed, sheet = index, warm.prompt.sheets[index]
        (rows, columns), view = sheet.grid, sheet.view(warm.prompt.images)
        ratio = (view.height / rows) / (view.width / columns) if view else 1.0
        corner = {"x": -0.5, "y": -0.5, "sizex": columns, "sizey": rows, "sizing": "stretch"}
        images = []
        with self.figure.batch_update():
            for shown in self.maps:
                x, y = shown.xaxis or "x", shown.yaxis or "y"
                self.figure.layout[f"xaxis{x[1:]}"].range = [-0.5, columns - 0.5]
                self.figure.layout[f"yaxis{y[1:]}"].update(range=[rows - 0.5, -0.5], scaleanchor=x, scaleratio=ratio)
                if view:
                    picture = {"source": data_url(view.convert("L"), VIEW), "opacity": 0.25, "layer": "above"}
                    images.append({**picture, **corner, "xref": x, "yref": y})
            self.figure.layout.images = images

    def begin(self, unchanged: Trace, sinks: SinkMap) -> None:
        """Select the layer in which V-sinks receive most attention."""
        self.layer.value = int(unchanged.shares(sinks)["v_sink"].argmax())

    def show(self, traces: Sequence[Trace], sinks: SinkMap) -> None:
        """Draw one map for each run: attention of the last prompt token in the selected layer, mean over heads."""
        layer, index = self.layer.value, self.time.value or 0
        sheet = traces[0].sheets[index]
        if self._warm and self._placed != index:
            self._place(self._warm, index)
        shares = [
            trace.visual(layer, sheet=index).masked_fill(sheet.tokens < 0, float("nan")).numpy() for trace in traces
        ]
        top = max(float(share[sheet.tokens >= 0].max()) for share in shares)
        looks, most = [_look(share, max(top, 1e-9)) for share in shares], 0.0
        if self.kind.value == DIFFERENCE:
            changes = [100 * (share - shares[0]) for share in shares[1:]]
            most = max([1e-9, *(float(abs(change[sheet.tokens >= 0]).max()) for change in changes)])
            looks[1:] = [_look(change, most, diverging=True) for change in changes]
        tokens = [dict(trace.next_token) for trace in traces]
        likely = {word: max(each.get(word, 0) for each in tokens) for each in tokens for word in each}
        words = sorted(likely, key=lambda word: -likely[word])[:TOP_WORDS]
        with self.figure.batch_update():
            for shown, bar, look, each in zip(self.maps, self.bars, looks, tokens, strict=True):
                shown.update(look)
                bar.update(y=[escape(word) for word in words], x=[each.get(word, 0.0) for word in words])
            if self._marked != (id(sinks), layer, index):
                self._mark(sheet, sinks, layer)
                self._marked = (id(sinks), layer, index)
        caption = (
            f"Attention of the last prompt token, mean over heads, maximum {top:.1%}. ○ V-sink, □ L-sink of this layer."
        )
        if self.kind.value == DIFFERENCE:
            caption += f" Difference: at most {most:.1f} percentage points; teal rose, brown fell."
        self.caption.value = small(caption)

    def _mark(self, sheet: Sheet, sinks: SinkMap, layer: int) -> None:
        for marks, mask in ((self.v_sinks, sinks.v_sink), (self.l_sinks, sinks.l_sink[layer])):
            cells = {token: cell for token in mask.nonzero()[:, 0].tolist() if (cell := sheet.find(token))}
            reasons = ["<br>".join(wrap(escape(sinks.explain(token, layer)), 70)) for token in cells]
            y, x = ([cell[axis] for cell in cells.values()] for axis in (0, 1))
            for mark in marks:
                mark.update(x=x, y=y, hovertext=reasons)


def _look(values: Any, most: float, diverging: bool = False) -> dict[str, Any]:
    """Return values, colours and hover text of a map: shares up to ``most``, or differences in percentage points."""
    number = "%{z:+.2f} pp" if diverging else "%{z:.2%}"
    return {
        "z": values,
        "zmin": -most if diverging else 0,
        "zmax": most,
        "colorscale": DIVERGING if diverging else "Viridis",
        "hovertemplate": f"row %{{y}}, column %{{x}}: {number}<extra></extra>",
    }
