"""One intervention, the Keys of the visual tokens halved in the middle layer: sinkgate, a plain hook, nnsight."""

from __future__ import annotations

import torch
from models import Subject
from peers import NNSIGHT, nnsight_rerun, rerun
from timing import Row, Run, ratio, take_turns
from torch import Tensor

import sinkgate as sg

ROUNDS, FEW = 40, 3  # the demo model's, a large one's


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Rows of the table: from the pixels in one forward, and as a slider, which only the session keeps warm."""
    vlm, name = subject.vlm, subject.name
    layer = vlm.num_layers // 2
    gates = sg.Gates.ones(vlm).set("v_sink", 0.5, layer).set("rest", 0.5, layer)
    scales = subject.scales(gates)[layer, 0]
    session = sg.Session(vlm, subject.prompt, subject.sinks)
    session.predict()
    tables = [gates.set("rest", 0.25, layer), gates]

    def cold() -> Tensor:
        with torch.no_grad(), vlm.gated(subject.prompt, subject.sinks, gates):
            return vlm.model(**subject.pixels, use_cache=False, logits_to_keep=1).logits[0, -1]

    def slider() -> Tensor:
        tables.reverse()
        return session.predict(tables[1]).probabilities

    variants: dict[str, Run] = {"slider": slider, "cold": cold, "hook": lambda: rerun(subject, layer, scales)}
    if NNSIGHT:
        traced = nnsight_rerun(subject, layer)
        variants["nnsight"] = lambda: traced(scales)
    wanted = cold()
    for peer in ("hook", "nnsight"):
        if peer in variants:
            torch.testing.assert_close(variants[peer](), wanted, atol=1e-3, rtol=1e-2)
    times = max(1, round(rounds * (ROUNDS if name == "demo" else FEW)))
    seconds = take_turns(variants, times)
    rows = []
    for peer in ("hook", "nnsight"):
        if peer not in seconds:
            rows.append(Row(f"{peer} / sinkgate", name, None, note="nnsight is not installed"))
            continue
        rows += [
            ratio(f"{peer} / sinkgate, slider moved", name, seconds["slider"], seconds[peer], "> 1", speedup=True),
            ratio(f"{peer} / sinkgate, one forward from the pixels", name, seconds["cold"], seconds[peer], "> 1", speedup=True),
        ]  # fmt: skip
    return rows
