"""State of each user's page, and the two tiers of work that keep it up to date.

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
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

import sinkgate as sg
from sinkgate.errors import ModelMismatchError
from sinkgate.images.io import read_bytes
from sinkgate.images.video import SUFFIXES as VIDEOS
from sinkgate.images.video import open_animation
from sinkgate.models.session import SessionCache
from sinkgate.scenes.scene import Scene

from .backend import Backend, LocalSession
from .gate_library import LearnedGates
from .scheduler import Scheduler

MAX_NEW_TOKENS = 32
MAX_QUESTION = 500  # characters; the model has a limit of its own, in tokens
MAX_GATES_TEXT = 100_000  # characters
DEFAULT_CRITERION = "auto"  # for sinks, unless learned gates bring one
MAX_SESSIONS = 200  # users whose picture and question are held; the least recently active expire first
MAX_QUESTION_STATES = 24  # of them, those whose image features and attention stay in memory
MAX_SESSION_BYTES = 512 << 20  # pictures and uploaded gates of all users together
MAX_UPLOADED_GATES = 3  # of one user
MAX_DECODED = 2_000_000_000  # pixels of all frames of an uploaded video, which are decoded in about half a minute
MAX_PIXELS = 2_000_000  # of the picture that the model gets: larger ones are made smaller
FRAMES = 6  # of an uploaded video: more leave the demo model no positions for the question
ANSWER_SECONDS = 20.0  # for one answer, from the moment it starts
OWN_REVISION_STEP = 1_000_000  # revisions of a user between two of the server: more than a user can send
CACHE_BYTES = 2 << 30  # for the key-value caches of all users; the least recently used are dropped


@dataclass(frozen=True)
class QueryRows:
    """Attention rows of one prompt token, (L, H, 1, K), of the original model and of the gated one under the setting ``sequence``."""

    position: int
    sequence: int
    original: Tensor
    gated: Tensor


@dataclass(eq=False)
class QuestionState:
    """One question about one image: what is computed once, and what the faders change."""

    prompt_session: LocalSession
    unchanged: sg.Trace  # a prefill at first, the whole answer once it is generated
    gates: sg.Gates
    gated: sg.Trace
    began: int  # the session's sequence number when the question was asked
    sequence: int  # the session's sequence number when the gates were last set
    criterion: str = DEFAULT_CRITERION  # for its sinks
    learned: LearnedGates | None = None  # the gates that read the question
    rho: sg.Gates | None = None  # their scales, which the user may override
    unchanged_done: bool = False
    gated_done: bool = False
    cut: bool = False  # whether an answer was stopped because it took too long
    evidence: dict[int, dict[int, tuple[str, list[str]]]] = field(default_factory=dict)  # layer -> sink -> kind, values
    # layer -> `inspection.text_shares` of the original model
    text_shares: dict[int, Tensor] = field(default_factory=dict)
    query: QueryRows | None = None  # of the prompt token that the page last looked at
    layers_run: int = 0  # for the last setting of the faders
    seconds: float = 0.0  # for the last setting of the faders

    @property
    def prompt(self) -> sg.Prompt:
        """Image and question."""
        return self.prompt_session.prompt

    @property
    def sinks(self) -> sg.SinkMap:
        """The groups of the prompt's visual tokens."""
        return self.prompt_session.sinks

    @property
    def overridden(self) -> bool:
        """True where the user has moved faders away from the scales of the learned gates."""
        return self.rho is not None and not same_scales(self.rho, self.gates)


@dataclass(eq=False)
class UserSession:
    """The state of one user's page. ``sequence`` counts settings and questions: work for an older one stops."""

    image: Image.Image | sg.Video | None = None
    shown: Image.Image | str | None = None  # value of the picture box, put back when an upload is refused
    scene: Scene | None = None
    pictures: int = 0  # shown so far; edits of an earlier one are ignored
    photograph: str | None = None  # name, where the picture is a photograph of the package
    seed: int = 0  # of the scene's example questions, which keep their wording while the scene is edited
    kinds: dict[str, str] = field(default_factory=dict)  # of the example questions and of the current one
    examples: list[tuple[str, str | None]] = field(default_factory=list)  # questions, with answers where known
    question: str = ""
    notice: str = ""
    lens: Any = None  # the newest that the page sent; the slow tier draws through it, too
    gates_text: str = ""  # as sent last, so that a text which the user is editing is not overwritten
    learned: LearnedGates | None = None  # read every question from now on
    uploads: list[LearnedGates] = field(default_factory=list)
    uploaded: int = 0  # number of uploads so far, for the name of the next
    state: QuestionState | None = None
    wanted: sg.Gates | None = None  # the newest setting, which may still be queued
    streams: int = 0  # answers that are being generated: meanwhile the session does not expire
    sequence: int = 0
    sweeps: int = 0  # number of sweeps begun or stopped: those before the newest end
    newest_revision: int = 0
    newest_edit: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards sequence and results of the slow tier

    @property
    def nbytes(self) -> int:
        """Memory of the picture and the uploaded gates, in bytes."""
        frames = self.image.frames if isinstance(self.image, sg.Video) else (self.image,)
        pictures = {
            id(image): image.width * image.height * 4  # Pillow keeps a pixel in four bytes
            for image in (*frames, self.shown)
            if isinstance(image, Image.Image)
        }
        gates = (parameter.nbytes for learned in self.uploads for parameter in learned.lsg.parameters())
        return sum(pictures.values()) + sum(gates)

    def expire(self) -> None:
        """Release the memory; the page shows `handlers.EXPIRED` at its next event."""
        self.next_sequence()
        self.image = self.shown = self.scene = self.state = self.learned = None
        self.uploads = []

    def __deepcopy__(self, memo: object) -> UserSession:
        return self  # Gradio copies initial state, and a page has one session

    def snapshot(self) -> QuestionState | None:
        """Return the question's state as it is now: gates and results that belong together, while other threads work on."""
        with self.lock:
            return copy(self.state)

    def next_sequence(self) -> int:
        """Return a new sequence number, which makes work for all older ones outdated."""
        with self.lock:
            self.sequence += 1
            return self.sequence

    def stop_sweep(self) -> int:
        """Let the running sweep end; returns the number of the next one."""
        with self.lock:
            self.sweeps += 1
            return self.sweeps

    def accepts(self, revision: int | None, wanted: sg.Gates | None = None) -> bool:
        """Return whether no newer setting of the mixer arrived before: the tiers have queues of their own.

        Args:
            revision: number of the setting, which rises; None for a client that does not count.
            wanted: the setting, which becomes the newest one if accepted; answers for another one then stop.
        """
        with self.lock:
            if revision is None or revision >= self.newest_revision:
                self.newest_revision = max(self.newest_revision, revision or 0)
                self.wanted = wanted or self.wanted
                return True
            return False

    def newest_lens(self, lens: Any) -> Any:
        """Return this lens, or the newer one that arrived before: a late tick of a fader holds the lens of its time."""
        with self.lock:
            if (revision_of(lens) or 0) >= (revision_of(self.lens) or 0):
                self.lens = lens
            return self.lens

    def own_revision(self) -> int:
        """Return the revision of a setting that the server makes, above all that the user has sent."""
        with self.lock:
            self.newest_revision = (self.newest_revision // OWN_REVISION_STEP + 1) * OWN_REVISION_STEP
            return self.newest_revision

    @property
    def set_by_server(self) -> bool:
        """True where the newest setting is the server's, for which the page sends no event."""
        return self.newest_revision % OWN_REVISION_STEP == 0

    def accepts_edit(self, picture: int, revision: int) -> bool:
        """Return whether an edit of the scene is of the picture on the page, and no newer one arrived before."""
        with self.lock:
            if picture != self.pictures or revision < self.newest_edit:
                return False
            self.newest_edit = revision
            return True


def revision_of(value: Any) -> int | None:
    """Return the revision of the mixer's value or of a lens, which rises; None for a client that does not count."""
    revision = value.get("revision") if isinstance(value, dict) else None
    return revision if isinstance(revision, int) else None


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
        self._recent: OrderedDict[int, UserSession] = OrderedDict()  # the least recently active first
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
            self._recent[id(session)] = session
            self._recent.move_to_end(id(session))
            total = 0
            for rank, other in enumerate(reversed(list(self._recent.values()))):
                total += other.nbytes
                if other.streams:
                    continue
                if rank >= MAX_QUESTION_STATES:
                    other.state = None
                if rank >= MAX_SESSIONS or (rank and total > MAX_SESSION_BYTES):
                    del self._recent[id(other)]
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


def same_scales(first: sg.Gates, second: sg.Gates) -> bool:
    """Return whether two tables of gates are equal, scale by scale."""
    return first.scales.tolist() == second.scales.tolist()


def unknown_sentence(words: list[str]) -> str:
    """Return a sentence about words that are not in the model's vocabulary; empty if there are none."""
    if not words:
        return ""
    names = ", ".join(f"“{word}”" for word in words[:6]) + (" and more" if len(words) > 6 else "")
    single = len(words) == 1
    return f"The model does not know the word{'' if single else 's'} {names}: {'it' if single else 'each'} is read as <unk>."


def open_picture(picture: str) -> Image.Image:
    """Return an uploaded file (its path) or a data URL as an RGB image of at most `MAX_PIXELS`.

    Raises:
        ImageError: it is none of the formats that `sinkgate.open_image` reads, or it is broken.
    """
    return sg.open_image(_content(picture), max_pixels=MAX_PIXELS)


def open_upload(picture: str) -> Image.Image | sg.Video:
    """Return the same as `open_picture`, and of a video or an animation `FRAMES` frames at even distances, `MAX_PIXELS` together.

    Raises:
        ImageError: as `open_picture`, and as `sinkgate.open_video`.
    """
    data, limit = _content(picture), MAX_PIXELS // FRAMES
    if picture.lower().endswith(VIDEOS):
        return sg.open_video(data, FRAMES, max_pixels=limit, max_decoded=MAX_DECODED)
    return open_animation(data, FRAMES, max_pixels=limit) or sg.open_image(data, max_pixels=MAX_PIXELS)


def _content(picture: str) -> bytes:
    try:
        return read_bytes(picture)
    except sg.ImageError:
        raise sg.ImageError("The picture cannot be decoded, or its file is no longer here: upload it again.") from None
