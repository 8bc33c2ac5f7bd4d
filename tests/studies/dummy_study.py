"""A study that costs nothing: what a folder does must not depend on what is studied. And how to kill one."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sinkgate.studies.runner import run

processes = multiprocessing.get_context("fork")


def tables(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).glob("*.parquet"))}


def parts(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(Path(folder).glob("parts/[0-9]*/*"))}


def kill_again_and_again(study, out, times=10):
    """Begin a study in a process of its own and kill it after some work, so many times; gives how many parts are there."""
    moments, finished = random.Random(0), 0
    for _ in range(times):
        worker = processes.Process(target=run, args=(study, out), kwargs={"progress": False})
        worker.start()
        while len(list(out.glob("parts/0*"))) == finished:  # until it has done something
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        finished = len(list(out.glob("parts/0*")))
    return finished


@dataclass(frozen=True)
class DummyStudy:
    kind = "toy"
    units: int = 12
    seed: int = 0
    seconds: float = 0.0
    done: list[int] = field(default_factory=list)

    @property
    def settings(self):
        return {"seed": self.seed, "pair": (1, 2)}

    @property
    def model(self):
        return {"name": "none"}

    @property
    def data(self):
        return {"items": 3 * self.units}

    def work(self, unit):
        self.done.append(unit)
        time.sleep(self.seconds)
        rng = np.random.default_rng([self.seed, unit])
        rows = pd.DataFrame({"sample": np.arange(3) + 3 * unit, "value": rng.random(3), "task": ["a", "b", "c"]})
        tables = {"rows": rows, "states": {"h": torch.tensor(rng.random((3, 4)))}}
        return tables if unit % 2 else {**tables, "even": rows.head(1)}


def scene_items(count, **options):
    """Questions about hazed scenes as a benchmark's items."""
    from sinkgate.benchmarks.samples import of_samples
    from sinkgate.data import scene_samples

    return of_samples("scenes", scene_samples(count, split="test", haze=(0.3, 0.6), size=64, **options))[1]
