"""Growth of cost with tokens, layers and settings, in processor time on a narrow model; ratios against plain prefills of the same run.

``python benchmarks/scaling.py [--figure FILE.svg] [--json]``. What sinkgate adds grows with tokens and layers as the model's own work does, or
slower, at any width: a narrow model makes the additions stand out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from growth import STYLES
from models import Subject, narrow
from timing import processor_time, take_turns

import sinkgate as sg
from sinkgate.attention.recorder import Recorder
from sinkgate.sinks.criteria import SinkDimensions

SIDES = (24, 35, 50, 71, 100, 126)  # patches along the picture's edge: 576 to 15,876 visual tokens
LAYERS = (8, 16, 32, 80)
SETTINGS = (1, 11, 44, 176)
Curves = dict[str, tuple[list[float], list[float]]]


def runs_of(subject: Subject) -> dict[str, Callable[[], float]]:
    """Plain prefill, gated, with rows recorded, and sinks found, all of the encoded picture."""
    vlm, prompt = subject.vlm, subject.prompt
    scales = subject.scales(sg.Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5))

    def forward(block: Callable[[], Any]) -> None:
        with torch.no_grad(), block():
            subject.model(**subject.encoded, use_cache=True, logits_to_keep=1)

    runs = {
        "plain": partial(forward, nullcontext),
        "every visual Key scaled": partial(forward, lambda: vlm.attached(scales, None, own_cache=True)),
        "last row recorded": partial(forward, lambda: vlm.attached(None, Recorder("last"), own_cache=True)),
        "sinks found": lambda: sg.find_sinks(vlm, prompt, v_sink="norm", l_sink=SinkDimensions((7,))),
    }
    return {name: processor_time(run) for name, run in runs.items()}


def over(mine: list[float], peer: list[float]) -> float:
    """Median of the ratios of neighbours in time."""
    return median(a / b for a, b in zip(mine, peer, strict=True))


def by_tokens(rounds: int) -> tuple[Curves, list[float]]:
    """Ratios by the number of visual tokens, two layers; and seconds of the plain prefills."""
    return _by([narrow(side, layers=2) for side in SIDES], [side**2 for side in SIDES], rounds)


def by_layers(rounds: int) -> tuple[Curves, list[float]]:
    """Ratios by the number of layers, 196 visual tokens; with a slider of the middle layer over the layers' share of a prefill."""
    subjects = [narrow(14, layers=layers) for layers in LAYERS]
    curves, plain = _by(subjects, LAYERS, rounds)
    shares: list[float] = []
    for subject, layers in zip(subjects, LAYERS, strict=True):
        session, gates, turn = (
            sg.Session(subject.vlm, subject.prompt, subject.sinks),
            sg.Gates.ones(subject.vlm),
            iter(range(1000)),
        )
        session.predict()

        def move(session=session, gates=gates, turn=turn, middle: int = layers // 2) -> None:
            session.predict(gates.set("rest", 0.3 + 0.4 * (next(turn) % 2), middle))

        seconds = take_turns({"moved": processor_time(move), "plain": runs_of(subject)["plain"]}, rounds)
        shares.append(2 * over(seconds["moved"], seconds["plain"]))
    curves["slider at half depth, over half a prefill"] = ([float(layers) for layers in LAYERS], shares)
    return curves, plain


def by_settings(rounds: int) -> tuple[Curves, list[float]]:
    """Time of a setting of the middle layer of 8 over half a prefill, by the number side by side."""
    subject = narrow(14, layers=8)
    session = sg.Session(subject.vlm, subject.prompt, subject.sinks)
    session.predict()
    scales = torch.linspace(0.1, 0.9, SETTINGS[-1]).tolist()
    tables = [sg.Gates.ones(subject.vlm).set("rest", scale, 4) for scale in scales]
    runs = {str(count): processor_time(partial(session.predict_all, tables[:count])) for count in SETTINGS}
    seconds = take_turns({**runs, "plain": runs_of(subject)["plain"]}, rounds)
    ratios = [2 * over(seconds[str(count)], seconds["plain"]) / count for count in SETTINGS]
    return {"a setting at half depth, over half a prefill": ([float(count) for count in SETTINGS], ratios)}, [
        median(seconds["plain"])
    ]


def _by(subjects: list[Subject], counts: Any, rounds: int) -> tuple[Curves, list[float]]:
    curves: Curves = {}
    plain: list[float] = []
    for subject, count in zip(subjects, counts, strict=True):
        seconds = take_turns(runs_of(subject), rounds)
        peer = seconds.pop("plain")
        plain.append(median(peer))
        for name, mine in seconds.items():
            x, y = curves.setdefault(name, ([], []))
            x.append(float(count))
            y.append(over(mine, peer))
    return curves, plain


def draw(panels: dict[str, Curves], path: Path, unit: str = "times a plain prefill", width: int = 1100) -> None:
    """Write one panel a quantity as SVG, readable in print."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.07)
    for column, (name, curves) in enumerate(panels.items(), 1):
        place: dict[str, Any] = {"row": 1, "col": column}
        styles = (*STYLES, ("#cc79a7", "cross", "dashdot"))
        for (label, (x, y)), (color, symbol, dash) in zip(curves.items(), styles, strict=False):
            line, marker = {"color": color, "dash": dash, "width": 2}, {"symbol": symbol, "size": 7}
            legend = f"legend{column}" if column > 1 else "legend"
            figure.add_scatter(
                x=x, y=y, name=label, mode="lines+markers", line=line, marker=marker, legend=legend, **place
            )
        ticks = next(iter(curves.values()))[0]
        figure.update_xaxes(
            title_text=name, type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], **place
        )
        figure.update_yaxes(rangemode="tozero", **place)
        figure.add_hline(y=1, line={"color": "#868e96", "width": 1}, **place)
        box: Any = figure.get_subplot(**place)
        figure.update_layout(
            {f"legend{column}" if column > 1 else "legend": {"x": box.xaxis.domain[0], "y": 1.02, "yanchor": "bottom"}}
        )
    figure.update_yaxes(title_text=unit, col=1)
    figure.update_layout(
        template="plotly_white",
        width=width,
        height=420,
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": "#212529"},
        margin={"l": 60, "r": 15, "t": 100, "b": 50},
    )
    figure.write_image(path)


def table(panels: dict[str, tuple[Curves, list[float]]]) -> str:
    """All ratios in Markdown."""
    lines: list[str] = []
    for name, (curves, plain) in panels.items():
        counts = next(iter(curves.values()))[0]
        lines += [
            "",
            f"| {name} | {' | '.join(f'{count:,.0f}' for count in counts)} |",
            f"|---|{'---:|' * len(counts)}",
        ]
        lines += [f"| {label} | {' | '.join(f'{value:.2f} x' for value in y)} |" for label, (_, y) in curves.items()]
        lines.append(f"| a plain prefill | {' | '.join(f'{seconds * 1e3:,.0f} ms' for seconds in plain)} |")
    return "\n".join(lines).strip()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each variant.")] = 3,
    figure: Annotated[Path | None, typer.Option(help="Draw into this SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print tables in Markdown, or JSON."""
    panels = {
        "visual tokens": by_tokens(rounds),
        "layers": by_layers(rounds),
        "settings side by side": by_settings(rounds),
    }
    if as_json:
        print(
            json.dumps({name: {"curves": curves, "plain": plain} for name, (curves, plain) in panels.items()}, indent=1)
        )
    else:
        print(table(panels))
    if figure:
        draw({name: curves for name, (curves, _) in panels.items()}, figure)


if __name__ == "__main__":
    typer.run(main)
