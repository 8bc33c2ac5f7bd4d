"""The paper's oracle sweep, every layer at the eleven points of its line: side by side from the changed layer up, against full generates."""

from __future__ import annotations

from statistics import median

from models import Subject
from peers import generate
from timing import Row, duration, ratio, timed

import sinkgate as sg
from sinkgate.analysis.sweep import LINE, Setting, oracle

ANSWER = 2  # tokens at most: a word or a letter, and the end


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Rows of the table: the demo model's whole sweep; of a large one every seventh layer, with one generate at each of them."""
    layers, name, small = subject.vlm.num_layers, subject.name, subject.name == "demo"
    swept = range(layers) if small else range(1, layers, 7)  # of 24 layers: as deep, on the mean, as all
    each = len(LINE) if small else 1  # a generate costs the same at every setting
    mine, peer = [], []
    begin = 0.0
    for _ in range(max(1, round(5 * rounds)) if small else 1):
        begin, ours, theirs = _in_turns(subject, swept, each)
        mine.append(begin + ours * layers / len(swept))
        peer.append(theirs * layers / len(swept) * len(LINE) / each)
    note = f"{layers * len(LINE)} settings: {duration(median(peer))} and {duration(median(mine))}"
    if not small:
        note += f", from {each * len(swept)} and {len(LINE) * len(swept)} of them; ours begins in {duration(begin)}"
    return [ratio("loop of full generates / oracle sweep", name, mine, peer, ">= 8", speedup=True, note=note)]


def _in_turns(subject: Subject, layers: range, each: int) -> tuple[float, float, float]:
    """Seconds to begin, pixels in; for all settings side by side; and for ``each`` a layer by full generates."""
    vlm = subject.vlm
    subject.prompt.encoded = None
    session = sg.Session(vlm, subject.prompt, subject.sinks)
    begin, ours, theirs = timed(session.predict), 0.0, 0.0
    answers: list[int] = []
    changed: list[int] = []

    def side_by_side(line: list[Setting]) -> None:
        answers.extend(session.predict_all([setting.gates(vlm) for setting in line]).argmax(1).tolist())

    def one_by_one(line: list[Setting]) -> None:
        for setting in line:
            scales = subject.scales(setting.gates(vlm))[setting.layer, 0]
            changed.append(generate(subject, setting.layer, scales, ANSWER)[0])

    for layer in layers:
        line = oracle(vlm, [layer], LINE)
        ours += timed(lambda: side_by_side(line))  # noqa: B023 - called at once
        theirs += timed(lambda: one_by_one(line[:each]))  # noqa: B023
    if each == len(LINE) and changed != answers:
        raise AssertionError(f"the two sweeps disagree: {changed} and {answers}")
    return begin, ours, theirs
