"""Studies of the demo models: the paper's analyses.

``python -m sinkgate.demo studies demo-large --out runs/studies``. A study is written part by part, and the same command resumes a run.
The published results are in ``studies/`` and ``studies-large/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sinkgate.benchmarks import SCENES, Item
from sinkgate.benchmarks.scenes import SIZE
from sinkgate.data.scenes import scene_facts, scene_samples
from sinkgate.demo.plans import CLEAR, HAZE, Plan
from sinkgate.demo.scoring import held_out
from sinkgate.demo.sinks import SceneSinks
from sinkgate.demo.studies_card import card
from sinkgate.methods import VAR, Fixed, Method, Remove, SinkToTheFront, Suppress, registry
from sinkgate.methods.base import UNMODIFIED
from sinkgate.methods.lsg import LSG
from sinkgate.methods.registers import find_register_neurons
from sinkgate.models.finder import SinkFinder
from sinkgate.models.loading import best_device, fast_dtype, load
from sinkgate.models.vlm import VLM
from sinkgate.sinks.gates import Gates
from sinkgate.studies.anatomy import Anatomy
from sinkgate.studies.evaluation import Evaluation
from sinkgate.studies.features import Features
from sinkgate.studies.html_report import write_page
from sinkgate.studies.probes import Probes
from sinkgate.studies.results import Results
from sinkgate.studies.runner import run
from sinkgate.studies.sweep import Sweep

SEEDS = (11, 12, 13, 14, 15)


def questions(
    count: int, seed: int, haze: tuple[float, float] = CLEAR, kinds: tuple[str, ...] | None = None
) -> list[Item]:
    """Return questions about scenes of the test split, the same number of each kind; all kinds if None."""
    return replace(SCENES, haze=haze, kinds=kinds).items(limit=count, seed=seed)


def groups(vlm: VLM) -> dict[str, Method]:
    """Return the Keys of each group set to 0, in every layer; those of ordinary tokens in the upper half only."""
    ones = Gates.ones(vlm)
    upper = range(vlm.num_layers // 2, vlm.num_layers)
    return {
        UNMODIFIED: Fixed(ones),
        "V-sinks off": Fixed(ones.set("v_sink", 0)),
        "L-sinks off": Fixed(ones.set("l_sink", 0)),
        "V-sinks and L-sinks off": Fixed(ones.set("v_sink", 0).set("l_sink", 0)),
        f"ordinary tokens off from layer {upper[0]}": Fixed(ones.set("ordinary", 0, upper)),
    }


def untrained(vlm: VLM) -> dict[str, Method]:
    """Return the published methods without training, with default options and some variants; register neurons are found on training scenes."""
    prompts = [vlm.prompt(sample.images, sample.question) for sample in scene_samples(26, 0, split="train", size=SIZE)]
    names = (
        *("adaptvis", "scalingvis weight 0.5", "scalingvis weight 1.5", "vaf", "pai", "pai guidance 1", "var", "front"),
        *("suppress", "remove", "fastv", "fastv sinks kept", "fastv sinks first", "fastv sinks dropped"),
    )
    return {
        UNMODIFIED: Fixed(Gates.ones(vlm)),
        **{name: registry.published(name) for name in names},
        **{f"registers of {count} neurons": find_register_neurons(vlm, prompts, count=count) for count in (10, 40)},
    }


def methods(vlm: VLM, gates: Path, learned: Sequence[str]) -> dict[str, Method]:
    """Return the unmodified model, learned gates by name of their folder, and the baselines without training."""
    return {
        UNMODIFIED: Fixed(Gates.ones(vlm)),
        **{f"LSG {name}": LSG.from_pretrained(gates / name).to(vlm.device) for name in learned},
        "VAR": VAR(),
        "sinks to the front": SinkToTheFront(),
        "V-sinks suppressed": Suppress(),
        "V-sinks removed": Remove(),
    }


def studies(plan: Plan, vlm: VLM, fast: VLM, scale: float) -> dict[str, Callable[[Path], Results]]:
    """Return every study of a plan by the name of its folder.

    Args:
        plan: the model's plan.
        vlm: the model, for anatomy and probes.
        fast: the model in the dtype that is fastest here, for the others.
        scale: factor on the numbers of samples.
    """

    def many(count: int, least: int = 26) -> int:
        return max(least, round(count * scale))

    def anatomy(out: Path) -> Results:
        samples = [item.sample for item in questions(many(plan.anatomy), 0)]
        return run(Anatomy(vlm, samples, chunk=26, about={"data": "scenes", "seed": 0}), out)

    def probes(out: Path) -> Results:
        count = many(plan.pictures)
        data = {"data": "scenes", "seed": 1, "pictures": count}
        features = run(
            Features(vlm, list(scene_facts(count, 1, split="test")), data, chunk=50, **plan.probes[0]),
            out / "features",
        )
        return run(Probes.of(features, jobs=-1, **plan.probes[1]), out)

    def scene_sinks(out: Path) -> Results:
        count, each = plan.scenes
        scenes = [
            (scene, of_scene[:: max(1, len(of_scene) // each)][:each])
            for scene, of_scene in held_out(4, many(count, 2))
        ]
        return run(SceneSinks(vlm, scenes, about={"data": "scenes", "seed": 4}), out)

    def accuracy(out: Path) -> Results:
        items = [item for seed in (1, 2, 3) for item in questions(many(plan.accuracy), seed)]
        return evaluated(items, {UNMODIFIED: Fixed(Gates.ones(fast))}, out, seed="1, 2, 3", haze=CLEAR)

    def ablation(out: Path) -> Results:
        items = questions(many(plan.anatomy), 6)
        return evaluated(items, groups(fast), out, find=SinkFinder(), seed=6, haze=CLEAR)

    def without_training(out: Path) -> Results:
        count, haze = plan.methods
        items = [item for seed in SEEDS for item in questions(many(count), seed, (haze, haze))]
        seeds = ", ".join(map(str, SEEDS))
        return evaluated(items, untrained(fast), out, find=SinkFinder(), attention=True, seed=seeds, haze=haze)

    def comparison(out: Path) -> Results:
        items, compared = questions(many(2600), 5, HAZE), methods(fast, plan.gates, plan.learned)
        return evaluated(items, compared, out, seed=5, haze=HAZE)

    def evaluated(
        items: list[Item],
        compared: dict[str, Method],
        out: Path,
        find: SinkFinder | None = None,
        attention: bool = False,
        **about: object,
    ) -> Results:
        options: Any = {"find": find, "attention": attention, "about": {"data": "scenes", **about}}
        return run(Evaluation(fast, SCENES, items, compared, chunk=32, **options), out)

    def swept(name: str, out: Path) -> Results:
        count, seed, haze, points, layers = plan.sweeps[name]
        items, about = questions(many(count), seed, haze, plan.kinds), {"data": "scenes", "seed": seed, "haze": haze}
        return run(Sweep(fast, items, layers, tuple(points), 32, about=about), out)

    tasks: dict[str, Callable[[Path], Results]] = {
        "anatomy": anatomy,
        "scene-sinks": scene_sinks,
        "groups": ablation,
        "accuracy": accuracy,
        "methods": without_training,
        **{name: partial(swept, name) for name in plan.sweeps},
        "probes": probes,
        "eval": comparison,
    }
    return {name: tasks[name] for name in plan.names}


def run_studies(
    plan: Plan, out: Path, *, only: Sequence[str] = (), scale: float = 1.0, publish: bool = False
) -> dict[str, Results]:
    """Run the studies of a plan; write a page with every figure and, of all studies together, the card.

    Args:
        plan: the model's plan.
        out: folder of the studies, one folder each.
        only: names of studies; all if empty.
        scale: factor on the numbers of samples.
        publish: copy tables, figures and card to the package, without the parts.

    Example:
        >>> run_studies(PLANS["demo-large"], Path("runs/studies"), only=["anatomy"])
    """
    fast = load(plan.model, dtype=fast_dtype(best_device()), attn_implementation="eager")  # the fastest on a CPU
    vlm = load(plan.model, dtype="float32") if plan.precise else fast
    results = {
        name: study(out / name) for name, study in studies(plan, vlm, fast, scale).items() if not only or name in only
    }
    write_page(out)
    if not only:
        (out / "README.md").write_text(card(plan, results, out), encoding="utf-8")
        if publish:
            _publish(out, results, plan.folder)
    return results


def _publish(out: Path, results: dict[str, Results], folder: Path) -> None:
    for name, result in results.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (*result.folder.glob("*.parquet"), result.folder / "study.json"):
            shutil.copy(file, folder / name)
    for file in (*out.glob("*.svg"), out / "README.md"):
        shutil.copy(file, folder)
