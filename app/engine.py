"""The model, and the two tiers of work that keep each user's page up to date.

The fast tier (`Engine.set_gates`) runs one prefill for each setting of the faders. The slow tier (`Engine.stream_answers`)
generates both answers and stops as soon as a newer setting or question arrives. Users share the model, which a scheduler
gives to them in turn, and nothing else. This module does not depend on the page.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from PIL import Image

import sinkgate as sg
from sinkgate.errors import ModelMismatchError
from sinkgate.models.session_cache import SessionCache

from .backend import Backend
from .gate_library import LearnedGates
from .scheduler import Scheduler
from .user_session import DEFAULT_CRITERION, QueryRows, QuestionState, UserSession, same_scales

MAX_NEW_TOKENS = 32
MAX_QUESTION = 500  # characters; the model has a limit of its own, in tokens
MAX_GATES_TEXT = 100_000  # characters
MAX_SESSIONS = 200  # users whose picture and question are held; the least recently active expire first
MAX_QUESTION_STATES = 24  # of them, those whose image features and attention stay in memory
MAX_SESSION_BYTES = 512 << 20  # pictures and uploaded gates of all users together
MAX_UPLOADED_GATES = 3  # of one user
ANSWER_SECONDS = 20.0  # for one answer, from the moment it starts
CACHE_BYTES = 2 << 30  # for the key-value caches of all users; the least recently used are dropped


@dataclass(frozen=True)
class AnswerUpdate:
    """Both answers as far as they are generated, for the setting with this sequence number."""

    unchanged: str
    gated: str
    sequence: int
    done: bool = False
    cut: bool = False  # whether an answer was stopped because it took too long
    limited: tuple[bool, bool] = (False, False)  # whether the original, the gated answer ended at MAX_NEW_TOKENS


class Engine:
    """The model, the learned gates that the server offers, and the work for all users.

    Args:
        vlm: the model.
        learned: gates that every user can choose.
        backend: where the model runs; this process by default.
    """

    def __init__(self, vlm: sg.VLM, learned: Sequence[LearnedGates] = (), backend: Backend | None = None) -> None:
        self.vlm, self.learned, self.backend = vlm, list(learned), backend or Backend(vlm)
        self.scheduler = Scheduler()
        self.cache = SessionCache(CACHE_BYTES)
        self._recent: OrderedDict[str, UserSession] = OrderedDict()  # by key, the least recently active first
        self._recent_lock = threading.Lock()

    def ask(
        self, session: UserSession, question: str, gates: sg.Gates, image: Image.Image | sg.Video | None = None
    ) -> None:
        """Ask a question; on an error the session stays as it was.

        Args:
            session: the user's session.
            question: the question.
            gates: scales, unless the session's learned gates set them.
            image: an image or a video that replaces the session's.

        Raises:
            SinkgateError: there is no image, or the question cannot be used, or the queue is full (`scheduler.BusyError`).
        """
        image = image or session.image
        if image is None:
            raise sg.ImageError("There is no picture yet: upload one, or press New scene.")
        prompt = self._prompt(image, question)
        sequence = session.next_sequence()
        learned = session.learned
        criterion = learned.criterion if learned else DEFAULT_CRITERION
        with self.scheduler.slot(session, "ask"):
            prompt_session = self.backend.open(prompt, criterion)
            unchanged = prompt_session.predict()
            rho = learned.read(prompt_session) if learned else None
            gates = rho or gates
            gated = prompt_session.predict(gates)
        self.cache.use(prompt_session)
        session.image, session.question, session.wanted = image, question, gates
        session.state = QuestionState(
            prompt_session, unchanged, gates, gated, sequence, sequence, criterion, learned, rho
        )
        session.notice = unknown_sentence(self.vlm.unknown_words(question))
        self._touch(session)

    def set_learned(self, session: UserSession, learned: LearnedGates | None) -> None:
        """Let learned gates read the current question and all that follow; None removes them and sets all scales to 1.

        On an error the session stays as it was.
        """
        state, before = session.state, session.learned
        criterion = learned.criterion if learned else DEFAULT_CRITERION
        if state is None or state.criterion != criterion:
            session.learned = learned
            try:
                self.ask(session, session.question, sg.Gates.ones(self.vlm))
            except Exception:
                session.learned = before
                raise
            return
        with self.scheduler.slot(session, "fast"):
            rho = learned.read(state.prompt_session) if learned else None
            state = self.set_gates(session, rho or sg.Gates.ones(self.vlm))
        with session.lock:
            session.learned = state.learned = learned
            state.rho = rho

    def set_gates(self, session: UserSession, gates: sg.Gates) -> QuestionState:
        """Run the fast tier: one prefill under these gates, unless they are set already."""
        with self.scheduler.slot(session, "fast"):
            if session.state is None:  # dropped to save memory: computed again
                self.ask(session, session.question, gates)
            state = session.state
            assert state is not None
            session.wanted = gates
            if not same_scales(state.gates, gates):
                sequence, before, begun = session.next_sequence(), state.prompt_session.layers_run, time.monotonic()
                gated = state.prompt_session.predict(gates)
                self.cache.use(state.prompt_session)
                with session.lock:
                    state.layers_run, state.seconds = state.prompt_session.layers_run - before, time.monotonic() - begun
                    state.gates, state.gated, state.gated_done, state.sequence = gates, gated, False, sequence
            self._touch(session)
            return state

    def look(self, session: UserSession, position: int | None) -> None:
        """Compute the attention rows of a prompt token, unless they are there; None: of none. Later settings bring its rows along."""
        state = session.state
        if state is None or (
            state.query and (state.query.position, state.query.sequence) == (position, state.sequence)
        ):
            return
        if position is None:
            if state.query:
                state.query = None
                state.prompt_session.follow(None)
            return
        with self.scheduler.slot(session, "fast"):
            warm, gates, sequence = state.prompt_session, state.gates, state.sequence
            warm.follow(position)
            known = state.query.original if state.query and state.query.position == position else None
            original = warm.rows([position]) if known is None else known
            gated = original if gates.is_identity else warm.rows([position], gates)
            self.cache.use(warm)
            state.query = QueryRows(position, sequence, original, gated)

    def stream_answers(self, session: UserSession, gates: sg.Gates) -> Iterator[AnswerUpdate]:
        """Run the slow tier: yield growing answers; end early, before one that is ``done``, when they are outdated."""
        with session.lock:
            session.streams += 1
        try:
            yield from self._stream_answers(session, gates)
        finally:
            with session.lock:
                session.streams -= 1

    def answer(
        self, client: Hashable, image: Image.Image, question: str, gates: sg.Gates
    ) -> tuple[sg.Trace, sg.SinkMap]:
        """Return one answer for the API, and the sinks of its prompt.

        Args:
            client: identifies the client, for the limits of the queue.
            image: the image.
            question: the question.
            gates: scales of the Keys.

        Raises:
            SinkgateError: as `ask`.
        """
        prompt = self._prompt(image, question)
        with self.scheduler.slot(client, "api"):
            prompt_session = self.backend.open(prompt, DEFAULT_CRITERION)
            trace = prompt_session.answer(gates, max_new_tokens=MAX_NEW_TOKENS, stop=Deadline())
            return trace, prompt_session.sinks

    def read_gates(self, value: Any) -> sg.Gates:
        """Return the mixer's value as gates for this model; raises `sinkgate.GateError` for anything else."""
        try:
            names = ("v_sink", "rest", "l_sink") if "l_sink" in value else ("v_sink", "rest")
            scales = {name: [float(scale) for scale in value[name]] for name in names}
        except (TypeError, ValueError, KeyError, OverflowError):
            raise sg.GateError(
                "The mixer's setting must hold lists of numbers, v_sink, rest and maybe l_sink."
            ) from None
        return sg.Gates.from_lists(**scales, model=self.vlm.name).for_model(self.vlm)

    def parse_gates(self, text: str) -> sg.Gates:
        """Return gates from JSON, checked against this model; raises `sinkgate.GateError`."""
        if len(text) > MAX_GATES_TEXT:
            raise sg.GateError(f"The gates have {len(text):,} characters, limit {MAX_GATES_TEXT:,}.")
        try:
            return sg.Gates.from_json(text).for_model(self.vlm)
        except ModelMismatchError as error:
            raise sg.GateError(error.reason) from error  # its remedy is an option that the page does not have

    def session(self, key: Any) -> UserSession | None:
        """Return the session of a key; None where it expired."""
        return self._recent.get(key) if isinstance(key, str) else None

    @property
    def sessions(self) -> int:
        """Number of sessions in memory."""
        return len(self._recent)

    @property
    def session_bytes(self) -> int:
        """Memory of all pictures and uploaded gates, in bytes, without key-value caches."""
        with self._recent_lock:
            return sum(session.nbytes for session in self._recent.values())

    def _prompt(self, image: Image.Image | sg.Video, question: str) -> sg.Prompt:
        if len(question) > MAX_QUESTION:
            raise sg.PromptError(f"Question too long: {len(question)} characters, limit {MAX_QUESTION}.")
        return self.backend.prompt(image, question)

    def _stream_answers(self, session: UserSession, gates: sg.Gates) -> Iterator[AnswerUpdate]:
        with self.scheduler.slot(session, "fast"):
            state = self.set_gates(session, gates)
            sequence = state.sequence

        def outdated() -> bool:
            newer = session.wanted is not None and not same_scales(session.wanted, gates)
            return newer or session.sequence != sequence

        if not state.unchanged_done:
            stream = _AnswerStream(state, None, outdated, self.scheduler.slot(session, "slow"))
            for text in stream:
                yield AnswerUpdate(text, text if gates.is_identity else "", sequence)
            with session.lock:
                if stream.stopped or outdated() or stream.trace is None:
                    return
                state.unchanged, state.unchanged_done = stream.trace, True
        unchanged = state.unchanged.text
        if gates.is_identity:
            with session.lock:
                if outdated():
                    return
                state.gated, state.gated_done = state.unchanged, True
        elif not state.gated_done:
            stream = _AnswerStream(state, gates, outdated, self.scheduler.slot(session, "slow"))
            for text in stream:
                yield AnswerUpdate(unchanged, text, sequence)
            with session.lock:
                if stream.stopped or outdated() or stream.trace is None:
                    return
                state.gated, state.gated_done = stream.trace, True
        limited = self._limited(state.unchanged), self._limited(state.gated)
        yield AnswerUpdate(unchanged, state.gated.text, sequence, done=True, cut=state.cut, limited=limited)

    def _limited(self, trace: sg.Trace) -> bool:
        """Return whether an answer ended at `MAX_NEW_TOKENS`, before the model ended it."""
        ends = getattr(self.vlm.model.generation_config, "eos_token_id", None)
        return len(trace.ids) >= MAX_NEW_TOKENS and trace.ids[-1] not in (ends if isinstance(ends, list) else [ends])

    def _touch(self, session: UserSession) -> None:
        """Note that a session is active; the least recently active lose their question's state, then everything."""
        with self._recent_lock:
            self._recent[session.key] = session
            self._recent.move_to_end(session.key)
            total = 0
            for rank, other in enumerate(reversed(list(self._recent.values()))):
                total += other.nbytes
                if other.streams:
                    continue
                if rank >= MAX_QUESTION_STATES:
                    other.state = None
                if rank >= MAX_SESSIONS or (rank and total > MAX_SESSION_BYTES):
                    del self._recent[other.key]
                    other.expire()


class Deadline:
    """A condition to check after each token: true once the seconds have passed since the first check."""

    def __init__(self, seconds: float = ANSWER_SECONDS) -> None:
        self.seconds, self.passed = seconds, False
        self._end: float | None = None

    def __call__(self) -> bool:
        self._end = self._end or time.monotonic() + self.seconds
        self.passed = self.passed or time.monotonic() > self._end
        return self.passed


class _AnswerStream:
    """One streamed answer: ``trace`` is set at its end, ``stopped`` where it was abandoned for a newer setting.

    ``stopped`` stays set when the newer setting is taken back: the tokens generated until then are no whole answer.
    """

    def __init__(
        self,
        state: QuestionState,
        gates: sg.Gates | None,
        outdated: Callable[[], bool],
        slot: AbstractContextManager[Any],
    ) -> None:
        self.state, self.gates, self.outdated, self.slot = state, gates, outdated, slot
        self.trace: sg.Trace | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[str]:
        deadline = Deadline()

        def stop() -> bool:
            self.stopped = self.stopped or self.outdated()
            return self.stopped or deadline()

        self.trace = yield from self.state.prompt_session.stream(
            self.gates, max_new_tokens=MAX_NEW_TOKENS, stop=stop, within=self.slot
        )
        self.state.cut |= deadline.passed


def unknown_sentence(words: list[str]) -> str:
    """Return a sentence about words that are not in the model's vocabulary; empty if there are none."""
    if not words:
        return ""
    names = ", ".join(f"“{word}”" for word in words[:6]) + (" and more" if len(words) > 6 else "")
    return f"Not in the model's vocabulary, and read as <unk>: {names}."
