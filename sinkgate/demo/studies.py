"""Studies of the demo models: the paper's analyses, and their card with a verdict on each claim.

``python -m sinkgate.demo studies demo-large --out runs/studies``. A study is written part by part, and the same command resumes a run.
The published results are in ``studies/`` and ``studies-large/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sinkgate.analysis.sweep import LINE, grid
from sinkgate.benchmarks import SCENES, Item
from sinkgate.benchmarks.scenes import SIZE
from sinkgate.data.scenes import scene_facts, scene_samples
from sinkgate.demo.scoring import held_out
from sinkgate.demo.sinks import SceneSinks
from sinkgate.methods import VAR, Fixed, Method, Remove, SinkToTheFront, Suppress, registry
from sinkgate.methods.lsg import LSG
from sinkgate.methods.registers import find_register_neurons
from sinkgate.models.finder import SinkFinder
from sinkgate.models.loading import BUILT_IN, load
from sinkgate.models.vlm import VLM
from sinkgate.plots import export
from sinkgate.sinks.gates import Gates
from sinkgate.studies.anatomy import Anatomy, means_by_layer
from sinkgate.studies.claims import claims
from sinkgate.studies.evaluation import BASE, Evaluation, attention_by_method, changes, scores
from sinkgate.studies.features import Features
from sinkgate.studies.html_report import write_page
from sinkgate.studies.probes import Probes
from sinkgate.studies.results import Results
from sinkgate.studies.runner import run
from sinkgate.studies.sweep import Sweep

HERE = Path(__file__).parent
HAZE = (0.0, 0.7)  # of the scenes with room to gain: on clear ones both models are near their ceiling
CLEAR = (0.0, 0.0)
THREE = (0.0, 0.5, 1.0, 2.0)  # scales of the grid with L-sinks apart
SEEDS = (11, 12, 13, 14, 15)
Points = Sequence[tuple[float, ...]]
#: Figures of the card: folder of the study, title of the section.
FIGURES = (
    ("sweep-clear", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Searched against confirmed"),
    ("probes", "What tokens know of the scene: accuracy"),
    ("anatomy", "Spikes"),
    ("anatomy", "Attention of the text"),
    ("anatomy", "Broadcast or no-op, head by head"),
    ("groups", "What each method changes"),
    ("eval", "What each method changes"),
)


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
        "and there are no L-sinks worth the name ([card](../weights/README.md)): these results are true of this model, not of the paper's "
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
        BASE: Fixed(ones),
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
        BASE: Fixed(Gates.ones(vlm)),
        **{name: registry.published(name) for name in names},
        **{f"registers of {count} neurons": find_register_neurons(vlm, prompts, count=count) for count in (10, 40)},
    }


def methods(vlm: VLM, gates: Path, learned: Sequence[str]) -> dict[str, Method]:
    """Return the unmodified model, learned gates by name of their folder, and the baselines without training."""
    return {
        BASE: Fixed(Gates.ones(vlm)),
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
        fast: the model in bfloat16, for the others.
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
        return evaluated(items, {BASE: Fixed(Gates.ones(fast))}, out, seed="1, 2, 3", haze=CLEAR)

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
    fast = load(plan.model, dtype="bfloat16", attn_implementation="eager")  # the fastest on a CPU
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


def card(plan: Plan, results: dict[str, Results], folder: Path) -> str:
    """Return the card in Markdown: each claim with its verdict and numbers. Figures are written into ``folder``."""
    from sinkgate.studies.sections import SECTIONS

    lines = [
        f"# The paper's analyses on the {plan.weights.name.removeprefix('weights').strip('-') or 'small'} demo model",
        "",
        f"Written by `python -m sinkgate.demo studies`; `sinkgate report` makes a page with every figure of these tables. {plan.about}",
        "The thresholds of the verdicts are in `sinkgate/studies/claims.py`, chosen by us; the paper does not say.",
        "",
        "| study | samples | tables |",
        "|---|---:|---|",
    ]
    for name, result in results.items():
        tables = ", ".join(f"`{file.stem}`" for file in sorted(result.folder.glob("*.parquet")))
        lines.append(f"| [`{name}`]({name}/study.json) | {_count(result):,} | {tables} |")
    lines += ["", "## Claims of the paper", ""]
    for name, result in results.items():
        # the sweep with three groups has too few points of the line for the other claims
        verdicts = [claim for claim in claims([result]) if claim.claim.startswith("O3") == (name == "sweep-three")]
        if verdicts:
            lines += [f"### {name}", "", "| paper | claim | verdict | numbers |", "|---|---|---|---|"]
            lines += [f"| {each.source} | {each.claim} | **{each.verdict}** | {each.numbers} |" for each in verdicts]
            lines.append("")
    if "anatomy" in results:
        lines += ["## Attention of the text by group", "", attention_table(results["anatomy"]), ""]
    if "groups" in results:
        lines += ["## Each group's Keys at 0", "", groups_table(results["groups"]), ""]
    if "methods" in results:
        lines += ["## Methods without training", "", methods_table(results["methods"]), ""]
    lines += ["## Figures", ""]
    for name, title in FIGURES:
        sections = SECTIONS[results[name].study](results[name]) if name in results else ()
        section = next((each for each in sections if each.title == title), None)
        if section is None or isinstance(section.content, pd.DataFrame):
            continue
        file = f"{name}-{section.slug}.svg"
        export(section.content, folder / file)
        lines += [f"### {title} ({name})", "", section.sentence, "", f"![{title}]({file})", ""]
    return "\n".join(lines)


def published(plan: Plan) -> dict[str, Results]:
    """Return a plan's published studies by name."""
    return {name: Results.load(plan.folder / name) for name in plan.names if (plan.folder / name).exists()}


def attention_table(anatomy: Results) -> str:
    """Return tokens, attention a token and spike of each group by layer, means over images, in Markdown."""
    lines = [
        "Means over images: tokens, the share of the text's attention that one token gets (paper, LLaVA-1.5-7B: ordinary 0.15 %, L-sink 1.27 %, "
        "V-sink 1.13 %), and the largest magnitude in the LLM's sink dimensions.",
        "",
        "| layer | group | tokens | attention a token | spike |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in means_by_layer(anatomy.table("tokens")).to_dict("records"):
        spike = row.get("spike", float("nan"))
        shown = "" if pd.isna(spike) else f"{spike:.1f}"
        lines.append(f"| {row['layer']} | {row['group']} | {row['tokens']:.1f} | {row['per_token']:.2%} | {shown} |")
    return "\n".join(lines)


def groups_table(results: Results) -> str:
    """Return the scores of global and local questions under each method, and their changes, in Markdown."""
    table = scores(SCENES, results.table("items"), results.table("answers"))
    lines = [
        "Accuracy on clear scenes in percent; the change from the unmodified model in points, with its 95 % interval.",
        "",
        "| method | questions | accuracy | change |",
        "|---|---|---:|---:|",
    ]
    for row in table[table["score"].isin(["global", "local"])].to_dict("records"):
        change = "" if row["method"] == BASE else _change(row)
        lines.append(f"| {row['method']} | {row['score']} | {row['value']:.1%} | {change} |")
    return "\n".join(lines)


def methods_table(results: Results) -> str:
    """Return accuracy and attention of the methods without training, in Markdown."""
    items, answers = results.table("items"), results.table("answers")
    of_all = changes(items, answers).query("task == 'all'").set_index("method")
    shares = attention_by_method(results.table("attention")).set_index("method")
    marks = answers.merge(items.assign(seed=items["id"].str.split("/").str[1])[["sample", "seed"]], on="sample")
    by_seed = marks.pivot_table("right", "seed", "method", "mean", sort=False)
    deviation = by_seed.sub(by_seed[BASE], axis=0).std()
    lines = [
        f"Published methods with our defaults, which are their papers' where these name one, and variants, on {len(items):,} questions about scenes with {results.about['about']['haze']:.0%} of the contrast gone, five seeds. "
        "The change is in points against the unmodified model, with its 95 % interval over pictures and the standard deviation over seeds; the last columns are the "
        "attention of the prompt's last position, mean over heads, layers and questions.",
        "",
        "| method | accuracy | change | over seeds | V-sinks | L-sinks | ordinary | text |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in zip(map(str, shares.index), shares.to_dict("records"), strict=True):
        changed = " | " if name == BASE else f"{_change(of_all.loc[name])} | {100 * deviation[name]:.1f}"
        groups = " | ".join(f"{row[group]:.1%}" for group in ("v_sink", "l_sink", "ordinary", "text"))
        lines.append(f"| {name} | {by_seed[name].mean():.1%} | {changed} | {groups} |")
    return "\n".join(lines)


def _change(row: Any) -> str:
    """Return a change in points with its interval."""
    return f"{100 * row['change']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def _publish(out: Path, results: dict[str, Results], folder: Path) -> None:
    for name, result in results.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (*result.folder.glob("*.parquet"), result.folder / "study.json"):
            shutil.copy(file, folder / name)
    for file in (*out.glob("*.svg"), out / "README.md"):
        shutil.copy(file, folder)


def _count(results: Results) -> int:
    data = results.about["data"]
    return data.get("samples") or data.get("pictures") or 0
