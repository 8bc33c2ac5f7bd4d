"""The backend for ZeroGPU: each job runs in a forked process that has a GPU while the job runs.

Arguments and results of a job are pickled, and its changes are lost with its process. Sessions of prompts live in the GPU
process, as long as it lives; a process that lacks one opens it again from picture and question. Results are on the CPU: prompt,
sinks, traces. Results of the original model are cached in this process, so that the page's first view, the same for all users,
takes no GPU time.

Imported on ZeroGPU only, and before anything initializes CUDA, as `spaces` requires.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import spaces  # pyright: ignore[reportMissingImports]  # installed on Spaces only
from PIL import Image
from torch import Tensor

import sinkgate as sg
from sinkgate.methods.lsg import LSG
from sinkgate.models.generation import streamed

from .backend import Backend as LocalBackend
from .backend import LocalSession
from .inspection import PatchFacts

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork

DEVICE = "cuda"
MAX_SESSIONS = 4  # of one process
OPENINGS, ANSWERS = 32, 4  # cached results of the original model; the attention of an answer may take 100 MB
# Durations to request of the scheduler: generous estimates, not measured on ZeroGPU. Gigabytes are those of the weights.
START = 5.0  # seconds until a process is ready
MOVE = 0.5  # seconds a gigabyte from disk to GPU
PASS = 0.01  # seconds a gigabyte for one pass through the model
LEAST = 3.0  # seconds for all passes of a job, at least
OPENING, ONE = 40, 4  # passes for classifying sinks and the checks of a new process, and for a prefill


class GPUError(sg.SinkgateError):
    """There is no GPU for this job: the user's quota is used up, or the queue is too long, or the job was aborted."""


@dataclass(frozen=True)
class RemotePrompt:
    """A picture or a video and a question, from which a GPU process builds the prompt."""

    image: Image.Image | sg.Video
    question: str

    def key(self, criterion: str) -> str:
        """Return a hash of picture, question and criterion."""
        image = self.image
        frames, rate = (image.frames, image.fps) if isinstance(image, sg.Video) else ((image,), None)
        words = repr((frames[0].mode, frames[0].size, rate, self.question, criterion)).encode()
        return hashlib.sha256(b"".join([words, *(frame.tobytes() for frame in frames)])).hexdigest()


@dataclass(frozen=True)
class Job:
    """A function to run on one prompt, and all that a new process needs for it."""

    key: str
    prompt: RemotePrompt
    criterion: str
    sinks: sg.SinkMap | None  # once they are classified
    act: Callable[..., Any]  # a method of `LocalSession` or one of the functions below; a generator yields text
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class JobResult:
    """The result of a job, and facts about its session in the GPU process."""

    value: Any
    layers_run: int
    nbytes: int
    resumes: bool


class LRUCache:
    """The most recently used values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Any) -> Any:
        """Return the value of a key, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: Any) -> None:
        """Store a value and drop the least recently used ones."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.size:
                self._values.popitem(last=False)


class Backend(LocalBackend):
    """A model whose every job waits for a GPU: too slow to follow a moving fader."""

    interactive = False

    def __init__(self, vlm: sg.VLM) -> None:
        super().__init__(vlm)
        self.gigabytes = sum(part.nbytes for part in vlm.model.parameters()) / 1e9
        vlm.model.to(DEVICE)  # `spaces` moves the weights when a process has a GPU
        self.openings, self.answers = LRUCache(OPENINGS), LRUCache(ANSWERS)
        self._sessions = LRUCache(MAX_SESSIONS)  # filled in the GPU process only
        self._work = spaces.GPU(self._on_gpu, duration=lambda seconds, _job: seconds)

    def prompt(self, image: Image.Image | sg.Video, question: str) -> Any:
        """Return a `RemotePrompt`; errors of picture or question are raised by `open`."""
        return RemotePrompt(image, question)

    def open(self, prompt: Any, criterion: str) -> Any:
        """Return the session of a `RemotePrompt`, its sinks classified by a criterion; raises as `sinkgate.VLM.prompt`, or `GPUError`."""
        return RemoteSession(self, prompt, criterion)

    def run(self, job: Job, passes: int, on_text: Callable[[str], bool] = lambda _text: True) -> JobResult | None:
        """Run a job and return its result; None where ``on_text`` stopped it.

        Args:
            job: the job.
            passes: of the model, for an estimate of the time.
            on_text: called with the text so far; returns whether to go on.

        Raises:
            GPUError: there is no GPU.
            SinkgateError: an error of the job.
        """
        result: JobResult | Exception = GPUError("the GPU was released before the job ended: try again")
        try:
            with closing(self._work(self._seconds(passes), pickle.dumps(job))) as messages:
                for message in messages:
                    if isinstance(message, bytes):
                        result = pickle.loads(message)
                    elif not on_text(message):
                        return None
        except gr.Error as error:  # that of `spaces`
            raise GPUError(f"there is no GPU for this at present: {error.message}") from None
        if isinstance(result, Exception):
            raise result
        return result

    def time_to_run(self, passes: int) -> float:
        """Return an estimate of the time for passes through the model, in seconds."""
        return max(LEAST, passes * PASS * self.gigabytes)

    def _seconds(self, passes: int) -> int:
        return math.ceil(START + MOVE * self.gigabytes + self.time_to_run(passes))

    def _on_gpu(self, seconds: int, job: bytes) -> Iterator[str | bytes]:  # noqa: ARG002 - read by the scheduler of `spaces`
        """Run a job in the GPU process: yield its text, then the pickled `JobResult` or the pickled error."""
        try:
            task: Job = pickle.loads(job)
            session = self._session(task)
            before = session.layers_run
            value = task.act(session, *task.arguments)
            if isinstance(value, Generator):
                value = yield from value
            yield _packed(JobResult(value, session.layers_run - before, session.nbytes, session.resumes))
        except sg.SinkgateError as error:
            yield _packed(error)
        except Exception as error:  # noqa: BLE001 - `spaces` would print it, and it may quote the prompt
            yield _packed(RuntimeError(f"{type(error).__name__} on the GPU"))

    def _session(self, job: Job) -> LocalSession:
        if (session := self._sessions.get(job.key)) is None:
            local = LocalBackend(self.vlm)
            prompt = local.prompt(job.prompt.image, job.prompt.question)
            session = LocalSession(self.vlm, prompt, job.sinks) if job.sinks else local.open(prompt, job.criterion)
            self._sessions.put(job.key, session)
        return session


class RemoteSession:
    """The session of a prompt in GPU processes, with the interface of `backend.LocalSession`; each call is a job."""

    def __init__(self, backend: Backend, prompt: RemotePrompt, criterion: str) -> None:
        self.backend, self.vlm, self.request, self.criterion = backend, backend.vlm, prompt, criterion
        self.key = prompt.key(criterion)
        self.layers_run = self.nbytes = 0
        self.resumes = False
        self.sinks: sg.SinkMap | None = None
        if done := backend.openings.get(self.key):
            self.nbytes, self.resumes = done.nbytes, done.resumes
        else:
            done = self._run(_open, passes=OPENING)
            backend.openings.put(self.key, done)
        self.prompt, self.sinks, self._unchanged = done.value

    def predict(self, gates: sg.Gates | None = None) -> sg.Trace:
        """As `sinkgate.Session.predict`; no job for the original model."""
        if gates is None or gates.is_identity:
            return self._unchanged
        return self._run(LocalSession.predict, gates).value

    def read(self, lsg: LSG) -> sg.Gates:
        """As `backend.LocalSession.read`."""
        return self._run(_read, lsg).value

    def answer(
        self,
        gates: sg.Gates | None = None,
        *,
        max_new_tokens: int = 64,
        streamer: Any = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> sg.Trace:
        """As `sinkgate.Session.answer`. If stopped, return the original prediction with the text so far."""
        passes, text, unchanged = max_new_tokens + ONE, "", gates is None or gates.is_identity

        def on_text(grown: str) -> bool:
            nonlocal text
            if streamer:
                streamer.on_finalized_text(grown[len(text) :])
            text = grown
            return not stop()

        try:
            if unchanged and (trace := self.backend.answers.get((self.key, max_new_tokens))):
                on_text(trace.text)
                return trace
            seconds = self.backend.time_to_run(passes)
            done = self._run(_answer, gates, max_new_tokens, seconds, passes=passes, on_text=on_text)
            trace, whole = done.value if done else (replace(self._unchanged, text=text), False)
            if unchanged and whole:
                self.backend.answers.put((self.key, max_new_tokens), trace)
            return trace
        finally:
            if streamer:
                streamer.end()

    def stream(
        self,
        gates: sg.Gates | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Callable[[], bool] = lambda: False,
        within: AbstractContextManager[Any] | None = None,
    ) -> Generator[str, None, sg.Trace]:
        """As `sinkgate.Session.stream`."""
        context = copy_context()  # from which `spaces` reads the user, whose quota it is

        def run(streamer: Any, closed: Callable[[], bool]) -> sg.Trace:
            with within or nullcontext():
                return context.run(
                    self.answer,
                    gates,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stop=lambda: closed() or stop(),
                )

        return streamed(self.vlm.tokenizer, run)

    def rows(
        self,
        queries: Sequence[int],
        gates: sg.Gates | None = None,
        *,
        layers: Sequence[int] | None = None,
        keys: Sequence[int] | None = None,
    ) -> Tensor:
        """As `sinkgate.Session.rows`."""
        return self._run(partial(LocalSession.rows, layers=layers, keys=keys), list(queries), gates).value

    def follow(self, query: int | None) -> None:
        """Do nothing: each call of `rows` is a job."""

    def patch(self, token: int, layer: int, gates: sg.Gates | None) -> PatchFacts:
        """As `backend.LocalSession.patch`."""
        return self._run(LocalSession.patch, token, layer, gates, passes=2 * ONE).value

    def drop(self) -> None:
        """Do nothing: GPU processes drop their oldest sessions themselves."""

    def _run(
        self,
        act: Callable[..., Any],
        *arguments: Any,
        passes: int = ONE,
        on_text: Callable[[str], bool] = lambda _text: True,
    ) -> Any:
        """Run a job on this prompt; None where ``on_text`` stopped it."""
        job = Job(self.key, self.request, self.criterion, self.sinks, act, arguments)
        done = self.backend.run(job, passes, on_text)
        if done:
            self.layers_run += done.layers_run
            self.nbytes, self.resumes = done.nbytes, done.resumes
        return done


# Functions of jobs, which run in the GPU process, beside the methods of `LocalSession`.


def _open(session: LocalSession) -> tuple[sg.Prompt, sg.SinkMap, sg.Trace]:
    """Return the prompt without the model's inputs, its sinks, and the original prediction."""
    prompt = replace(session.prompt, inputs={"input_ids": session.prompt.inputs["input_ids"]}, encoded=None, sinks=None)
    return prompt, session.sinks, session.predict()


def _read(session: LocalSession, lsg: LSG) -> sg.Gates:
    return session.read(lsg.to(session.vlm.device))


def _answer(
    session: LocalSession, gates: sg.Gates | None, tokens: int, seconds: float
) -> Generator[str, None, tuple[sg.Trace, bool]]:
    """Return the answer, and whether it is complete."""
    end = time.monotonic() + seconds
    trace = yield from session.stream(gates, max_new_tokens=tokens, stop=lambda: time.monotonic() > end)
    return trace, time.monotonic() <= end


class _Pickler(pickle.Pickler):
    """Moves tensors to the CPU and pickles them by value, where multiprocessing would use shared memory."""

    def reducer_override(self, obj: Any) -> Any:
        return obj.cpu().__reduce_ex__(2) if isinstance(obj, Tensor) and obj.device.type != "cpu" else NotImplemented


def _packed(value: Any) -> bytes:
    with io.BytesIO() as buffer:
        _Pickler(buffer).dump(value)
        return buffer.getvalue()
