"""Card of a demo model's studies: a verdict on each claim, tables and figures, in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from sinkgate.benchmarks import SCENES
from sinkgate.demo.plans import Plan
from sinkgate.methods.base import UNMODIFIED
from sinkgate.output import markdown
from sinkgate.plots import export
from sinkgate.studies.anatomy import means_by_layer, over_pictures
from sinkgate.studies.claims import claims
from sinkgate.studies.evaluation import attention_by_method, changes, scores
from sinkgate.studies.results import Results
from sinkgate.studies.sections import SECTIONS

#: Figures of the card: folder of the study, title of the section.
FIGURES = (
    ("sweep-clear", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Which way each task leans, layer by layer"),
    ("sweep-hazed", "Searched against confirmed"),
    ("probes", "Information on the scene in tokens: accuracy"),
    ("anatomy", "Spikes"),
    ("anatomy", "Attention of the text"),
    ("anatomy", "Broadcast or no-op, head by head"),
    ("groups", "What each method changes"),
    ("eval", "What each method changes"),
)


def card(plan: Plan, results: dict[str, Results], folder: Path) -> str:
    """Return the card in Markdown: each claim with its verdict and numbers. Figures are written into ``folder``."""
    lines = [
        f"# The paper's analyses on the {plan.weights.name.removeprefix('weights').strip('-') or 'small'} demo model",
        "",
        f"Written by `python -m sinkgate.demo studies`; `sinkgate report` makes a page with every figure of these tables. {plan.about}",
        "The thresholds of the verdicts are in `sinkgate/studies/claims.py`, chosen by us; the paper does not say.",
        "",
        markdown(
            ("study", "samples", "tables"),
            [(f"[`{name}`]({name}/study.json)", f"{_count(each):,}", _tables(each)) for name, each in results.items()],
        ),
    ]
    lines += ["", "## Claims of the paper", ""]
    for name, result in results.items():
        # the sweep with three groups has too few points of the line for the other claims
        verdicts = [claim for claim in claims([result]) if claim.claim.startswith("O3") == (name == "sweep-three")]
        if verdicts:
            rows = [(each.source, each.claim, f"**{each.verdict}**", each.numbers) for each in verdicts]
            lines += [f"### {name}", "", markdown(("paper", "claim", "verdict", "numbers"), rows), ""]
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


def _tables(results: Results) -> str:
    return ", ".join(f"`{file.stem}`" for file in sorted(results.folder.glob("*.parquet")))


def _count(results: Results) -> int:
    data = results.about["data"]
    return data.get("samples") or data.get("pictures") or 0


def attention_table(anatomy: Results) -> str:
    """Return tokens, attention a token and spike of each group by layer, means over images, in Markdown."""
    rows = []
    for row in means_by_layer(over_pictures(anatomy.table("tokens"), anatomy.table("images"))).to_dict("records"):
        spike = row.get("spike", float("nan"))
        shown = "" if pd.isna(spike) else f"{spike:.1f}"
        rows.append((row["layer"], row["group"], f"{row['tokens']:.1f}", f"{row['per_token']:.2%}", shown))
    return (
        "Means over images: tokens, the share of the text's attention that one token gets (paper, LLaVA-1.5-7B: ordinary 0.15 %, L-sink 1.27 %, "
        "V-sink 1.13 %), and the largest magnitude in the LLM's sink dimensions.\n\n"
    ) + markdown(("layer", "group", "tokens", "attention a token", "spike"), rows)


def groups_table(results: Results) -> str:
    """Return the scores of global and local questions under each method, and their changes, in Markdown."""
    table = scores(SCENES, results.table("items"), results.table("answers"))
    rows = [
        (row["method"], row["score"], f"{row['value']:.1%}", "" if row["method"] == UNMODIFIED else _change(row))
        for row in table[table["score"].isin(["global", "local"])].to_dict("records")
    ]
    return (
        "Accuracy on clear scenes in percent; the change from the unmodified model in points, with its 95 % interval.\n\n"
    ) + markdown(("method", "questions", "accuracy", "change"), rows)


def methods_table(results: Results) -> str:
    """Return accuracy and attention of the methods without training, in Markdown."""
    items, answers = results.table("items"), results.table("answers")
    of_all = changes(items, answers).query("task == 'all'").set_index("method")
    shares = attention_by_method(results.table("attention")).set_index("method")
    marks = answers.merge(items.assign(seed=items["id"].str.split("/").str[1])[["sample", "seed"]], on="sample")
    by_seed = marks.pivot_table("right", "seed", "method", "mean", sort=False)
    deviation = by_seed.sub(by_seed[UNMODIFIED], axis=0).std()
    text = (
        f"Published methods with our defaults, which are their papers' where these name one, and variants, on {len(items):,} questions about scenes with {results.about['about']['haze']:.0%} of the contrast gone, five seeds. "
        "The change is in points against the unmodified model, with its 95 % interval over pictures and the standard deviation over seeds; the last columns are the "
        "attention of the prompt's last position, mean over heads, layers and questions.\n\n"
    )
    rows = []
    for name, row in zip(map(str, shares.index), shares.to_dict("records"), strict=True):
        changed = ("", "") if name == UNMODIFIED else (_change(of_all.loc[name]), f"{100 * deviation[name]:.1f}")
        groups = (f"{row[group]:.1%}" for group in ("v_sink", "l_sink", "ordinary", "text"))
        rows.append((name, f"{by_seed[name].mean():.1%}", *changed, *groups))
    columns = ("method", "accuracy", "change", "over seeds", "V-sinks", "L-sinks", "ordinary", "text")
    return text + markdown(columns, rows)


def _change(row: Any) -> str:
    """Return a change in points with its interval."""
    return f"{100 * row['change']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
