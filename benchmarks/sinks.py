"""Cost of finding sinks beside a plain prefill, and of reducing a layer's states beside the layer's products.

``python benchmarks/sinks.py [FOLDER] [--json]``: at the width of real models on random states, and on the model in FOLDER. Seconds are
the processor's, not the clock's, so that other work on the machine counts little.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import bounds
import torch
import typer
from models import Subject, open_folder
from timing import Row, duration, held, in_a_process, processor_time, ratio, reset_peak, take_turns

import sinkgate as sg
from sinkgate.sinks.criteria import AttentionShare, Criterion, MassiveActivations, NormOutliers, SinkDimensions
from sinkgate.sinks.states import Reduction

#: Tokens, width and layers of LLaVA-1.5-7B and of Qwen2.5-VL-7B with a large picture; parameters of one of their layers.
WIDTHS = {"LLaVA-1.5-7B": (600, 4096, 32, 202.4e6), "Qwen2.5-VL-7B": (4000, 3584, 28, 233.1e6)}
REDUCTIONS = {"sink dimensions": Reduction((7, 1415)), "every channel measured": Reduction(ratio=100.0)}
CRITERIA: dict[str, Criterion] = {
    "sink dimensions": SinkDimensions((7,)),
    "massive activations": MassiveActivations(),
    "norm outliers": NormOutliers(),
    "attention share": AttentionShare(),
}


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """``find_sinks`` over a plain prefill of the same pixels, by criterion."""
    runs: dict[str, Callable[[], float]] = {"plain": processor_time(subject.prefill)}
    runs |= {name: processor_time(partial(_find, subject, criterion)) for name, criterion in CRITERIA.items()}
    times = max(3, round(rounds * (30 if subject.name == "demo" else 7)))
    seconds = take_turns(runs, times)
    note = f"{duration(median(seconds['plain']))} of processor time plain, {times} rounds"
    return [
        ratio(
            f"find_sinks by {name} / plain prefill", subject.name, seconds[name], seconds["plain"], "<= 1.1", note=note
        )
        for name in CRITERIA
    ]


def measure_widths(rounds: float = 1) -> list[Row]:
    """Reductions of one layer over the layer's products, over one read of its states, and what they hold over whole states.

    The products are those of one D x D matrix, times the parameters of a layer over D x D.
    """
    rows: list[Row] = []
    for model, (tokens, width, layers, weights) in WIDTHS.items():
        torch.manual_seed(0)
        states, matrix = torch.randn(tokens, width).bfloat16(), torch.randn(width, width).bfloat16()
        states[0, 7] = 3000
        runs = {name: processor_time(partial(reduction, states)) for name, reduction in REDUCTIONS.items()}
        runs |= {
            "read": processor_time(lambda states=states: states.float().sum()),
            "median": processor_time(lambda states=states: states.float().abs().median()),
            "product": processor_time(partial(torch.matmul, states, matrix)),
        }
        seconds = take_turns(runs, max(3, round(rounds * 15)))
        products = [each * weights / width**2 for each in seconds["product"]]
        read, compute = states.nbytes / bounds.H100[0], 2 * weights * tokens / bounds.H100[1]
        on_h100 = f"an H100 takes {read * 1e6:.1f} us to read them and {compute * 1e6:.0f} us for the products at best"
        for name, reduction in REDUCTIONS.items():
            mine, summary = seconds[name], reduction(states)
            held = [summary.norms, summary.values, summary.sample, *([summary.measures] if reduction.ratio else [])]
            share = sum(each.untyped_storage().nbytes() for each in held) / (4 * tokens * width)
            rows += [
                ratio(
                    f"{name} / a layer's products", model, mine, products, "<= 0.25", note=f"{layers} layers; {on_h100}"
                ),
                ratio(f"{name} / one read of the states", model, mine, seconds["read"]),
                ratio(f"torch's median in float32 / {name}", model, mine, seconds["median"], speedup=True),
                Row(f"{name}: bytes held / whole states in float32", model, share, aim="<= 0.1"),
            ]
    return rows


def measure_memory(folder: Path) -> list[Row]:
    """Return the peak memory of one ``find_sinks`` over that of a plain prefill, both with the weights, each in a process of its own."""
    plain, finding = (in_a_process(_peak_of, folder, name) for name in ("plain", "sink dimensions"))
    note = f"{plain[1] / 2**20:.0f} MiB above the weights plain, {finding[1] / 2**20:.0f} MiB with sinks"
    return [
        Row("peak memory of find_sinks / plain prefill", folder.name, finding[0] / plain[0], aim="<= 1.1", note=note)
    ]


def _find(subject: Subject, criterion: Criterion) -> None:
    sg.find_sinks(subject.vlm, subject.prompt, v_sink="norm", l_sink=criterion)


def _peak_of(folder: Path, name: str) -> tuple[int, int]:
    """Peak of one run in bytes, and by how much it exceeds what the process held before."""
    subject = open_folder(folder)
    subject.prefill()  # what is set up once
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system
    reset_peak()
    before = held("VmRSS")
    if name == "plain":
        subject.prefill()
    else:
        _find(subject, CRITERIA[name])
    return held(), held() - before


def main(
    folder: Annotated[Path | None, typer.Argument(help="A model; random states alone where left out.")] = None,
    rounds: Annotated[float, typer.Option(min=0, help="More or fewer rounds, as a factor.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure, and print a line for each ratio, or JSON."""
    rows = measure_widths(rounds)
    if folder:
        rows += [*measure(open_folder(folder), rounds), *measure_memory(folder)]
    if as_json:
        print(json.dumps({"threads": torch.get_num_threads(), "rows": [row.as_json() for row in rows]}, indent=1))
        return
    print(*rows, sep="\n")


if __name__ == "__main__":
    typer.run(main)
