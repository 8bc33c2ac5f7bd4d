"""Growth of cost with tokens, layers, settings side by side and recorded rows: processor time over plain prefills of the same run.

``python benchmarks/growth.py [--figure FILE.svg] [--json]``. The model is 64 wide: what sinkgate adds stands out beside so little
arithmetic, and at any width it grows as it does here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from attention import EAGER, GATED, PLAIN, ROWS, forward, halved, use
from models import Subject, narrow
from timing import Run, processor_time, take_turns

import sinkgate as sg
from sinkgate.attention.recorder import Recorder
from sinkgate.sinks.criteria import SinkDimensions

SIDES = (24, 35, 50, 71, 100, 126)  # patches along the picture's edge: 576 to 15,876 visual tokens
LAYERS = (8, 16, 32, 80)
SETTINGS = (1, 11, 44, 176)
RECORDED = (1, 4, 16, 64, 256)
#: Colours of Okabe and Ito, distinct for all kinds of colour vision; symbols and dashes distinguish lines in grey print.
STYLES = (
    ("#0072b2", "circle", "solid"),
    ("#d55e00", "square", "dash"),
    ("#009e73", "diamond", "dot"),
    ("#cc79a7", "cross", "dashdot"),
)

#: Name of a run -> the run, and the number of plain prefills with which its time is compared.
Runs = dict[str, tuple[Run, float]]
#: Name of a line -> x and y.
Curves = dict[str, tuple[list[float], list[float]]]
#: Curves, and the seconds of a plain prefill at each x.
Panel = tuple[Curves, list[float]]


def by_tokens() -> Iterator[tuple[int, Runs]]:
    """Yield the runs at each number of visual tokens, in two layers."""
    for side in SIDES:
        yield side**2, variants(narrow(side, layers=2))


def by_layers() -> Iterator[tuple[int, Runs]]:
    """Yield the runs at each number of layers, 196 visual tokens; a slider of the middle layer runs half of them."""
    for layers in LAYERS:
        subject = narrow(14, layers)
        session, gates, turn = sg.Session(subject.vlm, subject.prompt, subject.sinks), halved(subject), count()
        session.predict()

        def move(
            session: sg.Session = session,
            gates: sg.Gates = gates,
            turn: Iterator[int] = turn,
            middle: int = layers // 2,
        ) -> None:
            session.predict(gates.set("rest", 0.3 + 0.4 * (next(turn) % 2), middle))

        yield layers, {**variants(subject), "slider at half depth, over half a prefill": (move, 0.5)}


def by_settings() -> Iterator[tuple[int, Runs]]:
    """Yield the runs at each number of settings of the middle layer of 8, each of which runs half of the layers."""
    subject = narrow(14, layers=8)
    session = sg.Session(subject.vlm, subject.prompt, subject.sinks)
    session.predict()
    tables = [
        sg.Gates.ones(subject.vlm).set("rest", 0.1 + 0.8 * index / SETTINGS[-1], 4) for index in range(SETTINGS[-1])
    ]
    for number in SETTINGS:
        run = partial(session.predict_all, tables[:number])
        yield number, {**plain(subject), "a setting at half depth, over half a prefill": (run, number / 2)}


def by_rows() -> Iterator[tuple[int, Runs]]:
    """Yield the runs at each number of recorded rows, 784 visual tokens in two layers; the last is all rows, as eager attention returns."""
    subject = narrow(28, layers=2)
    length = subject.prompt.length

    def record(rows: int) -> None:
        with torch.no_grad(), subject.vlm.attached(None, Recorder(range(length - rows, length)), own_cache=True):
            subject.model(**subject.encoded, use_cache=True, logits_to_keep=1)

    def eager() -> None:
        use(subject, "eager")
        forward(subject, EAGER)
        use(subject, "sdpa")

    for rows in (*RECORDED, length):
        peer: Runs = {"eager output_attentions": (eager, 1)} if rows == length else {}
        yield rows, {**plain(subject), "rows recorded": (partial(record, rows), 1), **peer}


def plain(subject: Subject) -> Runs:
    """Return the run that all others are compared with."""
    return {PLAIN: (partial(forward, subject, PLAIN), 1)}


def variants(subject: Subject) -> Runs:
    """Return a plain prefill, gated, with rows recorded, and sinks found, all of the encoded picture."""
    find = partial(sg.find_sinks, subject.vlm, subject.prompt, v_sink="norm", l_sink=SinkDimensions((7,)))
    return {
        **plain(subject),
        "every visual Key scaled": (partial(forward, subject, GATED, subject.scales(halved(subject))), 1),
        "last row recorded": (partial(forward, subject, ROWS), 1),
        "sinks found": (find, 1),
    }


PANELS = {
    "visual tokens": by_tokens,
    "layers": by_layers,
    "settings side by side": by_settings,
    "rows recorded in each layer": by_rows,
}


def measure(points: Iterable[tuple[int, Runs]], rounds: int) -> Panel:
    """Return the median of each run's time over that of its plain prefills, round by round."""
    curves: Curves = {}
    prefills: list[float] = []
    for at, runs in points:
        seconds = take_turns({name: processor_time(run) for name, (run, _) in runs.items()}, rounds)
        peer = seconds.pop(PLAIN)
        prefills.append(median(peer))
        for name, mine in seconds.items():
            x, y = curves.setdefault(name, ([], []))
            x.append(float(at))
            y.append(median(a / b for a, b in zip(mine, peer, strict=True)) / runs[name][1])
    return curves, prefills


def table(panels: dict[str, Panel]) -> str:
    """Return all ratios in Markdown."""
    lines: list[str] = []
    for name, (curves, prefills) in panels.items():
        counts = max((x for x, _ in curves.values()), key=len)
        lines += ["", f"| {name} | {' | '.join(f'{x:,.0f}' for x in counts)} |", f"|---|{'---:|' * len(counts)}"]
        for label, (x, y) in curves.items():
            cells = [f"{y[x.index(at)]:.2f} x" if at in x else "" for at in counts]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines.append(f"| a plain prefill | {' | '.join(f'{seconds * 1e3:,.0f} ms' for seconds in prefills)} |")
    return "\n".join(lines).strip()


def draw(panels: dict[str, Curves], path: Path, unit: str = "times a plain prefill", width: int = 1100) -> None:
    """Write an SVG with a panel for each quantity, two side by side, readable in print.

    Args:
        panels: curves by the title of their horizontal axis.
        path: file to write.
        unit: title of the vertical axes.
        width: of the figure, in pixels.
    """
    from plotly.subplots import make_subplots

    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    figure = make_subplots(rows=rows, cols=columns, horizontal_spacing=0.08, vertical_spacing=0.28)
    for index, (name, curves) in enumerate(panels.items()):
        place: dict[str, Any] = {"row": index // 2 + 1, "col": index % 2 + 1}
        legend = f"legend{index + 1}" if index else "legend"
        for (label, (x, y)), (color, symbol, dash) in zip(curves.items(), STYLES, strict=False):
            style = {"line": {"color": color, "dash": dash, "width": 2}, "marker": {"symbol": symbol, "size": 7}}
            figure.add_scatter(x=x, y=y, name=label, mode="lines+markers", legend=legend, **style, **place)
        ticks = max((x for x, _ in curves.values()), key=len)
        labels = [f"{tick:,.0f}" for tick in ticks]
        figure.update_xaxes(title_text=name, type="log", tickvals=ticks, ticktext=labels, **place)
        figure.update_yaxes(rangemode="tozero", **place)
        figure.add_hline(y=1, line={"color": "#868e96", "width": 1}, **place)
        box: Any = figure.get_subplot(**place)
        at = {"x": box.xaxis.domain[0], "y": box.yaxis.domain[1] + 0.01, "yanchor": "bottom"}
        figure.update_layout({legend: at})
    figure.update_yaxes(title_text=unit, col=1)
    figure.update_layout(
        template="plotly_white",
        width=width,
        height=420 * rows,
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": "#212529"},
        margin={"l": 60, "r": 15, "t": 100, "b": 50},
    )
    figure.write_image(path)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each variant.")] = 3,
    figure: Annotated[Path | None, typer.Option(help="Draw into this SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print tables in Markdown, or JSON."""
    panels = {name: measure(points(), rounds) for name, points in PANELS.items()}
    results = {name: {"curves": curves, "plain": prefills} for name, (curves, prefills) in panels.items()}
    print(json.dumps(results, indent=1) if as_json else table(panels))
    if figure:
        draw({name: curves for name, (curves, _) in panels.items()}, figure)


if __name__ == "__main__":
    typer.run(main)
