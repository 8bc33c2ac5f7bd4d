"""What one visitor is looking at, and the two tiers that keep it up to date.

The fast tier (`Desk.turn`) follows the faders with one prefill; the slow tier (`Desk.tell`) writes
the answers and stops by itself as soon as the visitor has moved on. Visitors take fair turns on the model, which
is all that they share. Nothing here knows the page.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import sinkgate as sg
from sinkgate.models.session import Shelf
from sinkgate.scenes.scene import Scene

from .backend import Bench, Warm
from .gate_library import Learned
from .scheduler import Turnstile

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # that a PNG and a JPEG begin with
MAX_NEW_TOKENS = 32
MAX_QUESTION = 500  # characters; the model has a limit of its own, in tokens
MAX_GATES_TEXT = 100_000  # characters
DEFAULT_CRITERION = "auto"  # for sinks, where no learned gates name theirs
KEPT_VISITORS = 200  # whose pictures and questions are remembered; the idlest are forgotten first
KEPT_CASES = 24  # of them, those whose image features and attention stay in memory
KEPT_BYTES = 512 << 20  # of all visitors' pictures and uploaded gates together
KEPT_UPLOADS = 3  # gates that a visitor brought
MOST_PIXELS = 2_000_000  # that the model is shown: larger pictures are made smaller
ANSWER_SECONDS = 20.0  # that one answer may take once its turn has come
ROUND = 1_000_000  # settings of the hand between two of the page's own: more than anyone sends
WARM_BYTES = 2 << 30  # of all visitors' warm prompts together; the oldest run in full again


@dataclass(eq=False)
class Case:
    """One question about one image: what is computed once, and what the faders change."""

    warm: Warm
    unchanged: sg.Trace  # one prefill at first, the whole answer as soon as it is written
    gates: sg.Gates
    gated: sg.Trace
    began: int  # the session's sequence number when it was asked
    sequence: int  # and when its gates were last set
    criterion: str = DEFAULT_CRITERION  # by which its sinks were found
    learned: Learned | None = None  # the gates that read it
    rho: sg.Gates | None = None  # and what they said, which the hand may overrule
    unchanged_done: bool = False
    gated_done: bool = False
    cut: bool = False  # whether one of them was stopped because it took too long
    reasons: dict[int, dict[int, str]] = field(default_factory=dict)  # layer -> token -> why it is a sink
    layers_run: int = 0  # for the last setting of the faders
    seconds: float = 0.0  # that it took

    @property
    def prompt(self) -> sg.Prompt:
        """Image and question."""
        return self.warm.prompt

    @property
    def sinks(self) -> sg.SinkMap:
        """The groups of its visual tokens."""
        return self.warm.sinks

    @property
    def by_hand(self) -> bool:
        """Whether the faders stand elsewhere than the learned gates put them."""
        return self.rho is not None and not same_scales(self.rho, self.gates)


@dataclass(eq=False)
class Session:
    """One visitor's page. ``sequence`` counts settings and questions: work for an older one stops."""

    image: Image.Image | None = None
    shown: Image.Image | str | None = None  # the picture box's value, put back when an upload is broken
    scene: Scene | None = None
    pictures: int = 0  # shown so far; an edit of an earlier one is not news
    seed: int = 0  # of the scene's example questions, which keep their words while it is edited
    kinds: dict[str, str] = field(default_factory=dict)  # of the example questions and of the one asked
    examples: list[tuple[str, str | None]] = field(default_factory=list)  # questions, with answers where known
    question: str = ""
    notice: str = ""
    lens: Any = None  # as the fast tier was last sent it: the slow tier draws through it what it has written
    gates_text: str = ""  # as last sent: a text that the visitor is editing is not sent over
    learned: Learned | None = None  # reads every question from now on
    uploads: list[Learned] = field(default_factory=list)
    uploaded: int = 0  # so far, to name the next
    case: Case | None = None
    wanted: sg.Gates | None = None  # the newest setting, which may still wait for its turn
    telling: int = 0  # answers that are being written: meanwhile nothing is forgotten
    sequence: int = 0
    newest_turn: int = 0
    newest_edit: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards sequence and what slow work writes

    @property
    def nbytes(self) -> int:
        """Memory that the picture and the uploaded gates take, in bytes."""
        pictures = {
            id(image): image.width * image.height * 4  # Pillow keeps a pixel in four bytes
            for image in (self.image, self.shown)
            if isinstance(image, Image.Image)
        }
        gates = (parameter.nbytes for learned in self.uploads for parameter in learned.lsg.parameters())
        return sum(pictures.values()) + sum(gates)

    def forget(self) -> None:
        """Give everything back: a page that comes again is told that it slept for too long."""
        self.supersede()
        self.image = self.shown = self.scene = self.case = self.learned = None
        self.uploads = []

    def __deepcopy__(self, memo: object) -> Session:
        return self  # Gradio copies initial state; a visitor's page has one identity

    def supersede(self) -> int:
        """Begin something newer: whatever runs for an older sequence number is out of date."""
        with self.lock:
            self.sequence += 1
            return self.sequence

    def admits(self, turn: int | None, wanted: sg.Gates | None = None) -> bool:
        """Whether the mixer's ``turn``-th setting is still news: the tiers queue apart and may overtake each other.

        Where it is, ``wanted`` becomes the newest setting, and the answer that is being written for another one ends.
        """
        with self.lock:
            if turn is None or turn >= self.newest_turn:
                self.newest_turn = max(self.newest_turn, turn or 0)
                self.wanted = wanted or self.wanted
                return True
            return False

    def outrank(self) -> int:
        """The turn of a setting that the page makes by itself: above all that the hand has sent and that is still under way."""
        with self.lock:
            self.newest_turn = (self.newest_turn // ROUND + 1) * ROUND
            return self.newest_turn

    @property
    def outranked(self) -> bool:
        """Whether the newest setting is the page's own, which nobody's letting go of a fader will tell."""
        return self.newest_turn % ROUND == 0

    def admits_edit(self, picture: int, turn: int) -> bool:
        """Whether the composer's ``turn``-th edit is still news, and about the picture that is shown."""
        with self.lock:
            if picture != self.pictures or turn < self.newest_edit:
                return False
            self.newest_edit = turn
            return True


@dataclass(frozen=True)
class Told:
    """Both answers as far as they are written, for the setting with this sequence number."""

    unchanged: str
    gated: str
    sequence: int
    done: bool = False
    cut: bool = False  # whether an answer was stopped because it took too long
    limited: tuple[bool, bool] = (False, False)  # whether the original, the gated answer ended at MAX_NEW_TOKENS


class Desk:
    """The model, the learned gates that every visitor can choose, and the work done with them for many visitors."""

    def __init__(self, vlm: sg.VLM, learned: Sequence[Learned] = (), bench: Bench | None = None) -> None:
        self.vlm, self.learned, self.bench = vlm, list(learned), bench or Bench(vlm)
        self.turns = Turnstile()
        self.shelf = Shelf(WARM_BYTES)
        self._recent: OrderedDict[int, Session] = OrderedDict()  # the idlest first
        self._remembering = threading.Lock()

    def ask(self, session: Session, question: str, gates: sg.Gates, image: Image.Image | None = None) -> None:
        """Put a question about the session's image, or about one to take its place, under these gates or the session's learned ones.

        On a fault the session keeps what it had.

        Raises:
            SinkgateError: there is no image, or the question cannot be read, or too many people ask (`turnstile.BusyError`).
        """
        image = image or session.image
        if image is None:
            raise sg.ImageError("There is no image yet: upload one or take a random scene.")
        prompt = self._prompt(image, question)
        sequence = session.supersede()
        learned = session.learned
        criterion = learned.criterion if learned else DEFAULT_CRITERION
        with self.turns.turn(session, "ask"):
            warm = self.bench.open(prompt, criterion)
            unchanged = warm.predict()
            rho = learned.read(warm) if learned else None
            gates = rho or gates
            gated = warm.predict(gates)
        self.shelf.use(warm)
        session.image, session.question, session.wanted = image, question, gates
        session.case = Case(warm, unchanged, gates, gated, sequence, sequence, criterion, learned, rho)
        session.notice = unknown_sentence(self.vlm.unknown_words(question))
        self._remember(session)

    def learn(self, session: Session, learned: Learned | None) -> None:
        """Let learned gates read the question at hand and all that follow; None takes them away and puts all scales at 1.

        On a fault the session keeps what it had.
        """
        case, before = session.case, session.learned
        criterion = learned.criterion if learned else DEFAULT_CRITERION
        if case is None or case.criterion != criterion:
            session.learned = learned
            try:
                self.ask(session, session.question, sg.Gates.ones(self.vlm))
            except Exception:
                session.learned = before
                raise
            return
        with self.turns.turn(session, "fast"):
            rho = learned.read(case.warm) if learned else None
            case = self.turn(session, rho or sg.Gates.ones(self.vlm))
        session.learned = case.learned = learned
        case.rho = rho

    def turn(self, session: Session, gates: sg.Gates) -> Case:
        """The fast tier: one prefill under these gates, unless they are the ones already shown."""
        with self.turns.turn(session, "fast"):
            if session.case is None:  # forgotten to save memory: computed again
                self.ask(session, session.question, gates)
            case = session.case
            assert case is not None
            session.wanted = gates
            if not same_scales(case.gates, gates):
                sequence, before, begun = session.supersede(), case.warm.layers_run, time.monotonic()
                gated = case.warm.predict(gates)
                case.layers_run, case.seconds = case.warm.layers_run - before, time.monotonic() - begun
                self.shelf.use(case.warm)
                with session.lock:
                    case.gates, case.gated, case.gated_done, case.sequence = gates, gated, False, sequence
            self._remember(session)
            return case

    def tell(self, session: Session, gates: sg.Gates) -> Iterator[Told]:
        """The slow tier: growing answers; ends early, before one that is ``done``, when something newer began."""
        with session.lock:
            session.telling += 1
        try:
            yield from self._tell(session, gates)
        finally:
            with session.lock:
                session.telling -= 1

    def answer(
        self, visitor: Hashable, image: Image.Image, question: str, gates: sg.Gates
    ) -> tuple[sg.Trace, sg.SinkMap]:
        """One answer for a program, in its turn; with the sinks of the prompt. Raises as `ask`."""
        prompt = self._prompt(image, question)
        with self.turns.turn(visitor, "api"):
            warm = self.bench.open(prompt, DEFAULT_CRITERION)
            return warm.answer(gates, max_new_tokens=MAX_NEW_TOKENS, stop=Deadline()), warm.sinks

    def read_gates(self, value: Any) -> sg.Gates:
        """The mixer's value as gates for this model; raises `sinkgate.GateError` for anything else."""
        try:
            v_sink = [float(scale) for scale in value["v_sink"]]
            rest = [float(scale) for scale in value["rest"]]
        except (TypeError, ValueError, KeyError, OverflowError):
            raise sg.GateError("The mixer's setting must hold two lists of numbers, v_sink and rest.") from None
        return sg.Gates.from_lists(v_sink=v_sink, rest=rest, model=self.vlm.name).for_model(self.vlm)

    def parse_gates(self, text: str) -> sg.Gates:
        """Gates from their JSON form, checked against this model."""
        if len(text) > MAX_GATES_TEXT:
            raise sg.GateError(f"Gates of this model take a few hundred characters; this has {len(text)}.")
        return sg.Gates.from_json(text).for_model(self.vlm)

    @property
    def visitors(self) -> int:
        """Visitors who are remembered."""
        return len(self._recent)

    @property
    def kept_bytes(self) -> int:
        """Memory of all visitors' pictures and gates, in bytes, without their warm prompts."""
        with self._remembering:
            return sum(session.nbytes for session in self._recent.values())

    def _prompt(self, image: Image.Image, question: str) -> sg.Prompt:
        if len(question) > MAX_QUESTION:
            raise sg.PromptError(f"The question has {len(question)} characters; at most {MAX_QUESTION} are read.")
        return self.bench.prompt(image, question)

    def _tell(self, session: Session, gates: sg.Gates) -> Iterator[Told]:
        with self.turns.turn(session, "fast"):
            case = self.turn(session, gates)
            mine = case.sequence

        def outdated() -> bool:
            return session.sequence != mine or (session.wanted is not None and not same_scales(session.wanted, gates))

        if not case.unchanged_done:
            run = _Run(case, None, outdated, self.turns.turn(session, "slow"))
            for text in run:
                yield Told(text, text if gates.is_identity else "", mine)
            with session.lock:
                if run.stopped or outdated() or run.trace is None:
                    return
                case.unchanged, case.unchanged_done = run.trace, True
        unchanged = case.unchanged.text
        if gates.is_identity:
            case.gated, case.gated_done = case.unchanged, True
        elif not case.gated_done:
            run = _Run(case, gates, outdated, self.turns.turn(session, "slow"))
            for text in run:
                yield Told(unchanged, text, mine)
            with session.lock:
                if run.stopped or outdated() or run.trace is None:
                    return
                case.gated, case.gated_done = run.trace, True
        limited = self._limited(case.unchanged), self._limited(case.gated)
        yield Told(unchanged, case.gated.text, mine, done=True, cut=case.cut, limited=limited)

    def _limited(self, trace: sg.Trace) -> bool:
        """Return whether an answer ended at `MAX_NEW_TOKENS`, before the model ended it."""
        ends = getattr(self.vlm.model.generation_config, "eos_token_id", None)
        return len(trace.ids) >= MAX_NEW_TOKENS and trace.ids[-1] not in (ends if isinstance(ends, list) else [ends])

    def _remember(self, session: Session) -> None:
        """Note that a session was just used; the idlest lose their case, then everything."""
        with self._remembering:
            self._recent[id(session)] = session
            self._recent.move_to_end(id(session))
            held = 0
            for rank, other in enumerate(reversed(list(self._recent.values()))):
                held += other.nbytes
                if other.telling:
                    continue
                if rank >= KEPT_CASES:
                    other.case = None
                if rank >= KEPT_VISITORS or (rank and held > KEPT_BYTES):
                    del self._recent[id(other)]
                    other.forget()


class Deadline:
    """A question to ask after each token: has the answer taken too long? ``passed`` remembers that it had."""

    def __init__(self, seconds: float = ANSWER_SECONDS) -> None:
        self.seconds, self.passed = seconds, False
        self._end: float | None = None

    def __call__(self) -> bool:
        self._end = self._end or time.monotonic() + self.seconds
        self.passed = self.passed or time.monotonic() > self._end
        return self.passed


class _Run:
    """One streamed answer: ``trace`` is set at its end, ``stopped`` where it was abandoned for a newer setting.

    ``stopped`` stays set when the newer setting is taken back: what was generated until then is no whole answer.
    """

    def __init__(
        self, case: Case, gates: sg.Gates | None, outdated: Callable[[], bool], turn: AbstractContextManager[Any]
    ) -> None:
        self.case, self.gates, self.outdated, self.turn = case, gates, outdated, turn
        self.trace: sg.Trace | None = None
        self.stopped = False

    def __iter__(self) -> Iterator[str]:
        deadline = Deadline()

        def stop() -> bool:
            self.stopped = self.stopped or self.outdated()
            return self.stopped or deadline()

        self.trace = yield from self.case.warm.stream(
            self.gates, max_new_tokens=MAX_NEW_TOKENS, stop=stop, within=self.turn
        )
        self.case.cut |= deadline.passed


def same_scales(first: sg.Gates, second: sg.Gates) -> bool:
    """Whether two tables of gates are equal, scale by scale."""
    return first.scales.tolist() == second.scales.tolist()


def unknown_sentence(words: list[str]) -> str:
    """One calm sentence about words that the model never learnt; empty where it knows them all."""
    if not words:
        return ""
    named = ", ".join(f"“{word}”" for word in words[:6]) + (" and more" if len(words) > 6 else "")
    return f"The model never learnt {named}; it answers as if {'this word were' if len(words) == 1 else 'they were'} a blank."


def open_picture(picture: str) -> Image.Image:
    """An uploaded file (its path) or a data URL as a checked RGB image of bounded size; raises `sinkgate.ImageError`."""
    try:
        inline = picture.startswith("data:")
        data = base64.b64decode(picture.partition(",")[2], validate=True) if inline else Path(picture).read_bytes()
    except (binascii.Error, OSError):
        raise sg.ImageError("This is not a picture: its data cannot be decoded, or are no longer here.") from None
    if data and not (data.startswith(SIGNATURES) or data[8:12] == b"WEBP"):
        raise sg.ImageError("This is no PNG, JPEG or WebP: save the picture as one of these.")
    return sg.open_image(data, max_pixels=MOST_PIXELS)
