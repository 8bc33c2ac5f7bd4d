"""Cost of scaling Keys and recording attention rows in prefill and decode, against plain sdpa and eager attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from statistics import median
from typing import Any

import bounds
import torch
from models import SUBJECTS, Subject, onevision
from timing import CLEAR, Row, duration, held, in_a_process, ratio, reset_peak, take_turns, wait_for_device

import sinkgate as sg
from sinkgate.attention.cache import CACHE_NAME, cache_in
from sinkgate.attention.recorder import Recorder

STEPS = 16  # tokens of a decode
ROUNDS, FEW = (60, 60), (6, 10)  # of prefill and decode: the demo model's, a large one's
PLAIN, GATED, ROWS, EAGER = "plain", "gated", "rows", "eager"
#: Gates limited to the rows of the text, to one head of each layer, to every other head; and the monotone rule for the text's rows.
LIMITED = ("text rows", "one head", "half the heads", "text rows, monotone")


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Return the rows of the table."""
    name = subject.name
    often, often_decode = (max(2, round(rounds * times)) for times in (ROUNDS if name == "demo" else FEW))
    read = take_turns({variant: prefill(subject, variant) for variant in (PLAIN, GATED, ROWS)}, often)
    limited = take_turns({variant: prefill(subject, variant) for variant in (PLAIN, *LIMITED)}, often)
    # measured apart: the memory that eager attention frees would slow down the next variant
    against = take_turns({variant: prefill(subject, variant) for variant in (ROWS, EAGER)}, max(2, often // 2))
    use(subject, "sdpa")
    begun = forward(subject, PLAIN)
    step = take_turns({variant: decode(subject, variant, begun) for variant in (PLAIN, GATED, ROWS)}, often_decode)
    of_prefill = f"{duration(median(read[PLAIN]))} plain, {often} rounds"
    of_step = f"{duration(median(step[PLAIN]))} a token plain, {often_decode} rounds of {STEPS} tokens"
    return [
        ratio("gated prefill / plain sdpa", name, read[GATED], read[PLAIN], "<= 1.02", note=of_prefill),
        *(
            ratio(
                f"prefill with gates limited to {variant} / plain sdpa",
                name,
                limited[variant],
                limited[PLAIN],
                "<= 1.10" if "head" in variant else "<= 1.05",
                note=of_prefill,
            )
            for variant in LIMITED
        ),
        ratio("gated decode / plain sdpa", name, step[GATED], step[PLAIN], "<= 1.02", note=of_step),
        ratio("rows in prefill / plain sdpa", name, read[ROWS], read[PLAIN], "<= 1.05", note=of_prefill),
        ratio("rows in decode / plain sdpa", name, step[ROWS], step[PLAIN], "<= 1.05", note=of_step),
        ratio("eager output_attentions / rows in prefill", name, against[ROWS], against[EAGER], "> 1", speedup=True),
        *bounds.rows(subject, read[GATED], step[GATED]),
    ]


def measure_memory(key: str = "onevision") -> list[Row]:
    """Return the memory that rows take over a plain prefill, against that of eager attention; each in a process of its own."""
    if key == "onevision" and not CLEAR.exists():
        return []
    peak = {variant: in_a_process(_raised_peak, key, variant) for variant in (PLAIN, ROWS, EAGER)}
    rows, eager = (peak[variant] - peak[PLAIN] for variant in (ROWS, EAGER))
    note = f"{rows:.1f} MiB over {eager:.1f} MiB; a plain prefill takes {peak[PLAIN]:.0f} MiB"
    name = "OneVision-0.5B shape" if key == "onevision" else "LLaVA-1.5-7B shape"
    return [Row("extra memory: rows / eager output_attentions", name, max(0.0, rows) / eager, aim="<= 0.05", note=note)]


def prefill(subject: Subject, variant: str) -> Callable[[], float]:
    """Return a function that measures one prefill of the encoded prompt, with spreading the gates over the Keys."""
    gates = _limited(subject, variant) if variant in LIMITED else halved(subject)

    def run() -> float:
        use(subject, "eager" if variant == EAGER else "sdpa")
        inputs = subject.encoded
        wait_for_device()
        start = time.perf_counter()
        forward(subject, variant, subject.scales(gates) if variant in (GATED, *LIMITED) else None, inputs)
        wait_for_device()
        return time.perf_counter() - start

    return run


def decode(subject: Subject, variant: str, begun: Any) -> Callable[[], float]:
    """Return a function that measures the seconds a token over a few steps after a prefill, with entering and leaving the block."""
    scales = subject.scales(halved(subject))
    first = begun.logits[:, -1:].argmax(-1)

    def run() -> float:
        cache, token = copy(cache_in(begun)), first
        cache.layers = [copy(layer) for layer in cache.layers]  # new tokens bind new tensors
        wait_for_device()
        start = time.perf_counter()
        with torch.no_grad(), _attached(subject, variant, scales, stored=subject.prompt.num_keys):
            for _ in range(STEPS):
                output = subject.model(input_ids=token, **{CACHE_NAME: cache}, use_cache=True)
                token = output.logits[:, -1:].argmax(-1)
        wait_for_device()
        return (time.perf_counter() - start) / STEPS

    return run


def use(subject: Subject, implementation: str) -> None:
    """Set the LLM's attention implementation."""
    subject.model.set_attn_implementation({"text_config": implementation})


def halved(subject: Subject) -> sg.Gates:
    """Return gates that halve every visual Key of every layer."""
    return sg.Gates.ones(subject.vlm).set("v_sink", 0.5).set("rest", 0.5)


def _limited(subject: Subject, variant: str) -> sg.FineGates:
    """Return gates that halve every visual token of every layer, in the rows or heads that a variant names."""
    rows, rule = ("text" if "rows" in variant else "all"), ("monotone" if "monotone" in variant else "scale")
    heads = {"one head": 0, "half the heads": range(0, subject.vlm.num_heads, 2)}.get(variant)
    return sg.FineGates.ones(subject.vlm, rows=rows, rule=rule).set("visual", 0.5, heads=heads)  # pyright: ignore[reportArgumentType]


def forward(subject: Subject, variant: str, scales: Any = None, inputs: dict[str, Any] | None = None) -> Any:
    """Run a prefill of the encoded prompt; ``inputs`` are those of `Subject.encoded`, where they are at hand."""
    inputs = inputs or subject.encoded
    with torch.no_grad(), _attached(subject, variant, scales):
        return subject.model(**inputs, use_cache=True, logits_to_keep=1, output_attentions=variant == EAGER)


def _attached(subject: Subject, variant: str, scales: Any, stored: int = 0) -> AbstractContextManager[Any]:
    if variant in (GATED, *LIMITED):
        return subject.vlm.attached(scales, None, own_cache=True, stored=stored)
    if variant == ROWS:
        return subject.vlm.attached(None, Recorder("last"), own_cache=True)
    return nullcontext()


def _raised_peak(key: str, variant: str) -> float:
    """Return the MiB by which one prefill raises the peak."""
    subject = onevision(encoder_layers=1) if key == "onevision" else SUBJECTS[key]()  # the encoder is not run again
    on_gpu = subject.vlm.device.type == "cuda"
    forward(subject, PLAIN)  # what is set up once
    use(subject, "eager" if variant == EAGER else "sdpa")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        reset_peak()
        before = held()
    hidden = forward(subject, variant)
    after = torch.cuda.max_memory_allocated() if on_gpu else held()
    del hidden
    return (after - before) / 2**20
