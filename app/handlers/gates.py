"""Handlers of events about gates: faders, JSON, learned gates, history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sinkgate as sg
from sinkgate.sinks.words import layers as in_layers

from ..engine import ANSWER_SECONDS, MAX_UPLOADED_GATES
from ..gate_library import LearnedGates, uploaded_gates
from ..user_session import UserSession, revision_of
from ..view_model import JSON, answers, mixer_value
from .values import MANUAL_SETTING, SKIP, PageValues, active, calm, error_value, remark


class GateHandlers(PageValues):
    """Handlers of events about gates; those of learned gates and of the history return learned, mixer, frame and status."""

    def set_gates(self, session: UserSession | None, mixer: Any, lens: Any) -> tuple[Any, Any]:
        """Run the fast tier for a moving fader; returns frame and status."""
        try:
            session = active(session)
            gates = self.engine.read_gates(mixer)
            if not session.accepts(revision_of(mixer), gates):
                return SKIP, SKIP
            with self.engine.scheduler.slot(session, "fast"):
                if not session.accepts(revision_of(mixer)):
                    return SKIP, SKIP
                before = session.state.sequence if session.state else None
                # the last tick may follow the answers, and then nothing moves any more
                moving = self.engine.set_gates(session, gates).sequence != before
                return self.frame(session, lens, moving), remark(session)
        except Exception as error:
            return SKIP, error_value(error)

    def stream_answers(self, session: UserSession | None, mixer: Any) -> Iterator[tuple[Any, ...]]:
        """Run the slow tier; yields answers, frame, gates as text, status (errors and cut answers only)."""
        try:
            session = active(session)
            gates = self.newest_gates(session, mixer)
            if not session.accepts(revision_of(mixer)) and not session.set_by_server:
                return
            first = True
            for update in self.engine.stream_answers(session, gates):
                if update.done:
                    break
                newest = self.frame(session, session.lens) if first else SKIP
                first = False
                yield answers(update), newest, SKIP, SKIP
            else:
                return  # outdated
            newest, text = self.frame(session, session.lens), gates.to_json()
            cut = calm(f"The answer was stopped after {ANSWER_SECONDS:.0f} seconds.") if update.cut else SKIP
            yield answers(update), newest, SKIP if text == session.gates_text else text, cut
            session.gates_text = text
        except Exception as error:
            yield SKIP, SKIP, SKIP, error_value(error)

    def apply_gates(self, session: UserSession | None, text: str, lens: Any) -> tuple[Any, Any, Any]:
        """Set the faders from JSON; returns mixer, frame, status."""
        try:
            session = active(session)
            gates = self.engine.parse_gates(text)
            value = mixer_value(gates)
            with self.engine.scheduler.slot(session, "fast"):
                self.engine.set_gates(session, gates)
                value["revision"] = session.own_revision()
                overridden = session.state is not None and session.state.overridden
                status = calm(MANUAL_SETTING if overridden else "These gates are now on the mixer.")
                return value, self.frame(session, lens), status
        except Exception as error:
            return SKIP, SKIP, error_value(error)

    def choose_learned(self, session: UserSession | None, chosen: Any, lens: Any) -> tuple[Any, ...]:
        """Let learned gates set the faders, or switch off some of their layers, or all."""
        try:
            session = active(session)
            return SKIP, *self.set_learned(session, self.chosen_gates(session, chosen), lens)
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def restore(self, session: UserSession | None, step: Any, lens: Any) -> tuple[Any, ...]:
        """Set the faders and the choice of learned gates that a step of the history had."""
        try:
            session = active(session)
            learned, gates = self.chosen_gates(session, step), self.engine.read_gates(step)
            with self.engine.scheduler.slot(session, "fast"):
                self.engine.set_learned(session, learned)
                self.engine.set_gates(session, gates)
                value = self.moved_faders(session, always=True)
                return self.learned_value(session), value, self.frame(session, lens), remark(session)
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def upload_learned(self, session: UserSession | None, paths: list[str] | None, lens: Any) -> tuple[Any, ...]:
        """Read the two files of a gate folder and let the gates set the faders."""
        try:
            session = active(session)
            gates = LearnedGates(f"uploaded {session.uploaded + 1}", uploaded_gates(paths, self.engine.vlm))
            values = self.set_learned(session, gates, lens)
            session.uploaded += 1
            session.uploads = [*session.uploads, gates][-MAX_UPLOADED_GATES:]
            return self.learned_value(session), *values
        except Exception as error:
            return self.learned_value(session), SKIP, SKIP, error_value(error)

    def chosen_gates(self, session: UserSession, chosen: Any) -> LearnedGates | None:
        """Return the learned gates of a choice, without the layers that are off; None for none.

        Raises:
            GateError: they are no longer here.
        """
        name, off = _learned(chosen)
        if name is None:
            return None
        offered = [*self.engine.learned, *session.uploads]
        gates = next((gates for gates in offered if gates.name == name), None)
        if gates is None:
            raise sg.GateError("These gates are no longer here: choose others, or upload them again.")
        return gates.without(off)

    def set_learned(self, session: UserSession, learned: LearnedGates | None, lens: Any) -> tuple[JSON, JSON, JSON]:
        """Let these gates set the faders; returns mixer, frame, status."""
        with self.engine.scheduler.slot(session, "fast"):
            self.engine.set_learned(session, learned)
            return self.moved_faders(session, always=True), self.frame(session, lens), calm(learned_sentence(learned))

    def read_file(self, path: str | None) -> str:
        """Return the text of an uploaded file of gates, which is checked when it is applied."""
        if not path:
            return ""
        with Path(path).open("rb") as file:
            return file.read(200_000).decode("utf-8", errors="replace")


def learned_sentence(learned: LearnedGates | None) -> str:
    """Return the effect of learned gates on the next questions, in a sentence."""
    if learned is None:
        return "Learned gates off: every fader is back at 1."
    if not learned.on:
        return "Every layer of these gates is off: all faders are at 1."
    off = f" Off, at 1: {in_layers(sorted(learned.off))}." if learned.off else ""
    return f"The gates read every question and set the faders of {in_layers(learned.on)}.{off}"


def _learned(value: Any) -> tuple[str | None, list[int]]:
    """Return the name of the chosen gates, None for none, and the layers that are off."""
    value = value if isinstance(value, dict) else {}
    name, off = value.get("chosen"), value.get("off")
    if not isinstance(name, str | None) or not isinstance(off, list) or not all(type(layer) is int for layer in off):
        raise sg.GateError("The choice of learned gates must hold a name, or null, and a list of layers.")
    return name, off
