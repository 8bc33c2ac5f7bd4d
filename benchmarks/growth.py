"""Growth of the cost with visual tokens, layers, settings side by side and recorded rows; one figure of it.

The first and the last are measured on six of the OneVision shape's 24 layers: what is added is added to every layer alike.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
import torch
from attention import EAGER, GATED, PLAIN, ROWS, prefill, use
from models import Subject, onevision
from plotly.subplots import make_subplots
from timing import Run, take_turns

import sinkgate as sg
from sinkgate.attention.recorder import Recorder

Curve = tuple[list[float], list[float]]
Curves = dict[str, Curve]
SIDES = (9, 14, 20, 27, 40)  # patches along the picture's edge
SETTINGS = {"demo": (1, 2, 4, 8, 16, 32, 64), "six layers": (1, 2, 4, 8)}
RECORDED = (1, 4, 16, 64, 256, 769)
# Okabe and Ito's colours, told apart by all kinds of sight; marks and dashes tell in grey print
STYLES = (("#0072b2", "circle", "solid"), ("#d55e00", "square", "dash"), ("#009e73", "diamond", "dot"))
#: Titles of the axes and where the legend stands, as shares of the panel.
PANELS = {
    "visual tokens": ("visual tokens", "prefill, times plain sdpa", 0.02, 0.72, "left"),
    "layers": (
        "layers from the slider's upward, share of all",
        "slider moved, share of a full re-run",
        0.02,
        0.72,
        "left",
    ),
    "settings": ("settings side by side", "a setting, share of one alone", 0.98, 0.4, "right"),
    "rows": ("attention rows recorded in every layer", "prefill, times plain sdpa", 0.02, 0.3, "left"),
}


def measure(demo: Subject, rounds: float = 1) -> dict[str, Curves]:
    """The curves of three panels; that of the layers comes from `resume`."""
    times = max(1, round(3 * rounds))
    curves: dict[str, Curves] = {"visual tokens": _by_tokens(times)}
    shallow = onevision(layers=6, encoder_layers=1)
    curves["settings"] = {
        "demo": _by_settings(demo, SETTINGS["demo"], 5 * times),
        "OneVision-0.5B shape": _by_settings(shallow, SETTINGS["six layers"], max(1, times // 2)),
    }
    curves["rows"] = _by_rows(shallow, times)
    return curves


def _by_tokens(times: int) -> Curves:
    names = {GATED: "every visual Key scaled", ROWS: "last row recorded", EAGER: "eager output_attentions"}
    curves: Curves = {label: ([], []) for label in names.values()}
    for side in SIDES:
        subject = onevision(side, layers=6, encoder_layers=1)
        for variants in ((GATED, ROWS), (EAGER,)):
            seconds = take_turns({variant: prefill(subject, variant) for variant in (PLAIN, *variants)}, times)
            for variant in variants:
                x, y = curves[names[variant]]
                x.append(side**2)
                y.append(_over(seconds[variant], seconds[PLAIN]))
    return curves


def _by_settings(subject: Subject, counts: tuple[int, ...], times: int) -> Curve:
    vlm = subject.vlm
    session = sg.Session(vlm, subject.prompt, subject.sinks)
    session.predict()
    scales = torch.linspace(0.1, 0.9, counts[-1]).tolist()
    tables = [sg.Gates.ones(vlm).set("rest", scale, 0) for scale in scales]  # all layers run

    def side_by_side(count: int) -> Run:
        return lambda: session.predict_all(tables[:count], batch_size=count)

    seconds = take_turns({str(count): side_by_side(count) for count in counts}, times)
    alone = seconds["1"]
    return [float(count) for count in counts], [_over(seconds[str(count)], alone) / count for count in counts]


def _by_rows(subject: Subject, times: int) -> Curves:
    length = subject.prompt.length

    def recorded(count: int) -> Run:
        def run() -> None:
            use(subject, "sdpa")
            recorder = Recorder(range(length - count, length))
            with torch.no_grad(), subject.vlm.attached(None, recorder) if count else nullcontext():
                subject.model(**subject.encoded, use_cache=True, logits_to_keep=1)

        return run

    runs = {str(count): recorded(count) for count in (0, *RECORDED)}
    seconds = take_turns({**runs, EAGER: prefill(subject, EAGER)}, times)
    plain = seconds["0"]
    return {
        "sinkgate": ([float(count) for count in RECORDED], [_over(seconds[str(count)], plain) for count in RECORDED]),
        "eager output_attentions, all rows": ([float(RECORDED[-1])], [_over(seconds[EAGER], plain)]),
    }


def _over(mine: list[float], peer: list[float]) -> float:
    return median(a / b for a, b in zip(mine, peer, strict=True))


def draw(curves: dict[str, Curves], path: Path) -> None:
    """Write the panels as one SVG that is readable in print."""
    figure = make_subplots(rows=2, cols=2, horizontal_spacing=0.1, vertical_spacing=0.16)
    for index, panel in enumerate(PANELS):
        _draw_panel(figure, index, panel, curves.get(panel, {}))
    figure.update_layout(
        template="plotly_white",
        width=900,
        height=640,
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#212529"},
        margin={"l": 60, "r": 15, "t": 15, "b": 50},
    )
    figure.write_image(path)


def _draw_panel(figure: go.Figure, index: int, panel: str, curves: Curves) -> None:
    cell: dict[str, Any] = {"row": index // 2 + 1, "col": index % 2 + 1}
    number = index + 1
    x_title, y_title, across, up, anchor = PANELS[panel]
    legend = f"legend{number}" if index else "legend"
    for (name, (x, y)), (color, symbol, dash) in zip(curves.items(), STYLES, strict=False):
        line, marker = {"color": color, "dash": dash, "width": 2}, {"symbol": symbol, "size": 7}
        figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=line, marker=marker, legend=legend, **cell)
    figure.add_hline(y=1, line={"color": "#868e96", "width": 1}, **cell)
    axis: dict[str, Any] = {"range": [0, 1.02]}
    if panel != "layers" and curves:
        ticks = next(iter(curves.values()))[0]
        axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure.update_xaxes(title_text=x_title, title_standoff=6, showline=True, linecolor="#868e96", **axis, **cell)
    figure.update_yaxes(title_text=y_title, title_standoff=6, rangemode="tozero", **cell)
    box: Any = figure.get_subplot(**cell)
    (left, right), (low, high) = box.xaxis.domain, box.yaxis.domain
    at = {"x": left + across * (right - left), "y": low + up * (high - low), "xanchor": anchor, "yanchor": "bottom"}
    figure.update_layout({legend: {**at, "font": {"size": 12}, "bgcolor": "rgba(255, 255, 255, 0.8)"}})
