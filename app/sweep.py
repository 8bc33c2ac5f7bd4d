"""A sweep over one question: the probability of the original answer's first token with one group scaled in one layer.

Settings are those of `sinkgate.analysis.sweep`, run warm and side by side by the question's own session. They run in short
parts, each in a slot of its own, so that moving faders and other users come in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import sinkgate as sg
from sinkgate.analysis.sweep import Setting, oracle
from sinkgate.models.session import BATCH
from sinkgate.sinks.gates import Group

from .engine import Engine
from .user_session import QuestionState, UserSession
from .view_model import JSON

GROUPS: tuple[Group, ...] = ("v_sink", "l_sink", "ordinary")
SCALES = (0.0, 2.0, 0.5, 1.5, 0.25, 0.75)  # in the order in which they run, so that the extremes are drawn first
AXIS = sorted([*SCALES, 1.0])
PART_SECONDS = 0.15  # of one part, about
NO_SWEEP = (
    "A sweep needs a model that is always loaded, and here each part of it would wait for a GPU. "
    "Run the app on a machine of your own, or use sinkgate sweep."
)


@dataclass
class Sweep:
    """The results of one question so far; ``groups`` has, by layer and scale, a probability and the likeliest token."""

    state: QuestionState
    points: list[tuple[Group, Setting]]
    first: int  # the original answer's first token
    groups: dict[Group, list[list[tuple[float, int] | None]]]
    done: int = 0
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: QuestionState) -> Sweep:
        """Return the sweep of a question, before its first part; groups without tokens in a layer are left out."""
        vlm, sinks = state.prompt_session.vlm, state.sinks
        filled: list[tuple[Group, int]] = [
            (group, layer) for layer in range(vlm.num_layers) for group in GROUPS if sinks.group(group, layer).any()
        ]
        points: list[tuple[Group, Setting]] = [
            (group, setting)
            for scale in SCALES
            for group, layer in filled
            for setting in oracle(vlm, [layer], [point(group, scale)])
        ]
        first = int(state.unchanged.probabilities.argmax())
        original = (float(state.unchanged.probabilities[first]), first)
        groups: dict[Group, list[list[tuple[float, int] | None]]] = {
            group: [
                [original if scale == 1 and (group, layer) in filled else None for scale in AXIS]
                for layer in range(vlm.num_layers)
            ]
            for group in GROUPS
        }
        return cls(state, points, first, groups)

    def run(self, count: int) -> None:
        """Run the next settings."""
        part = self.points[self.done : self.done + count]
        vlm = self.state.prompt_session.vlm
        logits = self.state.prompt_session.predict_all([setting.gates(vlm) for _, setting in part])
        for (group, setting), probabilities in zip(part, logits.softmax(-1), strict=True):
            likeliest = int(probabilities.argmax())
            self.names.setdefault(likeliest, vlm.token_name(likeliest))
            row = self.groups[group][setting.layer]
            row[AXIS.index(setting.scales[group])] = (float(probabilities[self.first]), likeliest)
        self.done += len(part)

    def value(self, status: str) -> JSON:
        """Return the sweep as JSON; ``tops`` are empty where the likeliest token is the original's."""
        cells = {
            group: {
                "p": [[cell and round(cell[0], 5) for cell in row] for row in rows],
                "tops": [
                    [self.names[cell[1]] if cell and cell[1] != self.first else "" for cell in row] for row in rows
                ],
            }
            for group, rows in self.groups.items()
        }
        return {
            "began": self.state.began,
            "token": self.state.unchanged.next_token[0][0],
            "before": round(float(self.state.unchanged.probabilities[self.first]), 5),
            "scales": AXIS,
            "groups": cells,
            "done": self.done,
            "total": len(self.points),
            "status": status,
        }


def point(group: Group, scale: float) -> tuple[float, float, float]:
    """Return the point of `oracle` at which one group is scaled."""
    scales: dict[Group, float] = {**dict.fromkeys(GROUPS, 1.0), group: scale}
    return scales["v_sink"], scales["ordinary"], scales["l_sink"]


def sweep(engine: Engine, session: UserSession) -> Iterator[JSON]:
    """Run a sweep of a session's question, yielding its value after each part.

    It ends early at another question, another sweep, or `UserSession.stop_sweep`.

    Args:
        engine: the model and its scheduler.
        session: the user's session.

    Raises:
        SinkgateError: the backend has no warm sessions, or the queue is full (`scheduler.BusyError`).
    """
    if not engine.backend.interactive:
        raise sg.SinkgateError(NO_SWEEP)
    number = session.stop_sweep()
    state = session.state or engine.set_gates(session, session.wanted or sg.Gates.ones(engine.vlm))
    result, count = Sweep.of(state), len(GROUPS)
    yield result.value("running")
    while result.done < len(result.points):
        with engine.scheduler.slot(session, "sweep"):
            outdated = session.state is not state or session.sweeps != number
            begun, before = time.monotonic(), result.done
            if not outdated:
                result.run(count)
        if outdated:
            yield result.value("stopped")
            return
        seconds = (time.monotonic() - begun) / (result.done - before)
        engine.cache.use(state.prompt_session)
        count = min(max(int(PART_SECONDS / seconds), 1), 2 * count, BATCH)
        yield result.value("done" if result.done == len(result.points) else "running")
