"""Commands that read the results of studies: compare-models, report, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sinkgate import output


def compare_models(
    cards: Annotated[list[Path], typer.Argument(help="Folders of surveys, or their survey.json; two or more.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Compare models by the cards of their surveys, side by side."""
    from sinkgate.studies import survey as surveys

    table = surveys.compared([surveys.read_card(path) for path in cards])
    typer.echo(output.markdown(["", *table.columns], table.itertuples()) if markdown else table.to_string())


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, or of many.")],
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the folder if left out.")] = None,
    figures: Annotated[
        Literal["svg", "png", "pdf", "html"] | None, typer.Option(help="Also write each figure to a file of this kind.")
    ] = None,
    tables: Annotated[
        Literal["csv", "tex"] | None, typer.Option(help="Also write each table to a file of this kind, for a paper.")
    ] = None,
) -> None:
    """Write one self-contained page of figures and tables on every study in a folder."""
    from sinkgate.studies.html_report import contents_of, write_figures, write_page, write_tables

    contents = contents_of(folder)
    typer.echo(f"written to {write_page(folder, out, contents)}")
    if tables:
        typer.echo(f"{len(write_tables(contents, tables))} tables as .{tables}, in the studies' folders")
    if figures:
        typer.echo(f"{len(write_figures(contents, figures))} figures as .{figures}, in the studies' folders")


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders with parts of one study.")],
    out: Annotated[Path, typer.Option(help="Folder for the joined study.")],
) -> None:
    """Join the parts of one study from machines without a common disk (see --shard)."""
    from sinkgate.studies.runner import gather

    results = gather(folders, out)
    state = "finished" if results.finished else "not finished"
    typer.echo(f"{len(results.parts)} of {results.about['units']} parts in {out}: {state}")
