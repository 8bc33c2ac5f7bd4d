"""The paper's oracle sweep, every layer at the eleven points of its line: side by side from the changed layer up, against full generates."""

from __future__ import annotations

from models import Subject
from peers import generate
from timing import Row, duration, ratio, timed

import sinkgate as sg
from sinkgate.sweep import LINE, Setting, oracle

ANSWER = 2  # tokens at most: a word or a letter, and the end
ROUNDS = {"demo": 5}


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Rows of the table. A large model's sweep is measured on every seventh layer, a generate at a few settings: it costs the same at all."""
    vlm, name = subject.vlm, subject.name
    whole = oracle(vlm, points=LINE)
    if name == "demo":
        swept, generated = whole, whole
    else:
        swept = oracle(vlm, range(1, vlm.num_layers, 7), LINE)  # of 24 layers: as many layers above as the mean of all
        generated = swept[:: len(swept) // 4]
    mine, peer = [], []
    for _ in range(max(1, round(rounds * ROUNDS.get(name, 1)))):
        begin, run, answers = _side_by_side(subject, swept)
        loop, said = _one_by_one(subject, generated)
        if name == "demo" and said != answers:
            raise AssertionError(f"the two sweeps disagree: {said} and {answers}")
        mine.append(begin + run * len(whole) / len(swept))
        peer.append(loop * len(whole) / len(generated))
    note = f"{len(whole)} settings: {duration(peer[-1])} and {duration(mine[-1])}"
    if swept is not whole:
        note += f", from {len(generated)} and {len(swept)} of them; ours begins in {duration(begin)}"
    return [
        ratio("loop of full generates / oracle sweep", name, mine, peer, ">= 8", speedup=True, note=note),
    ]


def _side_by_side(subject: Subject, settings: list[Setting]) -> tuple[float, float, list[int]]:
    """Seconds to begin, pixels in, and for all settings; and the token that each says first."""
    subject.prompt.encoded = None
    session = sg.Session(subject.vlm, subject.prompt, subject.sinks)
    begin = timed(session.predict)
    answers: list[int] = []

    def run() -> None:
        tables = [setting.gates(subject.vlm) for setting in settings]
        answers.extend(session.predict_all(tables).argmax(1).tolist())

    return begin, timed(run), answers


def _one_by_one(subject: Subject, settings: list[Setting]) -> tuple[float, list[int]]:
    """Seconds for all settings, pixels in each time; and the token that each says first."""
    scales = [subject.scales(setting.gates(subject.vlm))[setting.layer, 0] for setting in settings]
    said: list[int] = []

    def run() -> None:
        for setting, each in zip(settings, scales, strict=True):
            said.append(generate(subject, setting.layer, each, ANSWER)[0])

    return timed(run), said
