"""Small made-up results of every study, with the true columns."""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd

from sinkgate.studies.anatomy import TABLES
from sinkgate.studies.runner import run

GROUPS = {"v_sink": 3, "l_sink": 2, "ordinary": 50, "text": 9, "first": 1}


def anatomy(samples=3, layers=4, heads=2):
    rng = np.random.default_rng(0)
    numbers = range(samples)
    tokens = pd.DataFrame(
        [
            (sample, layer, group, count, *rng.uniform(1, 9, 3), 0.2, 0.2 / count, rng.uniform(0.1, 1.2))
            for sample, layer, (group, count) in product(numbers, range(layers), GROUPS.items())
        ],
        columns=list(TABLES["tokens"]),
    )
    each = pd.DataFrame(
        [
            (*at, *rng.dirichlet(np.ones(6)), 0.3, rng.uniform(1, 5))
            for at in product(numbers, range(layers), range(heads))
        ],
        columns=list(TABLES["heads"]),
    )
    projector = pd.DataFrame(
        [
            (sample, group, GROUPS[group], *rng.uniform(1, 9, 4))
            for sample, group in product(numbers, ("v_sink", "ordinary"))
        ],
        columns=list(TABLES["projector"]),
    )
    criteria = ("dimensions", "massive", "norm")
    images = pd.DataFrame(
        [(sample, criterion, 64, 3.0, 3.0, 4.0, 2.0, str(sample)) for sample, criterion in product(numbers, criteria)],
        columns=list(TABLES["images"]),
    )
    pairs = (("dimensions", "massive"), ("dimensions", "norm"), ("massive", "norm"))
    agreement = pd.DataFrame(
        [(sample, side, *pair, 1, 4) for sample, side, pair in product(numbers, ("encoder", "llm"), pairs)],
        columns=list(TABLES["agreement"]),
    )
    return {"tokens": tokens, "heads": each, "projector": projector, "images": images, "agreement": agreement}


def probes(targets=("count", "colors"), layers=3, draws=2):
    rng = np.random.default_rng(0)
    places = ("encoder", *map(str, range(layers)))
    keys = product(targets, places, ("v_sink", "l_sink", "ordinary"), ("true", "shuffled"), range(draws))
    columns = [
        "target",
        "place",
        "group",
        "labels",
        "draw",
        "accuracy",
        "mean_average_precision",
        "chance",
        "regulariser",
    ]
    rows = [(*key, *rng.uniform(0.3, 0.9, 2), 0.25, 0.1, 0, 70, 30) for key in keys]
    return {"scores": pd.DataFrame(rows, columns=[*columns, "left_out", "train", "test"])}


def items(tasks, count=8):
    rows = [(number, task, f"{task}-{number}", "A") for number, (task, _) in enumerate(product(tasks, range(count)))]
    return pd.DataFrame(rows, columns=["sample", "task", "id", "answer"])


def sweep(tasks=("global", "local"), layers=2, points=((0.0, 1.0), (0.5, 0.5), (0.8, 0.2), (1.0, 0.0), (0.5, 2.0))):
    rng = np.random.default_rng(0)
    questions = items(tasks)
    cells = [(-1, 1.0, 1.0, 1.0), *((layer, v, rest, rest) for layer in range(layers) for v, rest in points)]
    rows = [(sample, *cell, rng.random() < 0.6, rng.random()) for sample, cell in product(questions["sample"], cells)]
    columns = ["sample", "layer", "v_sink", "l_sink", "ordinary", "right", "loss"]
    return {"items": questions, "answers": pd.DataFrame(rows, columns=columns)}


def evaluation(tasks=("global", "local"), methods=("unmodified", "var")):
    rng = np.random.default_rng(0)
    questions = items(tasks)
    rows = [(sample, method, "A", rng.random() < 0.6, 0.5) for sample, method in product(questions["sample"], methods)]
    return {"items": questions, "answers": pd.DataFrame(rows, columns=["sample", "method", "said", "right", "loss"])}


@dataclass
class FakeStudy:
    """A study whose work is done: every unit gives the same tables."""

    kind: str
    tables: dict
    units: int = 1
    model: dict = field(default_factory=lambda: {"name": "demo", "revision": "1234"})
    settings: dict = field(default_factory=lambda: {"dimensions": {"vision": [], "llm": []}})
    data: dict = field(default_factory=lambda: {"items": 3})

    def work(self, unit):
        if unit > 0:
            raise KeyboardInterrupt
        return self.tables


def studies(folder, **changed):
    """All kinds in a folder, each as a run leaves it."""
    tables = {"anatomy": anatomy, "probes": probes, "sweep": sweep, "eval": evaluation}
    for kind, make in tables.items():
        run(FakeStudy(kind, make(), **changed), folder / kind, progress=False)
    return folder
