"""Report of studies as one self-contained HTML page, which needs no network. Text from files is escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from itertools import count
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sinkgate.errors import SinkgateError, with_remedy
from sinkgate.output import steps, track
from sinkgate.plots import export
from sinkgate.sinks.words import number
from sinkgate.studies.base import sinks_of
from sinkgate.studies.claims import claims, table_of
from sinkgate.studies.results import Results
from sinkgate.studies.sections import SECTIONS, Section

NAMES = {
    "anatomy": "Anatomy",
    "survey": "Survey",
    "features": "Hidden states for probes",
    "probes": "Probes",
    "sweep": "Oracle sweep",
    "race": "Racing sweep",
    "eval": "Evaluation",
    "export": "Export",
}
NUMBER = re.compile(r"[-+]?[\d.,]+(e-?\d+)?%?|")
MOST_ROWS = 24  # of a table that is not collapsed
TOP, SAVED = 34, 50  # pixels: margin above a figure without its title, and the height that this saves


Contents = list[tuple[Results, list[Section]]]


def contents_of(folder: str | Path) -> Contents:
    """Return every study in a folder and below with its sections, for several files of the same report, and show the progress.

    Raises:
        SinkgateError: there is no study, or one that cannot be read.
    """
    studies = track(Results.find(folder), "report", unit="studies")
    return [(results, list(steps(_sections(results), "sections"))) for results in studies]


def write_page(folder: str | Path, out: str | Path | None = None, contents: Contents | None = None) -> Path:
    """Write one HTML page of every study in a folder and below: ``report.html`` in that folder, or ``out``.

    Unfinished studies are listed with their progress.

    Args:
        folder: of a study, or of many.
        out: path of the page.
        contents: the folder's from `contents_of`, computed here if None.

    Raises:
        SinkgateError: there is no study, or one that cannot be read; the page cannot be written.

    Example:
        >>> write_page("runs")
    """
    folder = Path(folder)
    contents = contents_of(folder) if contents is None else contents
    out = folder / "report.html" if out is None else Path(out)
    numbers = count(1)
    studies = track(contents, "page", unit="studies")
    chapters = [_chapter(f"study-{at}", *each, folder, numbers) for at, each in enumerate(studies, 1)]
    checked = claims([results for results, _ in contents])
    if checked:
        sentence = (
            "The paper's claims, checked against these results. “Undecided”: the study could not have shown the effect. "
            "The thresholds are chosen by us."
        )
        body = f'<h2 id="claims">Claims of the paper</h2><p>{sentence}</p>{_table(table_of(checked))}'
        chapters.insert(0, (_link("claims", "Claims of the paper"), body))
    page = PAGE.format(
        title=escape(f"Studies in {folder.resolve().name}"),
        style=STYLE,
        script=get_plotlyjs(),
        contents="\n".join(f"<li>{link}</li>" for link, _ in chapters),
        chapters="\n".join(f"<section>{body}</section>" for _, body in chapters),
    )
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SinkgateError(f"the page {out} cannot be written: {with_remedy(error)}") from error
    return out


def write_figures(contents: Contents, suffix: str) -> list[Path]:
    """Write every figure of a report to a file in its study's folder: "svg", "png", "pdf" or "html".

    Raises:
        SinkgateError: no such kind of file, or nothing here can draw it (see `sinkgate.plots.export`).

    Example:
        >>> write_figures(contents_of("runs"), "svg")
    """
    figures = {
        path: section.content
        for path, section in _files(contents, suffix)
        if not isinstance(section.content, pd.DataFrame)
    }
    for path, figure in track(figures.items(), "figures", unit="figures"):
        export(figure, path)
    return list(figures)


def write_tables(contents: Contents, suffix: str) -> list[Path]:
    """Write every table of a report to a file in its study's folder: "csv" with all digits, or "tex", as the page shows it.

    Raises:
        SinkgateError: no such kind of file.

    Example:
        >>> write_tables(contents_of("runs"), "csv")
    """
    if suffix not in ("csv", "tex"):
        raise SinkgateError(f"tables cannot be written as {suffix!r}; expected csv or tex")
    written = []
    for path, section in _files(contents, suffix):
        if isinstance(section.content, pd.DataFrame):
            table, label = section.content, f"tab:{path.stem}"
            text = table.to_csv(index=False) if suffix == "csv" else _latex(table, section.title, label)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def _files(contents: Contents, suffix: str) -> Iterator[tuple[Path, Section]]:
    """Yield every section with a file of its own in its study's folder; titles may differ in characters that file names lack."""
    for results, sections in contents:
        times: Counter[str] = Counter()
        for section in sections:
            times[section.slug] += 1
            again = f"-{times[section.slug]}" if times[section.slug] > 1 else ""
            yield results.folder / f"{section.slug}{again}.{suffix}", section


def _latex(table: pd.DataFrame, title: str, label: str) -> str:
    """Return a table in LaTeX with the rules of booktabs, values as the page shows them; numbers are aligned right."""
    shown = table.map(_text).rename(columns=lambda name: str(name).replace("_", " "))
    form = "".join("r" if all(map(NUMBER.fullmatch, shown[name])) else "l" for name in shown)
    return shown.to_latex(index=False, escape=True, column_format=form, caption=title, label=label)


def _chapter(
    mark: str, results: Results, sections: list[Section], folder: Path, numbers: Iterator[int]
) -> tuple[str, str]:
    """Return a study's entry in the table of contents, and its chapter; ``numbers`` give the ids of its figures."""
    title = f"{NAMES.get(results.study, results.study)}: {results.about['model'].get('name', 'unnamed model')}"
    if results.folder != folder:
        title += f" ({results.folder.relative_to(folder).as_posix()})"
    entries = [_link(f"{mark}-{at}", section.title) for at, section in enumerate(sections, 1)]
    parts = [f'<h2 id="{mark}">{escape(title)}</h2>', _state(results, folder), _facts(results.about)]
    for at, section in enumerate(sections, 1):
        content = section.content
        shown = _table(content) if isinstance(content, pd.DataFrame) else _figure(content, numbers)
        parts.append(f'<h3 id="{mark}-{at}">{escape(section.title)}</h3><p>{escape(section.sentence)}</p>{shown}')
    inner = f"<ol>{''.join(f'<li>{entry}</li>' for entry in entries)}</ol>" if entries else ""
    return _link(mark, title) + inner, "\n".join(parts)


def _sections(results: Results) -> Iterable[Section]:
    return SECTIONS[results.study](results) if results.finished and results.study in SECTIONS else ()


def _state(results: Results, folder: Path) -> str:
    """Return the paragraphs on folder and progress of a study."""
    about, done = results.about, len(results.parts)
    folder_name = f"<code>{escape(results.folder.relative_to(folder).as_posix())}</code>"
    if results.finished:
        items = results.table("items") if (results.folder / "items.parquet").is_file() else pd.DataFrame()
        sinks = escape(sinks_of(items)).splitlines()
        return "".join(
            f"<p>{line}</p>" for line in (f"Folder {folder_name}, finished {_minute(about['finished'])}.", *sinks)
        )
    return (
        f'<p>Folder {folder_name}, begun {_minute(about["started"])}.</p><p class="unfinished">Not finished: {done} of '
        f"{about['units']} parts are there. The same command continues it.</p>"
    )


def _minute(moment: str) -> str:
    """Return a moment of a record, in ISO format, as words."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _link(mark: str, title: str) -> str:
    return f'<a href="#{mark}">{escape(title)}</a>'


def _facts(about: dict[str, Any]) -> str:
    """Return model, data, settings and versions as a small table."""
    made_with = about["made_with"]
    facts = {key: about[key] for key in ("model", "data", "settings", "units")}
    if about.get("about"):
        facts["about"] = about["about"]  # seeds, limits, paths
    facts["made with"] = made_with[0] if len(made_with) == 1 else dict(enumerate(made_with, 1))
    facts |= {"started": about["started"], "finished": about["finished"] or "not yet"}
    rows = [
        f"<tr><th>{escape(str(name))}</th><td>{escape(shorten(str(value), 300))}</td></tr>"
        for name, value in pd.json_normalize(facts, sep=", ").iloc[0].items()
    ]
    return f"<details><summary>Model, data and settings</summary><div class='table'><table>{''.join(rows)}</table></div></details>"


def _figure(figure: go.Figure, numbers: Iterator[int]) -> str:
    """Return a figure on the page's background, without its title, which the heading above it repeats."""
    shown = go.Figure(figure).update_layout(
        title=None,
        margin_t=TOP,
        height=figure.to_plotly_json()["layout"]["height"] - SAVED,
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
    )
    drawn = shown.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{next(numbers)}",
        config={"displaylogo": False, "responsive": True, "toImageButtonOptions": {"format": "svg"}},
    )
    return f'<div class="figure">{drawn}</div>'


def _table(frame: pd.DataFrame) -> str:
    """Return a table, numbers aligned right; collapsed if it is long."""
    columns = []
    for name, values in frame.items():
        cells = [_text(value) for value in values]
        kind = "number" if all(map(NUMBER.fullmatch, cells)) else "long" if max(map(len, cells)) > 30 else "word"
        head = str(name).replace("_", " ")
        columns.append(
            [f'<th class="{kind}">{escape(head)}</th>', *(f'<td class="{kind}">{escape(cell)}</td>' for cell in cells)]
        )
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in zip(*columns, strict=True))
    html = f'<div class="table"><table>{rows}</table></div>'
    return html if len(frame) <= MOST_ROWS else f"<details><summary>{len(frame)} rows</summary>{html}</details>"


def _text(value: Any) -> str:
    """Return a value as text, with three significant digits."""
    if isinstance(value, float):
        return "" if pd.isna(value) else number(value)
    return str(value)


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>{script}</script>
</head>
<body>
<header><h1>{title}</h1></header>
<nav><ol>{contents}</ol></nav>
<main>{chapters}</main>
</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6770; --line: #e3e7eb; --card: #fff; --page: #f6f7f9; --link: #1864ab; --warn: #a61e4d; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e9edf1; --soft: #a5b0ba; --line: #2b333b; --card: #12171b; --page: #0b0f12; --link: #74c0fc; --warn: #faa2c1; }
  .figure:not(:has(.heatmaplayer image)) .main-svg { filter: brightness(1.35); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 0 20px 60px; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 32px 0 8px; }
h2 { font-size: 21px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 36px 0 4px; }
h1, h2, h3, p, code, li { overflow-wrap: anywhere; }
h2, h3 { scroll-margin-top: 12px; }
h2, h3, h3 + p { break-after: avoid; }
p { margin: 0 0 8px; max-width: 74ch; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { font-size: 14px; columns: 2 320px; margin-bottom: 24px; }
nav > ol > li { margin-bottom: 8px; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav ol ol { padding-left: 16px; }
main > section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px; margin-bottom: 20px; }
.figure, .table { overflow-x: auto; }
.figure { break-inside: avoid; }
.figure > div { min-width: 680px; }
.figure .main-svg text:not(.heatmap-label *, .hoverlayer *) { fill: var(--ink) !important; }
.unfinished { color: var(--warn); font-weight: 600; }
summary { cursor: pointer; color: var(--soft); margin: 8px 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; }
.word { white-space: nowrap; }
.long { min-width: 26ch; }
@media (max-width: 600px) { body { padding: 0 10px 30px; } main > section { padding: 14px 12px; } }
@media print { body { max-width: none; padding: 0; background: none; } main > section { border: 0; padding: 0; } nav { columns: 1; } .figure { zoom: 0.6; } details::details-content { content-visibility: visible; block-size: auto; } }
"""
