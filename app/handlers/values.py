"""Values of the page's components for a user's session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from textwrap import shorten
from typing import Any, ParamSpec

import sinkgate as sg
from sinkgate.scenes import questions

from ..engine import Engine
from ..examples import GALLERY, GENERAL_QUESTIONS, PHOTOGRAPHS, PLAIN_QUESTIONS, thumbnail
from ..lens import Lens
from ..metrics import log_unexpected
from ..share_links import Link
from ..user_session import QuestionState, UserSession, revision_of
from ..view_model import JSON, frame, image_url, mixer_value, sentence, view_urls

P = ParamSpec("P")
Update = dict[str, Any]  # new values of components, by their ids; the others stay as they are
MAX_ERROR = 300  # characters: a message may quote an uploaded file
MANUAL_SETTING = "Manual setting for this question. The learned gates take over at the next one."
EXPIRED = (
    "This session expired after a time without activity, or when memory ran short. Press Ask or New scene to go on."
)


class PageValues:
    """Values of the page's components, bound to one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        general = not any(engine.vlm.unknown_words(question) for question in GENERAL_QUESTIONS)
        self.plain = GENERAL_QUESTIONS if general else PLAIN_QUESTIONS  # examples for pictures that are no scenes
        self.examples = PHOTOGRAPHS if general else GALLERY
        self.gallery = [image_url(thumbnail(example)) for example in self.examples]

    def frame(self, session: UserSession, lens: Any, moving: bool = False) -> JSON:
        """Return the newest frame of a session.

        Args:
            session: the user's session.
            lens: the page's lens.
            moving: leave out the link that restores the page after a reload, which costs time.
        """
        refused = {}
        # read before the state, so that no frame names an edit that came after it, or precedes one with an older state
        lens, tick = session.newest_lens(lens)
        newest = {"tick": tick, "edit": session.newest_edit, "step": session.newest_step}
        while True:  # until no other thread has moved the faders in between
            if (state := session.snapshot()) is None:
                raise sg.PromptError("Ask a question first.")
            view = self.lens(state, lens)
            if refused:  # no GPU for it, or no slot: the maps show the last prompt token
                view = replace(view, position=None)
            if view.position == (state.query and state.query.position) and (
                state.query is None or state.query.sequence == state.sequence
            ):
                break
            try:
                self.engine.look(session, view.position)
            except sg.SinkgateError as error:
                refused = {"note": error_value(error)["text"]}
        here = {} if moving else {"here": replace(Link.of(session, view, self.engine), gates=state.gates).to_text()}
        names = {"question": session.question, "session": session.key, **newest}
        return frame(state, view) | names | refused | here

    def lens(self, state: QuestionState | None, lens: Any) -> Lens:
        """Return the page's lens, with values that model and prompt have."""
        prompt = state.prompt if state else None
        view = Lens.read(lens, self.engine.vlm, len(prompt.sheets) if prompt else 1)
        return view.within(prompt) if prompt else view

    def questions_value(self, session: UserSession) -> JSON:
        """Return gallery, example questions, ground truth, and the picture under the map of each sheet."""
        view, *others = view_urls(session.state.prompt) if session.state else [""]
        return {
            "gallery": self.gallery,
            "chips": [{"question": question, "answer": answer} for question, answer in session.examples],
            "asked": session.question,
            "truth": sentence(questions.describe(session.scene)) if session.scene else "",
            "view": view,
            "other_views": others,
        }

    def learned_value(self, session: UserSession | None) -> JSON:
        """Return the learned gates that this user can choose, and the current choice."""
        offered = [*self.engine.learned, *(session.uploads if session else ())]
        learned = session.learned if session else None
        return {
            "offered": [{"name": gates.name, "about": gates.about} for gates in offered],
            "chosen": learned.name if learned else None,
            "off": sorted(learned.off) if learned else [],
        }

    def moved_faders(self, session: UserSession, always: bool = False) -> Update:
        """Return the mixer's update if learned gates have moved its faders."""
        if session.state is None or not (always or session.state.learned):
            return {}
        return {"mixer": {**mixer_value(session.state.gates), "revision": session.own_revision()}}

    def newest_gates(self, session: UserSession, mixer: Any) -> sg.Gates:
        """Return the mixer's gates, unless the server has moved the faders since the page sent them."""
        gates = self.engine.read_gates(mixer)
        return gates if session.accepts(revision_of(mixer)) or session.state is None else session.state.gates


def composer_value(session: UserSession) -> JSON:
    """Return the composer's value: the session's scene, or None for another picture."""
    scene = session.scene.to_dict() if session.scene else None
    return {"scene": scene, "picture": session.picture, "revision": session.newest_edit}


def never_raises(handler: Callable[P, Update]) -> Callable[P, Update]:
    """Return a handler that gives the reason of an error in the status line, where everything else stays as it was."""

    @wraps(handler)
    def explained(*arguments: P.args, **options: P.kwargs) -> Update:
        try:
            return handler(*arguments, **options)
        except Exception as error:
            return {"status": error_value(error)}

    return explained


def remark(session: UserSession) -> JSON:
    """Return the status while the faders move."""
    return calm(MANUAL_SETTING if session.state and session.state.overridden else session.notice)


def calm(text: str) -> JSON:
    """Return a status that is no error."""
    return {"text": text, "tone": "calm"}


def error_value(error: Exception) -> JSON:
    """Return the status for an error: the message of a `sinkgate.SinkgateError`, or a sentence without details."""
    if isinstance(error, sg.SinkgateError):
        return {"text": shorten(sentence(str(error)), MAX_ERROR, placeholder=" …"), "tone": "warning"}
    log_unexpected(error)
    return {"text": "Unexpected error: the page keeps its last result. Try again.", "tone": "warning"}


def active(session: UserSession | None) -> UserSession:
    """Return the session; raises `sinkgate.PromptError` where there is none, or it expired."""
    if session is None or session.image is None:
        raise sg.PromptError(EXPIRED)
    return session


def shown(session: UserSession | None) -> Update:
    """Return the update of the picture box."""
    return {} if session is None or session.shown is None else {"picture": session.shown}


def first_query(lens: Any) -> Any:
    """Return the same lens at the first query: those after it belong to the previous answer, prompt tokens to the previous question."""
    return {**lens, "row": 0, "position": None} if isinstance(lens, dict) else lens


def choice(value: Any, key: str) -> Any:
    """Return an entry of what a component's event has chosen; None for anything else."""
    entries = value.get("choice") if isinstance(value, dict) else None
    return entries.get(key) if isinstance(entries, dict) else None
