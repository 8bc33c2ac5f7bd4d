"""Plans of the demo models' studies: numbers of samples, settings, and the folders of published results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkgate.analysis.sweep import LINE, grid
from sinkgate.models.loading import BUILT_IN
from sinkgate.studies.results import Results

HERE = Path(__file__).parent
HAZE = (0.0, 0.7)  # of the scenes with room to gain: on clear ones both models are near their ceiling
CLEAR = (0.0, 0.0)
THREE = (0.0, 0.5, 1.0, 2.0)  # scales of the grid with L-sinks apart
Points = Sequence[tuple[float, ...]]


@dataclass(frozen=True)
class Plan:
    """Sizes of the studies of one demo model.

    Args:
        model: name for `sinkgate.load`.
        suffix: of the folders with its gates and studies.
        about: the card's sentences on the model.
        anatomy: images of the anatomy, and of the study of groups the same number of questions.
        pictures: of the probes.
        scenes: of the study of sinks and objects, and questions of each.
        accuracy: questions a seed about clear scenes, three seeds.
        methods: questions a seed, five seeds, and their haze, for methods without training.
        kinds: of questions in the sweeps; all if None.
        probes: options of `Features` and of `Probes`.
        sweeps: folder -> number of questions, seed, haze, points, and layers (None: all).
        learned: names of learned gates in the comparison of methods; without any, it is left out.
        precise: run anatomy and probes in float32.
    """

    model: str
    suffix: str
    about: str
    anatomy: int
    pictures: int
    scenes: tuple[int, int]
    accuracy: int
    methods: tuple[int, float]
    sweeps: dict[str, tuple[int, int, tuple[float, float], Points, Sequence[int] | None]]
    kinds: tuple[str, ...] | None = None
    probes: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    learned: tuple[str, ...] = ()
    precise: bool = True

    @property
    def weights(self) -> Path:
        """Folder of the weights."""
        return BUILT_IN[self.model]

    @property
    def gates(self) -> Path:
        """Folder of the learned gates."""
        return HERE / f"gates{self.suffix}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the studies, in the order of the card."""
        return (
            *("anatomy", "scene-sinks", "groups", "accuracy", "methods", *self.sweeps, "probes"),
            *(("eval",) if self.learned else ()),
        )

    @property
    def folder(self) -> Path:
        """Folder of the published studies."""
        return HERE / f"studies{self.suffix}"


PLANS = {
    "demo-small": Plan(
        model="demo",
        suffix="",
        about="The small demo model has V-sinks that grew under a training pressure to hold facts of the whole scene. They show in attention alone, "
        "and there are hardly any L-sinks ([card](../weights/README.md)): these results are true of this model, not of the paper's "
        "models, and what V-sinks hold of the whole scene is partly built in.",
        anatomy=390,
        pictures=2000,
        scenes=(50, 5),
        accuracy=260,
        methods=(390, 0.5),
        sweeps={
            "sweep-clear": (2600, 2, CLEAR, LINE, None),
            "sweep-hazed": (2600, 3, HAZE, LINE, None),
            "sweep-three": (780, 4, HAZE, (*grid(THREE), *grid(THREE, 3)), None),
        },
        learned=("layer-2", "stack", "joint"),
    ),
    "demo-large": Plan(
        model="demo-large",
        suffix="-large",
        about="The large demo model has L-sinks from the training of SmolLM2, in dimension 507, and V-sinks by attention "
        "([card](../weights-large/README.md)). About nine of ten V-sinks spike in dimension 507 too: by the L-sink criterion alone they would be L-sinks. "
        "A token that is both counts as a V-sink here, so the L-sinks are those besides V-sinks. "
        "The studies are small, to fit two CPU cores: few samples, in the sweeps six kinds of questions and every other point of the paper's line, in the probes "
        "three layers and three draws.",
        anatomy=208,
        pictures=260,
        scenes=(26, 4),
        accuracy=130,
        methods=(130, 0.4),
        sweeps={
            "sweep-hazed": (156, 3, HAZE, ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)), None),
            "sweep-three": (78, 4, HAZE, (*grid((0.0, 1.0, 2.0)), *grid((0.0, 1.0, 2.0), 3)), (3, 4, 5)),
        },
        kinds=("count", "colors", "shapes", "count_color", "presence", "place"),
        probes=({"layers": (0, 3, 5), "draws": 3}, {"regularisers": (1e-3, 1e-2, 1e-1), "folds": 3}),
        precise=False,
    ),
}


def published(plan: Plan) -> dict[str, Results]:
    """Return a plan's published studies by name."""
    return {name: Results.load(plan.folder / name) for name in plan.names if (plan.folder / name).exists()}
