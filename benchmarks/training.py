"""Training of a gate in every layer at once, from one shared prefix, against a run for each gate.

``python benchmarks/training.py FOLDER`` measures on the model in a folder. Seconds are the processor's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from models import Subject, open_folder
from timing import Row, processor_time, ratio, take_turns
from torch.nn.functional import cross_entropy

import sinkgate as sg
from sinkgate.data import Sample, scene_samples
from sinkgate.methods.lsg import LSG
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.sinks.classify import SinkMap
from sinkgate.training.ensemble import frozen
from sinkgate.training.trainer import train

SAMPLES, BATCH, EPOCHS, RATE = 64, 16, 2, 1e-3


def measure(
    subject: Subject, rounds: float = 1, *, samples: int = SAMPLES, batch: int = BATCH, every: int = 1
) -> list[Row]:
    """Return the rows of the table in processor time, with reading and encoding samples and finding sinks.

    Args:
        subject: the model.
        rounds: more or fewer rounds, as a factor.
        samples: training samples of the scenes world.
        batch: samples a step.
        every: a gate in each so many layers.
    """
    vlm = subject.vlm
    questions = list(scene_samples(samples, haze=(0, 0.7), per_scene=3, size=128))
    layers = range(0, vlm.num_layers, every)
    variants = {
        "ours": lambda: _train(vlm, questions, batch, list(layers)),
        "one by one": lambda: [_train(vlm, questions, batch, [layer]) for layer in layers],
        "naive": lambda: [_naive(vlm, questions, batch, layer) for layer in layers],
    }
    seconds = take_turns({name: processor_time(run) for name, run in variants.items()}, max(1, round(3 * rounds)))
    return [
        ratio(
            f"{peer} / all {len(layers)} gates at once", subject.name, seconds["ours"], seconds[key], aim, speedup=True
        )
        for peer, key, aim in (
            ("a plain loop for each gate", "naive", ">= 3"),
            ("our training of one gate at a time", "one by one", ""),
        )
    ]


def _find(vlm: VLM, prompt: sg.Prompt) -> SinkMap:
    """Find sinks by norms, which also works on models without V-sinks by attention."""
    return sg.find_sinks(vlm, prompt, v_sink="norm", l_sink="norm")


def _train(vlm: VLM, samples: list[Sample], batch: int, layers: list[int]) -> None:
    options = {"per_device_train_batch_size": batch, "num_train_epochs": EPOCHS, "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as out:
        train(
            LSG.for_vlm(vlm, layers),
            vlm,
            samples,
            out=out,
            find=_find,
            allow_empty=True,
            progress=False,
            learning_rate=RATE,
            **options,
        )


def _naive(vlm: VLM, samples: list[Sample], size: int, layer: int) -> None:
    """Train by a plain loop: each gate and epoch prepares its samples again, and each step is a whole forward."""
    lsg = LSG.for_vlm(vlm, [layer])
    optimizer = torch.optim.AdamW(lsg.parameters(), RATE)
    with frozen(vlm):
        for _ in range(EPOCHS):
            for batch in _batches(vlm, samples, size):
                with lsg.applied(vlm, batch):
                    logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1]
                    assert batch.labels is not None
                    loss = cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()


def _batches(vlm: VLM, samples: list[Sample], size: int) -> Iterator[Batch]:
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        prompts = [vlm.prompt(sample.images, sample.question) for sample in part]
        answers = [vlm.encode_answer(prompt, sample.answer) for prompt, sample in zip(prompts, part, strict=True)]
        yield vlm.batch(prompts, [_find(vlm, prompt) for prompt in prompts], answers)


def main(
    folder: Annotated[Path, typer.Argument(help="A model.")],
    samples: Annotated[int, typer.Option(min=1)] = 4,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    every: Annotated[int, typer.Option(min=1, help="A gate in each so many layers.")] = 1,
    rounds: Annotated[float, typer.Option(min=0, help="More or fewer rounds, as a factor.")] = 1,
) -> None:
    """Measure on the model in a folder, and print a line for each ratio."""
    print(*measure(open_folder(folder), rounds, samples=samples, batch=batch, every=every), sep="\n")


if __name__ == "__main__":
    typer.run(main)
