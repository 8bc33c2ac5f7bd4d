"""Handlers of events about gates: faders, JSON, learned gates, history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sinkgate as sg
from sinkgate.sinks.words import layers as in_layers

from ..engine import ANSWER_SECONDS, MAX_UPLOADED_GATES
from ..gate_library import LearnedGates, uploaded_gates
from ..user_session import UserSession, revision_of, same_scales
from ..view_model import answers
from .values import MANUAL_SETTING, PageValues, Update, active, calm, error_value, never_raises, remark


class GateHandlers(PageValues):
    """Handlers of events about gates."""

    @never_raises
    def set_gates(self, session: UserSession | None, mixer: Any, lens: Any) -> Update:
        """Run the fast tier for a moving fader."""
        session = active(session)
        gates = self.engine.read_gates(mixer)
        if not session.accepts(revision_of(mixer), gates):
            return {}
        with self.engine.scheduler.slot(session, "fast"):
            newest = session.wanted is not None and same_scales(session.wanted, gates)  # it came to rest meanwhile
            if not session.accepts(revision_of(mixer)) and not newest:
                return {}
            before = session.state.sequence if session.state else None
            # the last tick may follow the answers, and then nothing moves any more
            moving = self.engine.set_gates(session, gates).sequence != before
            return {"maps": self.frame(session, lens, moving), "status": remark(session)}

    def stream_answers(self, session: UserSession | None, mixer: Any) -> Iterator[Update]:
        """Run the slow tier; a status is for errors and cut answers only."""
        try:
            session = active(session)
            gates = self.newest_gates(session, mixer)
            if not session.accepts(revision_of(mixer)) and not session.set_by_server:
                return
            framed = self.engine.backend.interactive  # by the tick
            for update in self.engine.stream_answers(session, gates):
                if update.done:
                    break
                newest = {} if framed else {"maps": self.frame(session, session.lens)}
                framed = True
                yield {"answers": answers(update), **newest}
            else:
                return  # outdated
            values: Update = {"answers": answers(update), "maps": self.frame(session, session.lens)}
            if (text := gates.to_json()) != session.gates_text:
                values["gates_text"] = text
            if update.cut:
                values["status"] = calm(f"The answer was stopped after {ANSWER_SECONDS:.0f} seconds.")
            yield values
            session.gates_text = text
        except Exception as error:
            yield {"status": error_value(error)}

    @never_raises
    def apply_gates(self, session: UserSession | None, gates_text: str, lens: Any) -> Update:
        """Set the faders from JSON."""
        session = active(session)
        gates = self.engine.parse_gates(gates_text)
        with self.engine.scheduler.slot(session, "fast"):
            self.engine.set_gates(session, gates)
            overridden = session.state is not None and session.state.overridden
            status = calm(MANUAL_SETTING if overridden else "These gates are now on the mixer.")
            return {**self.moved_faders(session, always=True), "maps": self.frame(session, lens), "status": status}

    @never_raises
    def load_gates(self, session: UserSession | None, gates_load: str | None, lens: Any) -> Update:
        """Set the faders from an uploaded file of gates."""
        text = ""
        if gates_load:
            with Path(gates_load).open("rb") as file:
                text = file.read(200_000).decode("utf-8", errors="replace")
        return {"gates_text": text, **self.apply_gates(session, text, lens)}

    def choose_learned(self, session: UserSession | None, learned: Any, lens: Any) -> Update:
        """Let learned gates set the faders, or switch off some of their layers, or all."""
        try:
            session = active(session)
            return self.set_learned(session, self.chosen_gates(session, learned), lens)
        except Exception as error:
            return {"learned": self.learned_value(session), "status": error_value(error)}

    def restore(self, session: UserSession | None, history: Any, lens: Any) -> Update:
        """Set the faders and the choice of learned gates that a step of the history had."""
        try:
            session = active(session)
            learned, gates = self.chosen_gates(session, history), self.engine.read_gates(history)
            with self.engine.scheduler.slot(session, "fast"):
                self.engine.set_learned(session, learned)
                self.engine.set_gates(session, gates)
                session.newest_step = revision_of(history) or 0
                return {
                    "learned": self.learned_value(session),
                    **self.moved_faders(session, always=True),
                    "maps": self.frame(session, lens),
                    "status": remark(session),
                }
        except Exception as error:
            if session:
                session.newest_step = revision_of(history) or 0
            return {"learned": self.learned_value(session), "status": error_value(error)}

    def upload_learned(self, session: UserSession | None, learned_upload: list[str] | None, lens: Any) -> Update:
        """Read the two files of a gate folder and let the gates set the faders."""
        try:
            session = active(session)
            gates = LearnedGates(f"uploaded {session.uploaded + 1}", uploaded_gates(learned_upload, self.engine.vlm))
            values = self.set_learned(session, gates, lens)
            session.uploaded += 1
            session.uploads = [*session.uploads, gates][-MAX_UPLOADED_GATES:]
            return {"learned": self.learned_value(session), **values}
        except Exception as error:
            return {"learned": self.learned_value(session), "status": error_value(error)}

    def chosen_gates(self, session: UserSession, value: Any) -> LearnedGates | None:
        """Return the learned gates of a choice, without the layers that are off; None for none.

        Raises:
            GateError: they are no longer here.
        """
        name, off = _learned(value)
        if name is None:
            return None
        offered = [*self.engine.learned, *session.uploads]
        gates = next((gates for gates in offered if gates.name == name), None)
        if gates is None:
            raise sg.GateError("These gates are no longer here: choose others, or upload them again.")
        return gates.without(off)

    def set_learned(self, session: UserSession, learned: LearnedGates | None, lens: Any) -> Update:
        """Let these gates set the faders."""
        with self.engine.scheduler.slot(session, "fast"):
            self.engine.set_learned(session, learned)
            status = calm(learned_sentence(learned))
            return {**self.moved_faders(session, always=True), "maps": self.frame(session, lens), "status": status}


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
