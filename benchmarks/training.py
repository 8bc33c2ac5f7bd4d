"""A gate in every layer, each as if alone: from one shared prefix, against a run for each gate."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from models import Subject
from timing import Row, ratio, take_turns
from torch.nn.functional import cross_entropy

from sinkgate.data import Sample, scene_samples
from sinkgate.methods.lsg import LSG
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.training.trainer import frozen, train

SAMPLES, BATCH, EPOCHS, RATE = 64, 16, 2, 1e-3


def measure(subject: Subject, rounds: float = 1) -> list[Row]:
    """Rows of the table, on the demo model, samples read and encoded included."""
    vlm = subject.vlm
    samples = list(scene_samples(SAMPLES, haze=(0, 0.7), per_scene=3, size=128))
    layers = range(vlm.num_layers)
    variants = {
        "ours": lambda: _train(vlm, samples, list(layers)),
        "one by one": lambda: [_train(vlm, samples, [layer]) for layer in layers],
        "naive": lambda: [_naive(vlm, samples, layer) for layer in layers],
    }
    seconds = take_turns(variants, max(1, round(3 * rounds)))
    return [
        ratio(
            f"{peer} / all {len(layers)} gates at once", subject.name, seconds["ours"], seconds[key], aim, speedup=True
        )
        for peer, key, aim in (
            ("a plain loop for each gate", "naive", ">= 3"),
            ("our training of one gate at a time", "one by one", ""),
        )
    ]


def _train(vlm: VLM, samples: list[Sample], layers: list[int]) -> None:
    out = Path(tempfile.mkdtemp())
    options = {"per_device_train_batch_size": BATCH, "num_train_epochs": EPOCHS, "save_strategy": "no"}
    try:
        train(LSG.for_vlm(vlm, layers), vlm, samples, out=out, progress=False, learning_rate=RATE, **options)
    finally:
        shutil.rmtree(out)


def _naive(vlm: VLM, samples: list[Sample], layer: int) -> None:
    """Train the plain way: everything anew for each gate and epoch, and each step a whole forward."""
    lsg = LSG.for_vlm(vlm, [layer])
    optimizer = torch.optim.AdamW(lsg.parameters(), RATE)
    with frozen(vlm):
        for _ in range(EPOCHS):
            for batch in _batches(vlm, lsg, samples):
                with lsg.applied(vlm, batch):
                    logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1]
                    assert batch.labels is not None
                    loss = cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()


def _batches(vlm: VLM, lsg: LSG, samples: list[Sample]) -> Iterator[Batch]:
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        prompts = [vlm.prompt(sample.images, sample.question) for sample in part]
        answers = [vlm.encode_answer(prompt, sample.answer) for prompt, sample in zip(prompts, part, strict=True)]
        yield vlm.batch(prompts, [lsg.find_sinks(vlm, prompt) for prompt in prompts], answers)
