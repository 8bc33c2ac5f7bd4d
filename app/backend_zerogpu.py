"""Where the model works on ZeroGPU: in a process that is forked for a job and holds a GPU while the job runs.

What goes in and comes out is pickled, and what a job changes is lost with its process. So prompts are held warm over
there, for as long as a process lives; what comes back is what the page draws, on the CPU: prompt, sinks, traces. A process
that does not know a prompt makes it again from picture and question. What the unchanged model said is remembered here, so
that the page's first look, the same for all, takes nobody's GPU time.

Imported on ZeroGPU alone, and before anything touches CUDA: `spaces` demands it.
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
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import spaces  # pyright: ignore[reportMissingImports]  # of Spaces alone
from PIL import Image
from torch import Tensor

import sinkgate as sg
from sinkgate.methods.lsg import LSG
from sinkgate.models.generation import streamed

from .backend import Bench as Here
from .backend import Warm

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it does not outlive a fork

DEVICE = "cuda"
HELD = 4  # prompts that a process holds warm
OPENINGS, ANSWERS = 32, 4  # of the unchanged model that are remembered here; an answer's attention may take 100 MB
# What is asked of the scheduler; estimates of ours, generous, not measured on ZeroGPU. A gigabyte is one of weights.
START = 5.0  # seconds until a process is ready
MOVE = 0.5  # seconds a gigabyte from disk to GPU
PASS = 0.01  # seconds a gigabyte for one pass through the model
LEAST = 3.0  # seconds for all passes of a job
OPENING, ONE = 40, 4  # passes that finding sinks and the proofs of a new process count as, and a prefill


class GPUError(sg.SinkgateError):
    """There is no GPU for this job: the visitor's time is used up, or the queue is too long, or the job was aborted."""


@dataclass(frozen=True)
class Asked:
    """A picture and a question that only a GPU process can make ready."""

    image: Image.Image
    question: str

    def key(self, criterion: str) -> str:
        """What tells this prompt, its sinks found by a criterion, from all others."""
        words = repr((self.image.mode, self.image.size, self.question, criterion)).encode()
        return hashlib.sha256(words + self.image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Job:
    """One thing to do with one prompt, with all that a process needs that has never seen it."""

    key: str
    asked: Asked
    criterion: str
    sinks: sg.SinkMap | None  # once they were found
    act: Callable[..., Any]  # of the functions below; a generator tells text on its way
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Done:
    """What came of a job, and how its prompt is now held over there."""

    value: Any
    layers_run: int
    nbytes: int
    resumes: bool


class Memory:
    """The newest few of what was computed, for whoever asks for the same."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """What is kept under a key, or None."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Any, value: Any) -> None:
        """Keep something, and let go of what nobody asked for the longest."""
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)


class Bench(Here):
    """A model whose every job waits for a GPU: it answers settings, it does not follow moving faders."""

    follows = False

    def __init__(self, vlm: sg.VLM) -> None:
        super().__init__(vlm)
        self.gigabytes = sum(part.nbytes for part in vlm.model.parameters()) / 1e9
        vlm.model.to(DEVICE)  # in name: the weights go there when a process has a GPU
        self.openings, self.answers = Memory(OPENINGS), Memory(ANSWERS)
        self._held: OrderedDict[str, Warm] = OrderedDict()  # filled over there, always empty here
        self._work = spaces.GPU(self._on_gpu, duration=lambda seconds, _job: seconds)

    def prompt(self, image: Image.Image, question: str) -> Any:
        """An `Asked`; what is wrong with picture or question shows when it is opened."""
        return Asked(image, question)

    def open(self, prompt: Any, criterion: str) -> Any:
        """A `Far` of an `Asked`, its sinks found by a criterion; raises as `sinkgate.VLM.prompt`, or `GPUError`."""
        return Far(self, prompt, criterion)

    def run(self, job: Job, passes: int, tell: Callable[[str], bool] = lambda _text: True) -> Done | None:
        """Do a job; ``tell`` gets the text on its way and says whether to go on. None where it did not.

        Raises:
            GPUError: there is no GPU.
            SinkgateError: what the job found wrong.
        """
        result: Done | Exception = GPUError("the GPU was taken away before the job was done: try again")
        try:
            with closing(self._work(self._seconds(passes), pickle.dumps(job))) as said:
                for word in said:
                    if isinstance(word, bytes):
                        result = pickle.loads(word)
                    elif not tell(word):
                        return None
        except gr.Error as error:  # that of `spaces`
            raise GPUError(f"there is no GPU for this just now: {error.message}") from None
        if isinstance(result, Exception):
            raise result
        return result

    def time_to_run(self, passes: int) -> float:
        """Seconds that passes through the model may take."""
        return max(LEAST, passes * PASS * self.gigabytes)

    def _seconds(self, passes: int) -> int:
        return math.ceil(START + MOVE * self.gigabytes + self.time_to_run(passes))

    def _on_gpu(self, seconds: int, job: bytes) -> Iterator[str | bytes]:  # noqa: ARG002 - the scheduler reads them
        """One job, where the GPU is: its text, then the pickled `Done`, or the pickled error."""
        try:
            task: Job = pickle.loads(job)
            warm = self._warm(task)
            before = warm.layers_run
            value = task.act(warm, *task.arguments)
            if isinstance(value, Generator):
                value = yield from value
            yield _packed(Done(value, warm.layers_run - before, warm.nbytes, warm.resumes))
        except sg.SinkgateError as error:
            yield _packed(error)
        except Exception as error:  # noqa: BLE001 - `spaces` would print it, with whatever of the prompt it quotes
            yield _packed(RuntimeError(f"{type(error).__name__} on the GPU"))

    def _warm(self, job: Job) -> Warm:
        if job.key not in self._held:
            here = Here(self.vlm)
            prompt = here.prompt(job.asked.image, job.asked.question)
            self._held[job.key] = Warm(self.vlm, prompt, job.sinks) if job.sinks else here.open(prompt, job.criterion)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(job.key)
        return self._held[job.key]


class Far:
    """A prompt held warm by GPU processes: the face of `bench.Warm`, each call a job."""

    def __init__(self, bench: Bench, asked: Asked, criterion: str) -> None:
        self.bench, self.vlm, self.asked, self.criterion = bench, bench.vlm, asked, criterion
        self.key = asked.key(criterion)
        self.layers_run = self.nbytes = 0
        self.resumes = False
        self.sinks: sg.SinkMap | None = None
        if done := bench.openings.get(self.key):
            self.nbytes, self.resumes = done.nbytes, done.resumes
        else:
            done = self._run(_open, passes=OPENING)
            bench.openings.put(self.key, done)
        self.prompt, self.sinks, self._unchanged = done.value

    def predict(self, gates: sg.Gates | None = None) -> sg.Trace:
        """As `sinkgate.Session.predict`; no job where the model stays as it is."""
        if gates is None or gates.is_identity:
            return self._unchanged
        return self._run(_predict, gates).value

    def read(self, lsg: LSG) -> sg.Gates:
        """As `bench.Warm.read`."""
        return self._run(_read, lsg).value

    def answer(
        self,
        gates: sg.Gates | None = None,
        *,
        max_new_tokens: int = 64,
        streamer: Any = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> sg.Trace:
        """As `sinkgate.Session.answer`. Stopped from here, it is the unchanged prediction with the text so far."""
        passes, text, unchanged = max_new_tokens + ONE, "", gates is None or gates.is_identity

        def tell(grown: str) -> bool:
            nonlocal text
            if streamer:
                streamer.on_finalized_text(grown[len(text) :])
            text = grown
            return not stop()

        try:
            if unchanged and (trace := self.bench.answers.get((self.key, max_new_tokens))):
                tell(trace.text)
                return trace
            seconds = self.bench.time_to_run(passes)
            done = self._run(_answer, gates, max_new_tokens, seconds, passes=passes, tell=tell)
            trace, whole = done.value if done else (replace(self._unchanged, text=text), False)
            if unchanged and whole:
                self.bench.answers.put((self.key, max_new_tokens), trace)
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
        context = copy_context()  # in which `spaces` finds the visitor, whose GPU time it is

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

    def drop(self) -> None:
        """Nothing: the memory is the GPU processes' own, which let the oldest go by themselves."""

    def _run(
        self,
        act: Callable[..., Any],
        *arguments: Any,
        passes: int = ONE,
        tell: Callable[[str], bool] = lambda _text: True,
    ) -> Any:
        """A job on this prompt: a `Done`; None where ``tell`` stopped it."""
        job = Job(self.key, self.asked, self.criterion, self.sinks, act, arguments)
        done = self.bench.run(job, passes, tell)
        if done:
            self.layers_run += done.layers_run
            self.nbytes, self.resumes = done.nbytes, done.resumes
        return done


# --- what a job does, over there


def _open(warm: Warm) -> tuple[sg.Prompt, sg.SinkMap, sg.Trace]:
    """The prompt without what only the model needs, its sinks, and the unchanged prediction."""
    seen = replace(warm.prompt, inputs={"input_ids": warm.prompt.inputs["input_ids"]}, encoded=None, sinks=None)
    return seen, warm.sinks, warm.predict()


def _predict(warm: Warm, gates: sg.Gates) -> sg.Trace:
    return warm.predict(gates)


def _read(warm: Warm, lsg: LSG) -> sg.Gates:
    return warm.read(lsg.to(warm.vlm.device))


def _answer(
    warm: Warm, gates: sg.Gates | None, tokens: int, seconds: float
) -> Generator[str, None, tuple[sg.Trace, bool]]:
    """The answer, and whether it was written to its end."""
    end = time.monotonic() + seconds
    trace = yield from warm.stream(gates, max_new_tokens=tokens, stop=lambda: time.monotonic() > end)
    return trace, time.monotonic() <= end


# --- on the way


class _Pickler(pickle.Pickler):
    """Tensors leave the GPU, and go by value: multiprocessing would hand them over in shared memory."""

    def reducer_override(self, obj: Any) -> Any:
        return obj.cpu().__reduce_ex__(2) if isinstance(obj, Tensor) and obj.device.type != "cpu" else NotImplemented


def _packed(value: Any) -> bytes:
    with io.BytesIO() as buffer:
        _Pickler(buffer).dump(value)
        return buffer.getvalue()
