"""Commands that study image files: export, survey."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkgate.cli.data import DataChoice
from sinkgate.cli.options import (
    QUESTION,
    AsJson,
    Chunk,
    Layers,
    MaxNewTokens,
    ModelChoice,
    RunChoice,
    SinkChoice,
    defaults_of,
    print_json,
    print_sinks,
    print_table,
    refuse_unused,
    unfolded,
)
from sinkgate.errors import SinkgateError

MOST_SAMPLES = 20  # of an export that are printed
AboutImages = Annotated[list[str] | None, typer.Option(help="Question about each image; once for each question.")]


@unfolded
def export(
    model: ModelChoice,
    data: DataChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES...", help="Image files and folders of them; --data if left out."),
    ] = None,
    question: AboutImages = None,
    layers: Layers = "all",
    words: Annotated[int, typer.Option(min=0, help="Words of the logit lens for each visual token and layer.")] = 3,
    rows: Annotated[int, typer.Option(min=0, help="Attention rows, from the first generated token on.")] = 1,
    max_new_tokens: MaxNewTokens = 32,
    batch_size: Chunk = 8,
    as_json: AsJson = False,
) -> None:
    """Export attention, shares of groups, sinks with evidence and logit-lens words of many images as Parquet tables."""
    from sinkgate.sinks.numbers import read_layers
    from sinkgate.studies.export import Export, samples_of

    if runs.out is None:
        raise SinkgateError("--out is missing; expected the folder for the tables")
    if pictures:
        refuse_unused(defaults_of(data), "and IMAGES are exported without it; leave out one of the two")
        samples, about = samples_of(pictures, question or [QUESTION]), {"images": [str(path) for path in pictures]}
    elif question:
        raise SinkgateError("--question asks about IMAGES; name image files or folders, or leave it out with --data")
    else:
        samples, about = data.samples("test"), data.about
    find = criteria.finder()
    vlm = model.load()
    at = read_layers(layers, vlm.num_layers)
    about = about | print_sinks(find, vlm)
    study = Export(vlm, samples, find, at, words, rows, max_new_tokens, batch_size, about)
    with ExitStack() as scratch:
        if results := runs.run(study, scratch):
            samples = results.table("samples")
            print_table(samples if as_json else samples.head(MOST_SAMPLES), as_json)
            if not as_json and len(samples) > MOST_SAMPLES:
                typer.echo(f"... and {len(samples) - MOST_SAMPLES} more in {results.folder / 'samples.parquet'}")


@unfolded
def survey(
    model: ModelChoice,
    runs: RunChoice,
    criteria: SinkChoice,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGES...",
            help="Image files and folders of them; if left out, eight photographs that come with sinkgate, or scenes for a model of scenes only.",
        ),
    ] = None,
    question: AboutImages = None,
    scale: Annotated[float, typer.Option(min=0, max=4, help="Scale whose effect is measured, layer by layer.")] = 0.5,
    push: Annotated[
        str | None, typer.Option(help="Data set of the Hub to upload card and page to, such as you/sinks.")
    ] = None,
    batch_size: Chunk = 4,
    as_json: AsJson = False,
) -> None:
    """Survey a model's sinks: dimensions, V-sinks and L-sinks by each criterion, attention, and the effect of a scale. Writes a card and a page."""
    from sinkgate.studies.html_report import write_page
    from sinkgate.studies.hub import check_target
    from sinkgate.studies.hub import push as upload
    from sinkgate.studies.survey import Survey, card, compared, samples_for, write_card

    if push:
        if runs.out is None:
            raise SinkgateError("--push uploads a folder; expected it as --out")
        check_target(push, connect=runs.share.rank == 0)
    find, vlm = criteria.finder(), model.load()
    samples, about = samples_for(vlm, pictures, question)
    about = about | print_sinks(find, vlm)
    by: dict[str, Any] = {"v_sink": find.v_sink, "l_sink": find.l_sink}
    study = Survey(vlm, samples, **by, chunk=batch_size, about=about, scale=scale)
    with ExitStack() as scratch:
        results = runs.run(study, scratch)
        if results is None:
            return
        if as_json:
            print_json(**card(results))
        else:
            typer.echo(compared([card(results)]).to_string())
        if runs.out is not None:
            files = [write_card(results), write_page(results.folder)]
            typer.echo("\n".join(f"wrote {file}" for file in files), err=True)
            if push:
                typer.echo(f"uploaded {upload(results, push)}", err=True)
