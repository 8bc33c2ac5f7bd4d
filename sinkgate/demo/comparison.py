"""The paper's comparison on the demo world: learned gates, their ablations and rivals, over seeds: ``python -m sinkgate.demo.comparison``.

The demo model is near its ceiling on the scenes that it was trained on, so the pictures are hazed: contrast is lost, which it never
saw, and there is room to gain. Everything learns on the same samples of hazed scenes, with the backbone frozen, and is examined on
scenes of its own. Each seed is saved as soon as it is done; a run that was stopped goes on.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, cast

import torch
import typer
from torch import nn
from transformers import set_seed

from sinkgate.analysis.sweep import CONTROLS, LINE, Setting, oracle
from sinkgate.data import Sample, scene_samples
from sinkgate.methods import VAR, Fixed, LoRA, Method, Remove, Reweight, SinkToTheFront, Suppress
from sinkgate.methods.lsg import LSG
from sinkgate.models.loading import load
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.scenes.questions import KINDS
from sinkgate.sinks.gates import Gates
from sinkgate.training.dataset import ExampleCache, Prefix, batches
from sinkgate.training.evaluation import EvaluationResult, evaluate
from sinkgate.training.stacking import Stack, stack
from sinkgate.training.trainer import train

Report = dict[str, Any]
HAZE = (0.0, 0.7)  # of the scenes to learn from and to choose by
WORLDS = {"hazed": (0.5, 0.5), "clear": (0.0, 0.0)}  # examined on
#: Beyond the paper's line: both scales together 2, through the unmodified model.
AROUND_ONE = tuple((step / 5, 2 - step / 5) for step in range(0, 11, 2))
ABLATED = (1, 2, 7)  # layers of the ablations and of LoRA's: chosen on other scenes, where a gate gained most
ABLATIONS: Mapping[str, Mapping[str, str]] = {
    "signal mean": {"signal": "mean"},
    "signal visual": {"signal": "visual"},
    "l_sink vs rest": {"grouping": "l_sink"},
    "three groups": {"grouping": "three"},
}
SIZE = 128  # side of the pictures; the model looks at 64 pixels
UNMODIFIED = "unmodified"


def learners(vlm: VLM) -> dict[str, LSG]:
    """Fresh gates: the paper's, those that start at the unmodified model, the ablations, and gates that learn together."""
    layers = range(vlm.num_layers)
    return {
        "LSG": LSG.for_vlm(vlm, layers),
        "LSG from 1": LSG.for_vlm(vlm, layers, start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, layers, start="identity"),
        **{name: LSG.for_vlm(vlm, ABLATED, **options) for name, options in ABLATIONS.items()},
    }


def fixed(vlm: VLM) -> dict[str, Method]:
    """What does not learn."""
    ones = Gates.ones(vlm)
    return {
        UNMODIFIED: Fixed(ones),
        "0.5 everywhere": Fixed(Gates.preset("Paper's midpoint", vlm)),
        **{f"0.5, layer {layer}": Fixed(Setting(layer, 0.5, 0.5).gates(vlm)) for layer in range(vlm.num_layers)},
        "V-sinks suppressed": Suppress(),
        "V-sinks removed": Remove(),
        "VAR": VAR(),
        "sinks to the front": SinkToTheFront(),
    }


def run_seed(vlm: VLM, seed: int, out: Path, count: int, choosing: int, asked: int) -> Report:
    """Train everything once and examine it; shares are in [0, 1]."""
    began = time.time()
    examples = ExampleCache(vlm, find_sinks)
    set_seed(seed)
    gates = learners(vlm)
    apart = {
        f"{name}, layer {layer}": lsg.only([layer])
        for name, lsg in gates.items()
        if not name.endswith("joint")
        for layer in lsg.config.layers
    }
    rivals = {"LoRA": LoRA.for_vlm(vlm, ABLATED[1]), "query reweighting": Reweight.for_vlm(vlm)}
    learning: dict[str, nn.Module] = {**apart, "LSG from 1, joint": gates["LSG from 1, joint"], **rivals}
    samples = list(scene_samples(count, seed, haze=HAZE, per_scene=3, size=SIZE))
    options: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "logging_steps": 5,
        "save_steps": 40,
        "save_total_limit": 1,
    }
    keyed = {_key(name): method for name, method in learning.items()}
    report = train(keyed, vlm, samples, out=out / f"seed-{seed}", find=find_sinks, seed=seed, **options)
    trained = time.time()
    for name, lsg in gates.items():
        lsg.save_pretrained(out / f"seed-{seed}" / _key(name))
    validation = list(scene_samples(choosing, seed, split="validation", haze=HAZE, per_scene=3, size=SIZE))
    stacks = {
        name: stack(gates[name], vlm, validation, score="accuracy", examples=examples) for name in ("LSG", "LSG from 1")
    }
    methods: dict[str, Method] = {**fixed(vlm), **cast(dict[str, Method], learning)}
    methods |= {f"{name}, stack": found.lsg for name, found in stacks.items()}
    worlds = {}
    for world, haze in WORLDS.items():
        number = asked if world == "hazed" else asked // 3
        test = list(scene_samples(number, seed, split="test", haze=haze, per_scene=3, size=SIZE))
        marks = evaluate(vlm, methods, test, examples=examples)
        worlds[world] = {"marks": _table(marks), "rho": mean_rho(vlm, gates, test, examples)}
    history = [{k: v for k, v in entry.items() if "loss" in k or k == "step"} for entry in report.history]
    return {
        "seed": seed,
        "samples": len(samples),
        "steps": report.steps,
        "minutes": {"train": (trained - began) / 60, "examine": (time.time() - trained) / 60},
        "history": history,
        "stacks": {name: _stack(found) for name, found in stacks.items()},
        "worlds": worlds,
    }


def run_more(vlm: VLM, seed: int, out: Path, count: int, choosing: int, asked: int) -> Report:
    """What the first results asked for: stacks chosen by loss, all gates at once, and the best layer with five times the samples."""
    examples = ExampleCache(vlm, find_sinks)
    validation = list(scene_samples(choosing, seed, split="validation", haze=HAZE, per_scene=3, size=SIZE))
    methods: dict[str, Method] = {}
    stacks = {}
    for name in ("LSG", "LSG from 1"):
        lsg = LSG.from_pretrained(out / f"seed-{seed}" / _key(name))
        found = stack(lsg, vlm, validation, examples=examples)
        methods |= {f"{name}, stack by loss": found.lsg, f"{name}, all layers at once": lsg}
        stacks[name] = _stack(found)
    set_seed(seed)
    layers = range(vlm.num_layers)
    learning: dict[str, nn.Module] = {
        f"LSG, layer {ABLATED[1]}": LSG.for_vlm(vlm, [ABLATED[1]]),
        f"LSG from 1, layer {ABLATED[1]}": LSG.for_vlm(vlm, [ABLATED[1]], start="identity"),
        "LSG from 1, joint": LSG.for_vlm(vlm, layers, start="identity"),
        "LoRA": LoRA.for_vlm(vlm, ABLATED[1]),
    }
    samples = list(scene_samples(5 * count, seed, haze=HAZE, per_scene=3, size=SIZE))
    options: dict[str, Any] = {"per_device_train_batch_size": 32, "save_steps": 40, "save_total_limit": 1}
    keyed = {_key(name): method for name, method in learning.items()}
    train(keyed, vlm, samples, out=out / f"more-{seed}", find=LSG.for_vlm(vlm, [0]).find_sinks, seed=seed, **options)
    methods |= {f"{name}, 5 x samples": cast(Method, method) for name, method in learning.items()}
    learning["LSG from 1, joint"].save_pretrained(out / f"more-{seed}" / "joint")  # pyright: ignore[reportCallIssue]
    worlds = {}
    for world, haze in WORLDS.items():
        number = asked if world == "hazed" else asked // 3
        test = list(scene_samples(number, seed, split="test", haze=haze, per_scene=3, size=SIZE))
        worlds[world] = _table(evaluate(vlm, methods, test, examples=examples))
    return {"seed": seed, "stacks": stacks, "worlds": worlds}


def mean_rho(vlm: VLM, gates: Mapping[str, LSG], samples: list[Sample], examples: ExampleCache) -> Report:
    """Mean scale of V-sinks that each single gate gives, by kind of question and layer."""
    seen: dict[str, dict[str, dict[int, list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in ("LSG", "LSG from 1")
    }
    made = [example for sample in samples if (example := examples.prepare(sample, "")) is not None]
    with torch.no_grad():
        for start in range(0, len(made), 32):
            for part, batch in batches(vlm, made[start : start + 32]):
                prefix, chosen = Prefix(vlm, batch), made[start : start + 32][part]
                for name, table in seen.items():
                    for layer in gates[name].config.layers:
                        gate = gates[name].only([layer])
                        with gate.applied(vlm, batch) as trace:
                            prefix.within(gate)
                        for example, scale in zip(chosen, trace.scales[layer][:, 0].tolist(), strict=True):
                            table[example.kind][layer].append(scale)
    return {
        name: {kind: [fmean(of[layer]) for layer in sorted(of)] for kind, of in table.items()}
        for name, table in seen.items()
    }


def measure_oracle(vlm: VLM, seed: int, asked: int) -> Report:
    """The best fixed setting of one layer for each kind of question, on validation scenes (paper, section 3).

    ``paper`` chooses from the paper's line with its controls, ``free`` also around one.
    """
    examples = ExampleCache(vlm, find_sinks)
    choosing = list(scene_samples(asked, seed, split="validation", haze=WORLDS["hazed"], per_scene=3, size=SIZE))
    settings = oracle(vlm, points=(*LINE, *CONTROLS, *AROUND_ONE))
    methods: dict[str, Method] = {str(number): Fixed(setting.gates(vlm)) for number, setting in enumerate(settings)}
    marks = evaluate(vlm, methods, choosing, examples=examples)
    by_kind = {name: marks.by_kind(name) for name in methods}
    line = {str(i) for i, setting in enumerate(settings) if (setting.v_sink, setting.rest) not in AROUND_ONE}
    best = {}
    for way, allowed in (("paper", line), ("free", set(methods))):
        best[way] = {
            kind: vars(settings[int(max(sorted(allowed, key=int), key=lambda name, k=kind: by_kind[name][k]))])
            for kind in KINDS
        }
    return {"asked": asked, "settings": [vars(setting) for setting in settings], "accuracy": by_kind, "best": best}


def examine_oracle(vlm: VLM, best: Report, seed: int, asked: int) -> Report:
    """Which test questions the oracle's setting for their kind gets right, by way: right answers in the order of ``run_seed``."""
    examples = ExampleCache(vlm, find_sinks)
    test = list(scene_samples(asked, seed, split="test", haze=WORLDS["hazed"], per_scene=3, size=SIZE))
    found: Report = {}
    for way, cells in best.items():
        right = [0] * len(test)
        for kind, cell in cells.items():
            places = [index for index, sample in enumerate(test) if sample.kind == kind]
            method: Method = Fixed(Setting(**cell).gates(vlm))
            marks = evaluate(vlm, {"it": method}, [test[i] for i in places], examples=examples, progress=False)
            for place, mark in zip(places, marks.right["it"], strict=True):
                right[place] = int(mark)
        found[way] = right
    return found


def _stack(found: Stack) -> Report:
    return {
        "layers": list(found.lsg.config.layers),
        "unmodified": found.unmodified,
        "score": found.score,
        "singles": found.singles,
        "steps": [vars(step) for step in found.steps],
    }


def _table(marks: EvaluationResult) -> Report:
    return {"kinds": marks.kinds, "right": {name: [int(each) for each in row] for name, row in marks.right.items()}}


def _key(name: str) -> str:
    """A name that modules and folders can have."""
    return name.replace(", ", "-").replace(" ", "_")


def _saved(path: Path, made: Any) -> Report:
    """The part from disk, or made and put there."""
    if not path.exists():
        content = json.dumps(made())
        part = path.with_suffix(".part")
        part.write_text(content, encoding="utf-8")
        part.rename(path)
    return json.loads(path.read_text(encoding="utf-8"))


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; one that was stopped goes on.")],
    seeds: Annotated[
        str, typer.Option(help="Seeds of this process, with commas; several may share the folder.")
    ] = "0,1,2,3,4",
    samples: Annotated[int, typer.Option(min=1, help="Samples to learn from; each is seen twice.")] = 1560,
    choosing: Annotated[int, typer.Option(min=13, help="Validation questions, by which gates are stacked.")] = 780,
    asked: Annotated[
        int, typer.Option(min=39, help="Test questions about hazed scenes; a third as many about clear ones.")
    ] = 1950,
) -> None:
    """Run the comparison; ``python -m sinkgate.demo.comparison_card`` makes tables and figures of it."""
    out.mkdir(parents=True, exist_ok=True)
    # bfloat16 and eager attention are the fastest on two CPU cores for a model this small
    vlm = load("demo", dtype="bfloat16", attn_implementation="eager")
    for seed in map(int, seeds.split(",")):
        _saved(out / f"seed-{seed}.json", lambda seed=seed: run_seed(vlm, seed, out, samples, choosing, asked))
    for seed in map(int, seeds.split(",")):
        _saved(out / f"more-{seed}.json", lambda seed=seed: run_more(vlm, seed, out, samples, choosing, asked))
    best = _saved(out / "oracle.json", lambda: measure_oracle(vlm, 1000, max(13, choosing)))["best"]
    for seed in map(int, seeds.split(",")):
        _saved(out / f"oracle-{seed}.json", lambda seed=seed: examine_oracle(vlm, best, seed, asked))


if __name__ == "__main__":
    typer.run(main)
