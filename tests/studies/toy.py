"""A study that costs nothing: what a folder does must not depend on what is studied."""

import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch


@dataclass(frozen=True)
class Toy:
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
    from sinkgate.samples import scene_samples

    return of_samples("scenes", scene_samples(count, split="test", haze=(0.3, 0.6), size=64, **options))[1]
