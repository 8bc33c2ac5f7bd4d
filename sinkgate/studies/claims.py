"""What the paper found, asked of the results at hand: reproduced, in part, not, or not to be asked on this model and data.

Each claim says where the paper makes it and gives the numbers that decide. What "reproduced" asks of them is ours, and said with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from sinkgate.analysis.statistics import sign_test
from sinkgate.errors import SinkgateError
from sinkgate.studies.results import Results
from sinkgate.studies.sweep import confirmed, groups_apart, leaning

Verdict = Literal["reproduced", "in part", "not reproduced", "cannot be asked"]
LEVEL = 0.05  # of corrected p values
LITTLE = 0.01  # in accuracy; two standard errors over tasks decide
TARGETS = (
    "count",
    "largest",
    "colors",
    "shapes",
)  # that the paper probes for; others are left out where these are there
OFTEN = 0.5  # share of the pictures that must have a group in a layer: with fewer, it is compared across other pictures
REASONING = ("reasoning", "logical", "math")  # in the names of tasks that ask for it


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, with the verdict and what it rests on; ``study`` is the folder of the results."""

    source: str
    claim: str
    verdict: Verdict
    numbers: str
    study: str = ""


def claims(results: Iterable[Results]) -> list[Claim]:
    """Every claim that the finished studies among these bear on."""
    found: list[Claim] = []
    for each in results:
        if each.finished and each.study in _ASKED:
            found += [replace(claim, study=each.folder.name) for claim in _ASKED[each.study](each)]
    return found


# --- anatomy (paper, sections 1 and 3.1)


def _anatomy(results: Results) -> Iterator[Claim]:
    tokens, projector = results.table("tokens"), results.table("projector")
    dimensions = results.about["settings"]["dimensions"]
    groups = projector.groupby("group")[["norm_before", "norm_after", "peak_before", "peak_after"]].mean()
    source, claim = "section 1", "V-sinks leave the encoder with a spike in a few sink dimensions"
    if "v_sink" not in groups.index:
        yield Claim(source, claim, "cannot be asked", "no V-sinks were found, or none can be named in this encoder")
        yield from _spikes(tokens, dimensions)
        return
    told = groups.to_dict("index")
    sinks, rest = told["v_sink"], told["ordinary"]
    spikes = bool(dimensions["vision"]) and sinks["peak_before"] >= 2 * rest["peak_before"]
    peaks = f"largest channel over the token's median: {sinks['peak_before']:.1f} in V-sinks, {rest['peak_before']:.1f} in others"
    named = f"sink dimensions {dimensions['vision']}" if dimensions["vision"] else "the encoder has no sink dimensions"
    yield Claim(source, claim, "reproduced" if spikes else "not reproduced", f"{named}; {peaks}")
    claim = "the projector spreads the spike over all dimensions and leaves a large norm"
    after = f"after it {sinks['peak_after']:.1f} and {rest['peak_after']:.1f}; norm {sinks['norm_after']:.2f} times the median token's"
    if spikes:
        flat = sinks["peak_after"] < 2 * rest["peak_after"]
        verdict: Verdict = (
            "reproduced" if flat and sinks["norm_after"] > 1.5 else "in part" if flat else "not reproduced"
        )
        yield Claim(source, claim, verdict, f"{peaks}; {after}")
    else:
        yield Claim(source, claim, "cannot be asked", f"there is no spike to spread: {peaks}; {after}")
    yield from _attention(tokens)
    yield from _spikes(tokens, dimensions)


def _spikes(tokens: pd.DataFrame, dimensions: dict[str, list[int]]) -> Iterator[Claim]:
    source, claim = (
        "section 1",
        "L-sinks spike in the LLM's sink dimensions, as the first token of the text does",
    )
    l_sinks = tokens[tokens["group"] == "l_sink"]
    if not dimensions["llm"]:
        yield Claim(source, claim, "cannot be asked", "this LLM has no sink dimensions, so nothing can spike in them")
    elif l_sinks.empty:
        yield Claim(source, claim, "cannot be asked", "no L-sinks were found in these images")
    else:
        spike = tokens.groupby("group")["spike"].mean()
        more = spike["l_sink"] / spike["ordinary"]
        yield Claim(
            source, claim, "reproduced" if more >= 10 else "not reproduced", f"{more:.1f} times ordinary tokens"
        )


def _attention(tokens: pd.DataFrame) -> Iterator[Claim]:
    claim = "V-sinks draw far more attention than ordinary visual tokens (Luo et al.: 7 times)"
    each = tokens.pivot_table("per_token", "layer", "group", "mean")
    ratio = each["v_sink"] / each["ordinary"]
    verdict: Verdict = "reproduced" if ratio.mean() >= 2 else "in part" if ratio.max() >= 2 else "not reproduced"
    numbers = f"{ratio.mean():.1f} times over all layers, most in layer {ratio.idxmax()}: {ratio.max():.1f} times"
    yield Claim("section 1", claim, verdict, numbers)


# --- probes (paper, section 3.2)


def _probes(results: Results) -> Iterator[Claim]:
    scores = results.table("scores")
    told = scores[(scores["labels"] == "true") & (scores["place"] != "encoder")].dropna(subset="accuracy")
    told = told.assign(layer=told["place"].astype(int))
    theirs = told[told["target"].isin(TARGETS)]
    told = theirs if len(theirs) else told
    for group, name in (("v_sink", "V-sinks"), ("l_sink", "L-sinks")):
        claim = f"{name} know more of the scene than ordinary tokens, on all targets"
        pictures = told.pivot_table("train", "layer", "group", "mean").reindex(columns=["ordinary", group])
        layers = pictures.index[pictures[group] >= OFTEN * pictures["ordinary"]]
        if not len(layers):
            of = f"at most {pictures[group].fillna(0).max():.0f} of {pictures['ordinary'].max():.0f}"
            numbers = (
                f"in no layer do half of the pictures have any: {of}" if len(pictures) else "no probe could be fitted"
            )
            yield Claim("section 3.2", claim, "cannot be asked", numbers)
            continue
        by_draw = told[told["layer"].isin(layers)].pivot_table("accuracy", ["target", "draw"], "group", "mean")
        lead = (by_draw[group] - by_draw["ordinary"]).groupby("target").agg(["mean", "std"])
        better = lead["mean"] > 2 * lead["std"].fillna(0)
        verdict: Verdict = "reproduced" if better.all() else "in part" if better.any() else "not reproduced"
        numbers = "; ".join(
            f"{target} {_points(row['mean'])} ± {100 * row['std']:.1f}" for target, row in lead.iterrows()
        )
        yield Claim("section 3.2", claim, verdict, f"accuracy over ordinary tokens, in points: {numbers}")
        if group == "v_sink" and better.any():
            yield from _depth(told, lead["mean"])


def _depth(told: pd.DataFrame, lead: pd.Series) -> Iterator[Claim]:
    best = lead.idxmax()
    verdict: Verdict = "reproduced" if best == "count" else "not reproduced"
    if "count" in lead.index:
        yield Claim(
            "section 3.2", "their lead is largest on the count", verdict, f"largest on {best}: {_points(lead.max())}"
        )
    mean = told.pivot_table("accuracy", "layer", "group", "mean")
    late = np.arange(len(mean)) >= 2 * len(mean) / 3
    gap = mean["v_sink"] - mean["ordinary"]
    parts = f"{_points(gap[~late].mean())} before the last third of the layers, {_points(gap[late].mean())} in it"
    claim = "their lead is larger in early and middle layers"
    yield Claim("section 3.2", claim, "reproduced" if gap[~late].mean() > gap[late].mean() else "not reproduced", parts)
    drop = mean["v_sink"].iloc[0] - mean["v_sink"].iloc[-1]
    numbers = f"V-sinks: {mean['v_sink'].iloc[0]:.1%} at the first layer, {mean['v_sink'].iloc[-1]:.1%} at the last, mean over targets"
    yield Claim(
        "section 3.2",
        "what V-sinks know hardly decays with depth",
        "reproduced" if drop < 0.05 else "not reproduced",
        numbers,
    )


# --- sweep (paper, section 3.3)


def _sweep(results: Results) -> Iterator[Claim]:
    items, answers = results.table("items"), results.table("answers")
    whole, layered = (leaning(items, answers, together=together) for together in (True, False))
    if len(whole):
        yield _differ("O1: which way sinks should be turned depends on the task", whole)
        yield _differ(
            "O2: and on the depth: one task wants sinks up in one layer and down in another", layered, within="task"
        )
    claim = "O2: tasks that need reasoning want sinks up in most layers (26 of 32)"
    wanting = layered[layered["task"].str.lower().str.contains("|".join(REASONING))]
    if wanting.empty:
        yield Claim("section 3.3", claim, "cannot be asked", "no task here asks for reasoning")
    else:
        up = wanting.groupby("task")["lean"].agg(lambda lean: (lean > 0).mean())
        chance = wanting.groupby("task")["lean"].agg(lambda lean: float(sign_test((lean > 0).sum(), (lean < 0).sum())))
        numbers = "; ".join(
            f"{task}: {share:.0%} of the layers, p = {p:.2g}"
            for (task, share), p in zip(up.items(), chance, strict=True)
        )
        up = up.where(chance < LEVEL, 0.0)  # half of the layers lean up by chance
        yield Claim(
            "section 3.3",
            claim,
            "reproduced" if (up > 0.5).all() else "in part" if (up > 0.5).any() else "not reproduced",
            numbers,
        )
    yield _best(items, answers)
    yield _three(items, answers)


def _differ(claim: str, leans: pd.DataFrame, within: str | None = None) -> Claim:
    """Significant leanings up and down: among all rows, or among those of one and the same task."""
    clear = leans[leans["corrected"] < LEVEL]
    up, down = clear[clear["lean"] > 0], clear[clear["lean"] < 0]
    both = set(up[within]) & set(down[within]) if within else up["task"].any() and down["task"].any()

    def listed(rows: pd.DataFrame) -> str:
        ranked = rows.reindex(rows["lean"].abs().sort_values(ascending=False).index).head(4)
        named = [
            f"{row.task}{'' if row.layer == 'all' else f' in layer {row.layer}'} {_points(row.lean)}"
            for row in ranked.itertuples()
        ]
        return ", ".join(named) or "none"

    numbers = f"of {len(leans)} leanings {len(up)} are up ({listed(up)}) and {len(down)} down ({listed(down)}), p < {LEVEL} corrected"
    return Claim("section 3.3", claim, "reproduced" if both else "not reproduced", numbers)


def _best(items: pd.DataFrame, answers: pd.DataFrame) -> Claim:
    found = confirmed(items, answers)
    if found.empty:
        return Claim(
            "section 3.3",
            "some layer and setting makes a task better (up to +12.02)",
            "cannot be asked",
            "too few items",
        )
    clear = found[(found["confirmed"] > 0) & (found["corrected"] < LEVEL)]
    numbers = "; ".join(
        f"{row.task} {_points(row.searched)} where chosen, {_points(row.confirmed)} on other items"
        for row in clear.itertuples()
    )
    summed = f"mean over tasks {_points(found['searched'].mean())} where chosen, {_points(found['confirmed'].mean())} on other items"
    claim = "some layer and setting makes a task better (up to +12.02)"
    return Claim(
        "section 3.3",
        claim,
        "reproduced" if len(clear) else "not reproduced",
        "; ".join(filter(None, (numbers, summed))),
    )


def _three(items: pd.DataFrame, answers: pd.DataFrame) -> Claim:
    claim = "O3: scaling L-sinks and ordinary tokens apart adds little"
    found = confirmed(items, answers, families=groups_apart)
    if found.empty or "three groups" not in set(found["family"]):
        return Claim(
            "section 3.3", claim, "cannot be asked", "the sweep has no settings of three groups (--grid with --three)"
        )
    table = found.pivot(index="task", columns="family", values="confirmed")
    apart = table["three groups"] - table["two groups"]
    more, spread = apart.mean(), 2 * apart.std() / len(apart) ** 0.5  # over tasks
    numbers = f"best setting on items that did not choose it, mean over tasks: {_points(table['two groups'].mean())} with two groups, {_points(table['three groups'].mean())} with three; difference {_points(more)} ± {100 * spread:.1f}"
    verdict: Verdict = (
        "reproduced" if more + spread < LITTLE else "not reproduced" if more - spread > LITTLE else "cannot be asked"
    )
    return Claim(
        "section 3.3", claim, verdict, numbers if verdict != "cannot be asked" else f"too few items to tell: {numbers}"
    )


_ASKED: dict[str, Callable[[Results], Iterator[Claim]]] = {"anatomy": _anatomy, "probes": _probes, "sweep": _sweep}


def _points(share: Any) -> str:
    """A difference of shares in points."""
    return f"{100 * share:+.1f}"


def table_of(found: Iterable[Claim]) -> pd.DataFrame:
    """One row a claim.

    Raises:
        SinkgateError: there is none.
    """
    rows = [vars(claim) for claim in found]
    if not rows:
        raise SinkgateError("no finished study here bears on a claim of the paper: run anatomy, probe or sweep")
    return pd.DataFrame(rows)
