"""Profiles of one tick of a fader, one sweep, one training step and one search for sinks, as small text tables.

``python benchmarks/profiles.py FOLDER`` writes `benchmarks/profiles/*.md`: the share of processor time by operation of torch, and what is left
to Python and everything around the operations, beside a plain prefill measured in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from models import open_folder, some_sinks
from timing import duration
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

import sinkgate as sg
from sinkgate.methods.lsg import LSG, LSGConfig
from sinkgate.models.vlm import VLM
from sinkgate.sinks.criteria import SinkDimensions
from sinkgate.training.dataset import Prefix
from sinkgate.training.ensemble import frozen

OUT = Path(__file__).with_name("profiles")
MOST = 12  # operations in a table
SETTINGS = 11
Work = Callable[[], Any]


@dataclass(frozen=True)
class Profile:
    """Processor seconds of one call, and of torch's operations within it."""

    seconds: float
    operations: dict[str, tuple[float, int]]  # seconds of the operation alone, calls

    @property
    def around(self) -> float:
        """Seconds outside torch's operations: Python, hooks, dispatch."""
        return max(0.0, self.seconds - sum(seconds for seconds, _ in self.operations.values()))


def profiled(work: Work) -> Profile:
    """Profile one call after one that warms up.

    Seconds are the processor's, without the profiler. Shares are of wall-clock time, the only one that the profiler measures: on a busy
    machine every operation waits in proportion.
    """
    work()
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        start = time.perf_counter()
        work()
        under = time.perf_counter() - start
    events: list[Any] = list(taken.key_averages())
    factor = seconds / under
    return Profile(seconds, {each.key: (each.self_cpu_time_total * 1e-6 * factor, each.count) for each in events})


def works(vlm: VLM, prompt: sg.Prompt) -> dict[str, tuple[str, Work]]:
    """Return the work by file name: a title and a call."""
    layers, sinks = vlm.num_layers, some_sinks(vlm, prompt)
    session, gates = sg.Session(vlm, prompt, sinks), sg.Gates.ones(vlm)
    session.predict()
    turn = iter(range(1000))
    middle = layers // 2
    tables = [gates.set("rest", 0.05 + 0.09 * index, middle) for index in range(SETTINGS)]
    lsg = LSG(LSGConfig(tuple(range(layers)), vlm.model.config.get_text_config().hidden_size))
    batch = vlm.batch([prompt], [sinks], [vlm.encode_answer(prompt, "a cat")])
    prefix = Prefix(vlm, batch)

    def plain() -> None:
        with torch.no_grad():
            vlm.model(**vlm.warm_inputs(prompt), use_cache=True, logits_to_keep=1)

    def tick() -> None:
        session.predict(gates.set("rest", 0.3 + 0.4 * (next(turn) % 2), 2))

    def step() -> None:
        with frozen(vlm), lsg.applied(vlm, batch):
            batch.losses(prefix.within(lsg)).mean().backward()

    return {
        "prefill": ("a plain prefill of the encoded prompt, the peer", plain),
        "tick": (f"a fader of layer 2 of {layers} moved", tick),
        "sweep": (f"{SETTINGS} settings of layer {middle} side by side", lambda: session.predict_all(tables)),
        "training": (f"forward and backward of gates in all {layers} layers together, one sample", step),
        "find_sinks": (
            "find_sinks from the pixels, by norms and sink dimensions",
            lambda: sg.find_sinks(vlm, prompt, v_sink="norm", l_sink=SinkDimensions((507,))),
        ),
    }


def table(title: str, result: Profile, plain: Profile, machine: str) -> str:
    """One profile in Markdown."""
    rows = sorted(result.operations.items(), key=lambda each: -each[1][0])
    shown, rest = rows[:MOST], rows[MOST:]
    lines = [
        f"# Profile: {title}",
        "",
        f"{machine}. {duration(result.seconds)} of processor time, {result.seconds / plain.seconds:.2f} x a plain prefill ({duration(plain.seconds)}) in the same run.",
        "",
        "| operation | share | calls |",
        "|---|---:|---:|",
    ]
    lines += [f"| `{name}` | {seconds / result.seconds:.1%} | {calls} |" for name, (seconds, calls) in shown]
    lines += [
        f"| {len(rest)} other operations | {sum(seconds for _, (seconds, _) in rest) / result.seconds:.1%} | {sum(calls for _, (_, calls) in rest)} |",
        f"| Python and all around the operations | {result.around / result.seconds:.1%} | |",
    ]
    return "\n".join(lines) + "\n"


def main(folder: Annotated[Path, typer.Argument(help="Folder of a model.")]) -> None:
    """Profile each kind of work, and write a table for it."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    subject = open_folder(folder)
    vlm, prompt = subject.vlm, subject.prompt
    text = vlm.model.config.get_text_config()
    machine = (
        f"{text.num_hidden_layers} layers, {text.hidden_size} wide, {prompt.length} tokens, {vlm.model.dtype} on a CPU, {torch.get_num_threads()} thread, "
        f"torch {torch.__version__}, {date.today().isoformat()}, machine shared with other work"
    )
    plain: Profile | None = None
    OUT.mkdir(exist_ok=True)
    for name, (title, work) in works(vlm, prompt).items():
        result = profiled(work)
        plain = plain or result
        (OUT / f"{name}.md").write_text(table(title, result, plain, machine))
        print(f"{name}: {duration(result.seconds)}, {result.seconds / plain.seconds:.2f} x a plain prefill")


if __name__ == "__main__":
    typer.run(main)
