"""Comparison of learned gates, their ablations and baselines on hazed scenes, over seeds.

``python -m sinkgate.demo compare demo-large --out runs/comparison``. The demo models answer nearly every question about scenes like those of
their training, so the pictures are hazed: less contrast leaves room for gains. Every method learns from the same hazed scenes with a frozen
backbone, and is tested on other scenes. Each seed is saved when it is finished, and the same command resumes a run.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import nn
from transformers import set_seed

from sinkgate.analysis.sweep import CONTROLS, LINE, Setting, oracle
from sinkgate.attention.partial_forward import ended
from sinkgate.data import Sample, scene_samples
from sinkgate.methods import VAR, Fixed, LoRA, Method, Remove, Reweight, SinkToTheFront, Suppress
from sinkgate.methods.base import UNMODIFIED
from sinkgate.methods.lsg import LSG
from sinkgate.models.loading import best_device, fast_dtype, load
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.scenes.questions import KINDS
from sinkgate.sinks.gates import Gates
from sinkgate.training.dataset import ExampleCache, Prefix, batches
from sinkgate.training.evaluation import EvaluationResult, evaluate
from sinkgate.training.stacking import Stack, stack
from sinkgate.training.trainer import train

Report = dict[str, Any]
HAZE = (0.0, 0.7)  # of the scenes of training and validation
FORMS = ("LSG", "LSG from 1")
#: Beyond the paper's line: both scales together 2, through the unmodified model.
AROUND_ONE = tuple((step / 5, 2 - step / 5) for step in range(0, 11, 2))
ABLATIONS: Mapping[str, Mapping[str, str]] = {
    "signal mean": {"signal": "mean"},
    "signal visual": {"signal": "visual"},
    "l_sink vs rest": {"grouping": "l_sink"},
    "three groups": {"grouping": "three"},
}
SIZE = 128  # side of the pictures; the models look at 64 pixels


@dataclass(frozen=True)
class Setup:
    """Sizes and layers of one model's comparison.

    Args:
        model: name for `sinkgate.load`.
        haze: of the hazed test scenes, such that the unmodified model is clearly below its ceiling.
        layers: of learned gates, each apart; all if None.
        ablated: layers of the ablations; the middle one is LoRA's.
        samples: training samples; each is used twice.
        validation: questions that choose the stacks.
        questions: test questions about hazed scenes; a third of the number about clear ones.
        seeds: seeds of the published comparison.
        ablations: names of ``ABLATIONS``.
        batch: samples a training step.
        further: add fixed scales of 0.5 by layer, query reweighting, stacks by accuracy, training on five times the samples, and the oracle.
    """

    model: str
    haze: float
    layers: tuple[int, ...] | None
    ablated: tuple[int, ...]
    samples: int
    validation: int
    questions: int
    seeds: tuple[int, ...]
    ablations: tuple[str, ...] = tuple(ABLATIONS)
    batch: int = 32
    further: bool = True

    @property
    def worlds(self) -> dict[str, tuple[float, float]]:
        """Minimum and maximum haze of the test scenes, by name."""
        return {"hazed": (self.haze, self.haze), "clear": (0.0, 0.0)}

    @property
    def gates(self) -> str:
        """Name of the folder with the published gates."""
        return f"gates{self.model.removeprefix('demo')}"

    @property
    def lora(self) -> int:
        """Layer of LoRA."""
        return self.ablated[len(self.ablated) // 2]


SETUPS = {
    "demo-small": Setup("demo", 0.5, None, (1, 2, 7), 1560, 780, 1950, (0, 1, 2, 3, 4)),
    "demo-large": Setup("demo-large", 0.4, None, (3,), 1560, 390, 975, (0, 1, 2), batch=16, further=False),
}


def learned_gates(vlm: VLM, setup: Setup) -> dict[str, LSG]:
    """Return untrained gates: the paper's, those that start at the unmodified model, one in every layer, and the ablations."""
    layers = range(vlm.num_layers) if setup.layers is None else setup.layers
    return {
        "LSG": LSG.for_vlm(vlm, layers),
        "LSG from 1": LSG.for_vlm(vlm, layers, start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, layers, start="identity"),
        **{name: LSG.for_vlm(vlm, setup.ablated, **ABLATIONS[name]) for name in setup.ablations},
    }


def fixed_methods(vlm: VLM, setup: Setup) -> dict[str, Method]:
    """Return the methods without training."""
    layers = range(vlm.num_layers) if setup.further else ()
    return {
        UNMODIFIED: Fixed(Gates.ones(vlm)),
        "0.5 everywhere": Fixed(Gates.preset("Paper's midpoint", vlm)),
        **{f"0.5, layer {layer}": Fixed(Setting(layer, 0.5, 0.5).gates(vlm)) for layer in layers},
        "V-sinks suppressed": Suppress(),
        "V-sinks removed": Remove(),
        "VAR": VAR(),
        "sinks to the front": SinkToTheFront(),
    }


def scenes(setup: Setup, count: int, seed: int, split: str = "train", world: str | None = None) -> list[Sample]:
    """Return questions of a split: of a test world, or with the haze of training."""
    haze = HAZE if world is None else setup.worlds[world]
    return list(scene_samples(count, seed, split=cast(Any, split), haze=haze, per_scene=3, size=SIZE))


def scenes_to_test(setup: Setup, seed: int, world: str) -> list[Sample]:
    """Return the questions of a test world."""
    return scenes(setup, setup.questions if world == "hazed" else setup.questions // 3, seed, "test", world)


def run_seed(vlm: VLM, setup: Setup, seed: int, out: Path) -> Report:
    """Train every method once and test it. Shares are in [0, 1]."""
    began = time.time()
    examples = ExampleCache(vlm, find_sinks)
    set_seed(seed)
    gates = learned_gates(vlm, setup)
    single = {
        f"{name}, layer {layer}": lsg.only([layer])
        for name, lsg in gates.items()
        if not name.endswith("joint")
        for layer in lsg.config.layers
    }
    baselines: dict[str, nn.Module] = {"LoRA": LoRA.for_vlm(vlm, setup.lora)}
    if setup.further:
        baselines["query reweighting"] = Reweight.for_vlm(vlm)
    learning: dict[str, nn.Module] = {**single, "LSG from 1, joint": gates["LSG from 1, joint"], **baselines}
    samples = scenes(setup, setup.samples, seed)
    report = train(
        {file_name(name): method for name, method in learning.items()},
        vlm,
        samples,
        out=out / f"seed-{seed}",
        find=find_sinks,
        seed=seed,
        per_device_train_batch_size=setup.batch,
        logging_steps=5,
        save_steps=40 if setup.further else 13,
        save_total_limit=1,
    )
    trained = time.time()
    for name, lsg in gates.items():
        lsg.save_pretrained(out / f"seed-{seed}" / file_name(name))
    validation = scenes(setup, setup.validation, seed, "validation")
    score = "accuracy" if setup.further else "loss"
    stacks = {name: stack(gates[name], vlm, validation, score=score, examples=examples) for name in FORMS}
    methods: dict[str, Method] = {**fixed_methods(vlm, setup), **cast(dict[str, Method], learning)}
    methods |= {f"{name}, {stack_name(score)}": result.lsg for name, result in stacks.items()}
    worlds = {}
    for world in setup.worlds:
        test = scenes_to_test(setup, seed, world)
        result = evaluate(vlm, methods, test, examples=examples)
        worlds[world] = {"marks": _table(result), "rho": mean_rho(vlm, gates, test, examples)}
    history = [{k: v for k, v in entry.items() if "loss" in k or k == "step"} for entry in report.history]
    return {
        "seed": seed,
        "measured": date.today().isoformat(),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "samples": len(samples),
        "steps": report.steps,
        "minutes": {"train": (trained - began) / 60, "examine": (time.time() - trained) / 60},
        "history": history,
        "stacks": {_stacked(name, score): _stack(result) for name, result in stacks.items()},
        "worlds": worlds,
    }


def run_further(vlm: VLM, setup: Setup, seed: int, out: Path) -> Report:
    """Test stacks chosen by loss, the gates of all layers at once, and the best layer with five times the samples."""
    examples = ExampleCache(vlm, find_sinks)
    validation = scenes(setup, setup.validation, seed, "validation")
    methods: dict[str, Method] = {}
    stacks = {}
    for name in FORMS:
        lsg = LSG.from_pretrained(out / f"seed-{seed}" / file_name(name))
        result = stack(lsg, vlm, validation, examples=examples)
        methods |= {f"{name}, {stack_name('loss')}": result.lsg, f"{name}, all layers at once": lsg}
        stacks[_stacked(name, "loss")] = _stack(result)
    set_seed(seed)
    layer = setup.lora
    learning: dict[str, nn.Module] = {
        f"LSG, layer {layer}": LSG.for_vlm(vlm, [layer]),
        f"LSG from 1, layer {layer}": LSG.for_vlm(vlm, [layer], start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, range(vlm.num_layers), start="identity"),
        "LoRA": LoRA.for_vlm(vlm, layer),
    }
    train(
        {file_name(name): method for name, method in learning.items()},
        vlm,
        scenes(setup, 5 * setup.samples, seed),
        out=out / f"more-{seed}",
        find=LSG.for_vlm(vlm, [0]).find_sinks,
        seed=seed,
        per_device_train_batch_size=setup.batch,
        save_steps=40,
        save_total_limit=1,
    )
    methods |= {f"{name}, 5 x samples": cast(Method, method) for name, method in learning.items()}
    cast(LSG, learning["LSG from 1, joint"]).save_pretrained(out / f"more-{seed}" / "joint")
    tests = {world: scenes_to_test(setup, seed, world) for world in setup.worlds}
    worlds = {world: _table(evaluate(vlm, methods, test, examples=examples)) for world, test in tests.items()}
    return {"seed": seed, "stacks": stacks, "worlds": worlds}


def mean_rho(vlm: VLM, gates: Mapping[str, LSG], samples: list[Sample], examples: ExampleCache) -> Report:
    """Return the mean scale of V-sinks under each single gate: form -> kind of question -> one value a layer.

    Args:
        vlm: the model.
        gates: with the names of ``FORMS`` among them.
        samples: questions.
        examples: the prepared samples.
    """
    scales: dict[str, dict[str, dict[int, list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in FORMS
    }
    prepared = [example for sample in samples if (example := examples.prepare(sample, "")) is not None]
    chunks = [prepared[start : start + 32] for start in range(0, len(prepared), 32)]
    with torch.no_grad():
        for chunk in chunks:
            for part, batch in batches(vlm, chunk):
                prefix = Prefix(vlm, batch)
                for name, table in scales.items():
                    for layer in gates[name].config.layers:
                        gate = gates[name].only([layer])
                        # a gate reads the input of its layer: no layer has to run for it
                        with gate.applied(vlm, batch) as trace, ended(vlm.adapter.all_layers, gate.first_layer(vlm)):
                            prefix.within(gate)
                        for example, scale in zip(chunk[part], trace.scales[layer][:, 0].tolist(), strict=True):
                            table[example.kind][layer].append(scale)
    return {
        name: {kind: [fmean(of[layer]) for layer in sorted(of)] for kind, of in table.items()}
        for name, table in scales.items()
    }


def search_oracle(vlm: VLM, setup: Setup, seed: int) -> Report:
    """Return the best fixed setting of one layer for each kind of question, on validation scenes (paper, section 3).

    ``paper`` chooses from the paper's line with its controls, ``free`` also from ``AROUND_ONE``.
    """
    count = max(len(KINDS), setup.validation)
    settings = oracle(vlm, points=(*LINE, *CONTROLS, *AROUND_ONE))
    methods: dict[str, Method] = {str(number): Fixed(setting.gates(vlm)) for number, setting in enumerate(settings)}
    validation = scenes(setup, count, seed, "validation", "hazed")
    result = evaluate(vlm, methods, validation, examples=ExampleCache(vlm, find_sinks))
    by_kind = {name: result.by_kind(name) for name in methods}
    line = {str(i) for i, setting in enumerate(settings) if (setting.v_sink, setting.rest) not in AROUND_ONE}
    best = {
        way: {kind: vars(settings[int(max(names, key=lambda name, k=kind: by_kind[name][k]))]) for kind in KINDS}
        for way, names in (("paper", [name for name in methods if name in line]), ("free", list(methods)))
    }
    return {"asked": count, "settings": [vars(setting) for setting in settings], "accuracy": by_kind, "best": best}


def apply_oracle(vlm: VLM, setup: Setup, best: Report, seed: int) -> Report:
    """Return right answers (1) under the oracle's setting for the kind of each test question, by way, in the order of ``run_seed``."""
    examples = ExampleCache(vlm, find_sinks)
    test = scenes_to_test(setup, seed, "hazed")
    results: Report = {}
    for way, cells in best.items():
        right = [0] * len(test)
        for kind, cell in cells.items():
            indices = [index for index, sample in enumerate(test) if sample.kind == kind]
            method: Method = Fixed(Setting(**cell).gates(vlm))
            result = evaluate(vlm, {"it": method}, [test[i] for i in indices], examples=examples, progress=False)
            for index, mark in zip(indices, result.right["it"], strict=True):
                right[index] = int(mark)
        results[way] = right
    return results


def run_comparison(setup: Setup, out: Path, seeds: Sequence[int] | None = None) -> None:
    """Run a comparison; finished seeds are read from the folder.

    Args:
        setup: the model's setup.
        out: folder of the run; several processes may share it, with different seeds.
        seeds: those of this process; all of the setup if None.

    Example:
        >>> run_comparison(SETUPS["demo-large"], Path("runs/comparison"), [0])
    """
    out.mkdir(parents=True, exist_ok=True)
    # with eager attention the fastest on two CPU cores for models of this size
    vlm = load(setup.model, dtype=fast_dtype(best_device()), attn_implementation="eager")
    seeds = setup.seeds if seeds is None else seeds
    for seed in seeds:
        _saved(out / f"seed-{seed}.json", lambda seed=seed: run_seed(vlm, setup, seed, out))
    if not setup.further:
        return
    for seed in seeds:
        _saved(out / f"more-{seed}.json", lambda seed=seed: run_further(vlm, setup, seed, out))
    best = _saved(out / "oracle.json", lambda: search_oracle(vlm, setup, 1000))["best"]
    for seed in seeds:
        _saved(out / f"oracle-{seed}.json", lambda seed=seed: apply_oracle(vlm, setup, best, seed))


def file_name(method: str) -> str:
    """Return a method's name as modules and folders can have it."""
    return method.replace(", ", "-").replace(" ", "_")


def stack_name(score: str) -> str:
    """Return the name of a stack that was chosen by accuracy or by loss."""
    return "stack" if score == "accuracy" else "stack by loss"


def _stacked(form: str, score: str) -> str:
    return form if score == "accuracy" else f"{form} by loss"


def _stack(result: Stack) -> Report:
    return {
        "layers": list(result.lsg.config.layers),
        "unmodified": result.unmodified,
        "score": result.score,
        "singles": result.singles,
        "steps": [vars(step) for step in result.steps],
    }


def _table(result: EvaluationResult) -> Report:
    return {"kinds": result.kinds, "right": {name: [int(each) for each in row] for name, row in result.right.items()}}


def _saved(path: Path, compute: Callable[[], Report]) -> Report:
    """Return the part on the disk; compute and write it if there is none."""
    if not path.exists():
        content = json.dumps(compute())
        part = path.with_suffix(".part")
        part.write_text(content, encoding="utf-8")
        part.rename(path)
    return json.loads(path.read_text(encoding="utf-8"))
