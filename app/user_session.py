"""State of each user's page: picture, question, gates, and the newest setting that arrived."""

from __future__ import annotations

import secrets
import threading
import time
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

import sinkgate as sg
from sinkgate.scenes.scene import Scene

from .backend import LocalSession
from .gate_library import LearnedGates

DEFAULT_CRITERION = "auto"  # for sinks, unless learned gates bring one
OWN_REVISION_STEP = 1_000_000  # revisions of a user between two of the server: more than a user can send


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
    # layer, sheet -> the sinks there with their evidence, and those elsewhere in words
    marks: dict[tuple[int, int], tuple[list[dict[str, Any]], str]] = field(default_factory=dict)
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

    key: str = field(default_factory=secrets.token_urlsafe)  # by which a tick names its session
    image: Image.Image | sg.Video | None = None
    shown: Image.Image | str | None = None  # value of the picture box, put back when an upload is refused
    scene: Scene | None = None
    # number of the picture that is shown; edits of an earlier one are ignored. It begins with the time in milliseconds: a page that
    # begins another session, since its own is gone, gets higher numbers than before
    picture: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
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
    newest_edit: int = 0  # number of the newest edit of the scene that is done, or was refused
    newest_frame: int = 0  # number of the newest frame
    newest_step: int = 0  # the same of steps that the page's history restored
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
        """Release the memory; the page shows `handlers.values.EXPIRED` at its next event."""
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

    def newest_lens(self, lens: Any) -> tuple[Any, int]:
        """Return this lens, or the newer one that arrived before, and a number that orders frames.

        A late tick of a fader holds the lens of its time. The number rises with each call, and is read with the lens: of two
        frames, the later one has the newer lens. It is a time of day, so that it rises after a restart of
        the machine, too.
        """
        with self.lock:
            if (revision_of(lens) or 0) >= (revision_of(self.lens) or 0):
                self.lens = lens
            self.newest_frame = max(self.newest_frame + 1, time.time_ns() // 1000)
            return self.lens, self.newest_frame

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
        """Return whether an edit of the scene is of the picture on the page, and no newer one is done."""
        return picture == self.picture and revision >= self.newest_edit


def revision_of(value: Any) -> int | None:
    """Return the revision of the mixer's value or of a lens, which rises; None for a client that does not count."""
    revision = value.get("revision") if isinstance(value, dict) else None
    return revision if isinstance(revision, int) else None


def same_scales(first: sg.Gates, second: sg.Gates) -> bool:
    """Return whether two tables of gates are equal, scale by scale."""
    return first.scales.tolist() == second.scales.tolist()
