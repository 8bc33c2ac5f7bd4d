"""Commands that run studies: anatomy, probe, sweep, eval."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinkgate.cli.data import DataChoice
from sinkgate.cli.options import (
    AnyModel,
    AsJson,
    Chunk,
    Layers,
    MaxNewTokens,
    ModelChoice,
    RunChoice,
    SinkChoice,
    print_json,
    print_sinks,
    print_table,
    records,
    refuse_unused,
    unfolded,
)
from sinkgate.errors import SinkgateError

if TYPE_CHECKING:
    from sinkgate.methods import Method


@unfolded
def anatomy(
    model: ModelChoice,
    data: DataChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    layers: Layers = "all",
    batch_size: Chunk = 8,
    as_json: AsJson = False,
) -> None:
    """Measure norms, spikes, attention, Values and outputs of V-sinks, L-sinks and ordinary tokens, layer by layer."""
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.studies.anatomy import Anatomy, by_layer, means_by_layer

    questions, find = data.questions(), criteria.finder()
    samples = [item.sample for item in questions.items]
    vlm = model.load()
    at = read_layers(layers, vlm.num_layers)
    about = questions.about | print_sinks(find, vlm)
    study = Anatomy(vlm, samples, v_sink=find.v_sink, l_sink=find.l_sink, layers=at, chunk=batch_size, about=about)
    with ExitStack() as scratch:
        if results := runs.run(study, scratch):
            tokens = results.table("tokens")
            print_table(by_layer(tokens) if as_json else means_by_layer(tokens), as_json)


@unfolded
def probe(
    model: ModelChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    data: Annotated[str, typer.Option(help='"scenes" (the demo world), or a scene file of CLEVR.')] = "scenes",
    images: Annotated[Path | None, typer.Option(help="Folder of CLEVR's images.")] = None,
    limit: Annotated[int, typer.Option(min=10, help="Most pictures.")] = 2000,
    seed: Annotated[int, typer.Option(help="Another seed: other scenes, other draws, other splits.")] = 0,
    layers: Layers = "all",
    tokens: Annotated[int, typer.Option(min=1, help="Ordinary tokens in a draw.")] = 5,
    draws: Annotated[int, typer.Option(min=2, help="Draws of ordinary tokens, and splits into train and test.")] = 5,
    batch_size: Chunk = 16,
    jobs: Annotated[int, typer.Option(help="Processes that fit probes side by side; -1 is one for each core.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Fit linear probes on V-sinks, L-sinks and ordinary tokens in every layer."""
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.studies.features import Features
    from sinkgate.studies.probes import Probes, against_shuffled, summary
    from sinkgate.studies.results import Results
    from sinkgate.studies.runner import Shard

    if jobs < 1 and jobs != -1:
        raise SinkgateError(f"--jobs is {jobs}; expected 1 or more, or -1 for one on each core")
    pictures, find = _pictures(data, images, limit, seed), criteria.finder()
    vlm = model.load()
    at = read_layers(layers, vlm.num_layers)
    print_sinks(find, vlm)
    options: dict[str, Any] = {"v_sink": find.v_sink, "l_sink": find.l_sink}
    options |= {"layers": at, "tokens": tokens, "draws": draws}
    about = {"data": data, "limit": limit, "seed": seed}
    features = Features(vlm, pictures, about, **options, seed=seed, chunk=batch_size)
    with ExitStack() as scratch:
        before = runs.out / "features" if runs.out else None
        complete = before is not None and (before / "study.json").exists() and Results.load(before).finished
        results_of_features = runs.run(features, scratch, "features")
        if results_of_features is None:
            return
        fits = Probes.of(results_of_features, seed=seed, jobs=jobs)
        # the process that finishes the features fits all probes, since the others have stopped; features of an earlier run are shared
        if results := runs.run(fits, scratch, shard=runs.share if complete else Shard()):
            scores = results.table("scores")
            print_table(summary(scores) if as_json else against_shuffled(scores), as_json)


@unfolded
def sweep(
    model: ModelChoice,
    data: DataChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    layers: Layers = "all",
    free: Annotated[
        str | None, typer.Option("--grid", help="Scales such as 0,0.5,1,2: every pair of them beside the paper's line.")
    ] = None,
    three: Annotated[bool, typer.Option("--three", help="With --grid: a separate scale for L-sinks.")] = False,
    racing: Annotated[
        bool,
        typer.Option(
            "--racing", help="Drop settings that cannot be the best, or gain too little, as items are answered."
        ),
    ] = False,
    margin: Annotated[
        float | None, typer.Option(help="With --racing: the smallest gain worth finding; 0.02 if left out.")
    ] = None,
    batch_size: Chunk = 8,
    as_json: AsJson = False,
) -> None:
    """Run the oracle sweep: every layer alone, V-sinks against the rest along the paper's line.

    With several GPUs: accelerate launch -m sinkgate sweep --out DIR ...
    """
    from sinkgate.analysis.racing import MARGIN
    from sinkgate.analysis.sweep import CONTROLS, LINE, grid
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.studies.base import sinks_of
    from sinkgate.studies.race import RacingSweep, placed, saved
    from sinkgate.studies.sweep import Sweep, confirmed

    points: Sequence[tuple[float, ...]] = (*LINE, *CONTROLS)
    if three and not free:
        raise SinkgateError("--three needs the scales of --grid, such as --grid 0,0.5,1,2")
    if free:
        points = (*points, *grid(_scales(free)), *(grid(_scales(free), 3) if three else ()))
    if margin is not None and not racing:
        raise SinkgateError("--margin belongs to --racing")
    if not three and (criteria.l_sink or criteria.dimensions):
        note = "L-sinks are scaled as the rest here, by any criterion; --grid with --three scales them separately"
        typer.echo(note, err=True)
    questions, find = data.questions(), criteria.finder(l_sinks=three)
    vlm = model.load()
    about = questions.about | print_sinks(find, vlm)
    common = vlm, questions.items, read_layers(layers, vlm.num_layers), points, batch_size, find, about
    study = Sweep(*common)
    if racing:
        study = RacingSweep(*common, margin=MARGIN if margin is None else margin, seed=data.seed)
    with ExitStack() as scratch:
        if results := runs.run(study, scratch):
            items = results.table("items")
            if racing:
                answers = results.table("answers")
                print_table(placed(answers, results.table("dropped"), data.seed), as_json)
                typer.echo(f"{saved(answers):.1f} times fewer answers than the exact map", err=True)
                return
            print_table(confirmed(items, results.table("answers"), seed=data.seed), as_json)
            typer.echo(sinks_of(items), err=True)


@unfolded
def evaluate(
    model: ModelChoice,
    data: DataChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    gates: Annotated[
        list[Path] | None, typer.Option(help="Folder of learned gates, or JSON file of fixed ones; once for each.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help='A published method by name, such as var or front, with options as words: "vaf image 1.3"; once for each.'
        ),
    ] = None,
    scoring: Annotated[
        str,
        typer.Option(
            "--scoring",
            "--asking",
            help="likelihood: the most probable option, in one forward; generate: the generated answer, read by an extractor. "
            "Also by their old names, forced and written.",
        ),
    ] = "likelihood",
    extractor: Annotated[
        str, typer.Option(help="Rule that reads generated answers: robust, or a published one.")
    ] = "robust",
    max_new_tokens: MaxNewTokens = 32,
    attention: Annotated[
        bool, typer.Option("--attention", help="Measure the attention on each group under each method, too.")
    ] = False,
    batch_size: Chunk = 16,
    any_model: AnyModel = False,
    as_json: AsJson = False,
) -> None:
    """Score the unmodified model, gates and published methods on a benchmark."""
    from sinkgate.methods import Fixed
    from sinkgate.methods.base import UNMODIFIED
    from sinkgate.methods.registry import published, read_method
    from sinkgate.models.dimensions import WEIGHTS
    from sinkgate.sinks.gates import Gates
    from sinkgate.studies.base import sinks_of
    from sinkgate.studies.evaluation import Evaluation, accuracies, attention_by_method, scores, scoring_named, unread
    from sinkgate.studies.provenance import checksum_of

    # wrong options are refused before the model is loaded
    if scoring_named(scoring) == "generate" and attention:
        raise SinkgateError("--attention needs likelihood scoring; got generate")
    if scoring_named(scoring) == "likelihood":
        refuse_unused(
            {"extractor": (extractor, "robust"), "max_new_tokens": (max_new_tokens, 32)},
            "which likelihood scoring does not use; leave it out, or give --scoring generate",
        )
    methods: dict[str, Method] = {name: published(name) for name in method or ()}
    benchmark, items, about = data.questions()
    vlm = model.load()
    origins: dict[str, str | None] = {}
    names = [path.name for path in gates or ()]
    for path in gates or ():
        name = path.name if names.count(path.name) == 1 and path.name not in (*methods, UNMODIFIED) else str(path)
        if name in (*methods, UNMODIFIED):
            raise SinkgateError(f"two methods have the name {name!r}; rename the folder or file {path}")
        methods[name] = read_method(path, vlm, any_model)
        origins[name] = checksum_of(path, (*WEIGHTS, ".json"))
    methods = {UNMODIFIED: Fixed(Gates.ones(vlm)), **methods}
    find = criteria.finder(methods.values())
    about |= {"gates": [str(path) for path in gates or ()], **print_sinks(find, vlm)}
    reading = scoring_named(scoring), extractor, max_new_tokens, batch_size, find, attention
    study = Evaluation(vlm, benchmark, items, methods, *reading, origins=origins, about=about)
    with ExitStack() as scratch:
        results = runs.run(study, scratch)
        if results is None:
            return
        tables = results.table("items"), results.table("answers")
        by_task, named = accuracies(*tables), scores(benchmark, *tables)
        shares = attention_by_method(results.table("attention")) if attention else None
        typer.echo("\n".join(filter(None, (sinks_of(tables[0]), unread(tables[1])))), err=True)
    if as_json:
        right = by_task.set_index("task")
        kinds = right.drop("all").to_dict()
        each = {name: {"accuracy": right.loc["all", name], "kinds": kinds[name]} for name in methods}
        for row in () if shares is None else shares.to_dict("records"):
            each[str(row.pop("method"))]["attention"] = row
        print_json(samples=len(tables[0]), methods=each, scores=records(named))
        return
    for table in (by_task, named) if shares is None else (by_task, named, shares):
        typer.echo(table.to_string(index=False, float_format="{:.1%}".format))


def _pictures(data: str, images: Path | None, limit: int, seed: int) -> list[Any]:
    from sinkgate.data import read_clevr, scene_facts
    from sinkgate.data.llava import exists, named

    if data == "scenes":
        if images is not None:
            raise SinkgateError(f"--images is {images}, which scenes does not use; leave it out, or give --data")
        return list(scene_facts(limit, seed, split="test"))
    if not exists(data):
        raise SinkgateError(
            f'--data is {named(data)}; there is no such file: expected "scenes", or a scene file of CLEVR'
        )
    if images is None:
        raise SinkgateError("--images is missing; expected the folder of CLEVR's pictures")
    return read_clevr(data, images, limit=limit)


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 <= scale <= 4 for scale in scales):
        raise SinkgateError(f"--grid is {text!r}; expected scales from 0 to 4 such as 0,0.5,1,2")
    return scales
