"""A slider moved at one layer: a warm session against pixels in, encoder and all layers again."""

from __future__ import annotations

from statistics import median

import torch
from models import Subject
from peers import rerun
from timing import Row, duration, timed

import sinkgate as sg

ROUNDS, FEW = 20, 1  # the demo model's, a large one's


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Rows of the table."""
    name, layers = subject.name, subject.vlm.num_layers
    times = max(1, round(rounds * (ROUNDS if name == "demo" else FEW)))
    _agree(subject)
    moved, again, warm = _seconds(subject, times)
    speedup = [median(peer) / median(mine) for mine, peer in zip(moved, again, strict=True)]
    per_layer = [median(seconds) for seconds in moved]
    full = median(seconds for each in again for seconds in each)
    shares = [seconds * layers / (median(warm) * (layers - layer)) for layer, seconds in enumerate(per_layer)]
    quarter = speedup[3 * layers // 4 :]
    note = f"{duration(full)} again, {duration(min(per_layer))} to {duration(max(per_layer))} moved; every layer, rounds: {times}"
    return [
        Row("full re-run / slider moved, last quarter, its slowest layer", name, min(quarter), aim=">= 5", note=note),
        Row("full re-run / slider moved, median layer", name, median(speedup), aim=">= 2", note=note),
        Row("full re-run / slider moved, first layer", name, speedup[0], note="the image stays encoded; no layer is saved"),
        Row("slider moved / its layers' share of a forward, median layer", name, median(shares), note=f"1 is proportional; a forward of the encoded prompt takes {duration(median(warm))}"),
    ]  # fmt: skip


def _agree(subject: Subject) -> None:
    """Both ways give the same distribution, or the benchmark is void."""
    layer = subject.vlm.num_layers // 2
    gates = sg.Gates.ones(subject.vlm).set("rest", 0.5, layer)
    mine = sg.Session(subject.vlm, subject.prompt, subject.sinks).predict(gates).probabilities
    theirs = rerun(subject, layer, subject.scales(gates)[layer, 0]).float().softmax(-1).cpu()
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-2)


def _seconds(subject: Subject, times: int) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """By layer and round, ours and theirs; and a forward of the encoded prompt, by round."""
    vlm, layers = subject.vlm, range(subject.vlm.num_layers)
    session, gates = sg.Session(vlm, subject.prompt, subject.sinks), sg.Gates.ones(vlm)
    session.predict()
    moved: list[list[float]] = [[] for _ in layers]
    again: list[list[float]] = [[] for _ in layers]
    warm: list[float] = []
    peer = 0.0  # the first layer measures it
    every = max(1, len(layers) // 6)  # the peer costs the same at every layer: it need not run at each
    for index in range(times):
        for layer in layers:
            gates = gates.set("v_sink", 0.5 + 0.4 * (index % 2), layer)  # one slider at a time, the others stay
            table = gates
            mine = timed(lambda: session.predict(table))  # noqa: B023 - called at once
            if layer % every == 0:
                scales = subject.scales(table)[layer, 0]
                peer = timed(lambda: rerun(subject, layer, scales))  # noqa: B023
            moved[layer].append(mine)
            again[layer].append(peer)
        with torch.no_grad():
            warm.append(timed(lambda: vlm.model(**subject.encoded, use_cache=True, logits_to_keep=1)))
    return moved, again, warm
