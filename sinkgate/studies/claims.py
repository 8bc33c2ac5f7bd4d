"""Check the paper's claims against study results.

A verdict is "reproduced", "in part" or "not reproduced"; "undecided" if the study is too small or too noisy to tell, with the smallest effect
that it could have shown; "not testable" if the model or the data lack the claim's subject. Each claim names its place in the paper and
the numbers that decide. The thresholds are chosen by us; the paper does not give any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from sinkgate.analysis.statistics import LEVEL, sign_test
from sinkgate.errors import SinkgateError
from sinkgate.studies.anatomy import over_pictures
from sinkgate.studies.results import Results
from sinkgate.studies.sweep import confirmed, groups_apart, leaning

Verdict = Literal["reproduced", "in part", "not reproduced", "undecided", "not testable"]
LITTLE = 0.01  # in accuracy; two standard errors over tasks decide
RELEVANT = 0.05  # in accuracy: a study that cannot show such an effect cannot deny it
IMAGES, PICTURES = 10, 50  # minimum to decide a claim of the anatomy, and to train a probe
#: The paper's targets; others are left out if any of these is present.
TARGETS = ("count", "largest", "colors", "shapes")
#: Minimum share of pictures with a group in a layer; below it, groups are compared across different pictures.
OFTEN = 0.5
REASONING = ("reasoning", "logical", "math")  # in the names of tasks that ask for it
OFTEN_UP = 26 / 32  # of the layers, in the paper


@dataclass(frozen=True)
class Claim:
    """Claim of the paper, with the verdict and its numbers; ``study`` is the folder of the results."""

    source: str
    claim: str
    verdict: Verdict
    numbers: str
    study: str = ""


_Checked = tuple[str, Verdict, str]  # a claim, its verdict and its numbers


def claims(results: Iterable[Results]) -> list[Claim]:
    """Return every claim that the finished studies among these bear on."""
    return [
        Claim(source, *claim, each.folder.name)
        for each in results
        if each.finished and each.study in _CHECKS
        for source, check in [_CHECKS[each.study]]
        for claim in check(each)
    ]


@dataclass(frozen=True)
class _Estimate:
    """A mean with the margin of its 95 % interval."""

    value: float
    margin: float
    count: int

    @classmethod
    def over_images(cls, values: pd.Series) -> _Estimate:
        count = len(values := values.dropna())
        margin = 2 * float(values.std()) / count**0.5 if count > 1 else np.inf
        return cls(float(values.mean()), margin if count >= IMAGES else np.inf, count)

    @classmethod
    def over_draws(cls, values: pd.Series) -> _Estimate:
        """Return the estimate over draws. They share pictures, so the deviation is not divided by the root of their number."""
        return cls(float(values.mean()), 2 * float(values.std()) if len(values) > 1 else np.inf, len(values))

    def exceeds(self, threshold: float) -> Verdict:
        """Return the verdict on the claim that the value is above a threshold."""
        if self.value - self.margin > threshold:
            return "reproduced"
        return "not reproduced" if self.value + self.margin < threshold else "undecided"

    def __str__(self) -> str:
        if np.isinf(self.margin):
            return f"{self.value:.3g} ({self.count} images, too few: {IMAGES} are needed)"
        return f"{self.value:.3g} ± {self.margin:.2g} ({self.count} images)"


# --- anatomy (paper, sections 1 and 3.1)


def _anatomy(results: Results) -> Iterator[_Checked]:
    tokens, projector = (
        over_pictures(results.table(name), results.table("images")) for name in ("tokens", "projector")
    )
    dimensions = results.about["settings"]["dimensions"]
    claim = "V-sinks leave the encoder with a spike in a few sink dimensions"
    if "v_sink" not in set(projector["group"]):
        yield claim, "not testable", "this encoder has no V-sinks in these images, or none can be named"
        yield from _spikes(tokens, dimensions)
        return
    peaks = projector.pivot_table(["peak_before", "peak_after", "norm_after"], "sample", "group")
    before, after = (_ratio(cast(pd.DataFrame, peaks[column])) for column in ("peak_before", "peak_after"))
    norm = _Estimate.over_images(peaks["norm_after"]["v_sink"])
    spikes = before.exceeds(2) if dimensions["vision"] else "not reproduced"
    named = f"sink dimensions {dimensions['vision']}" if dimensions["vision"] else "the encoder has no sink dimensions"
    spike = f"largest channel over the token's median, times that of other tokens: {before}"
    yield claim, spikes, f"{named}; {spike}"
    claim = "the projector spreads the spike over all dimensions and leaves a large norm"
    numbers = f"{spike}; after the projector {after}; norm {norm} times the median token's"
    if spikes != "reproduced":
        yield claim, "not testable", f"there is no spike to spread: {numbers}"
    else:
        flat, large = _opposite(after.exceeds(2)), norm.exceeds(1.5)
        verdict = large if flat == "reproduced" else flat
        if (flat, large) == ("reproduced", "not reproduced"):
            verdict = "in part"
        yield claim, verdict, numbers
    yield from _attention(tokens)
    yield from _spikes(tokens, dimensions)


def _spikes(tokens: pd.DataFrame, dimensions: dict[str, list[int]]) -> Iterator[_Checked]:
    claim = "L-sinks spike in the LLM's sink dimensions, as the first token of the text does"
    if not dimensions["llm"]:
        yield claim, "not testable", "this LLM has no sink dimensions, so nothing can spike in them"
    elif "l_sink" not in set(tokens["group"]):
        yield claim, "not testable", "these images have no L-sinks"
    else:
        more = _ratio(tokens.pivot_table("spike", "sample", "group"), "l_sink")
        yield claim, more.exceeds(10), f"{more} times ordinary tokens"


def _attention(tokens: pd.DataFrame) -> Iterator[_Checked]:
    claim = "V-sinks draw far more attention than ordinary visual tokens (Luo et al.: 7 times)"
    each = tokens.pivot_table("per_token", ["sample", "layer"], "group")
    ratio = (each["v_sink"] / each["ordinary"]).unstack("layer")
    everywhere, layer = _Estimate.over_images(ratio.mean(axis=1)), ratio.mean().idxmax()
    most = _Estimate.over_images(ratio[layer])
    verdict = everywhere.exceeds(2)
    if verdict != "reproduced" and (strongest := most.exceeds(2)) != "not reproduced":
        verdict = "in part" if strongest == "reproduced" else strongest
    yield claim, verdict, f"{everywhere} times over all layers, most in layer {layer}: {most} times"


def _ratio(by_group: pd.DataFrame, group: str = "v_sink") -> _Estimate:
    return _Estimate.over_images(by_group[group] / by_group["ordinary"])


def _opposite(verdict: Verdict) -> Verdict:
    swapped: dict[Verdict, Verdict] = {"reproduced": "not reproduced", "not reproduced": "reproduced"}
    return swapped.get(verdict, verdict)


# --- probes (paper, section 3.2)


def _probes(results: Results) -> Iterator[_Checked]:
    scores = results.table("scores")
    scores = scores[(scores["labels"] == "true") & (scores["place"] != "encoder")].dropna(subset="accuracy")
    scores = scores.assign(layer=scores["place"].astype(int))
    of_paper = scores[scores["target"].isin(TARGETS)]
    scores = of_paper if len(of_paper) else scores
    for group, name in (("v_sink", "V-sinks"), ("l_sink", "L-sinks")):
        claim = f"{name} hold more information on the scene than ordinary tokens, on all targets"
        pictures = scores.pivot_table("train", "layer", "group", "mean").reindex(columns=["ordinary", group])
        layers = pictures.index[pictures[group] >= OFTEN * pictures["ordinary"]]
        if not len(layers):
            of = f"at most {pictures[group].fillna(0).max():.0f} of {pictures['ordinary'].max():.0f}"
            few = f"in no layer do half of the pictures have any: {of}"
            yield claim, "not testable", few if len(pictures) else "no probe could be fitted"
            continue
        by_draw = scores[scores["layer"].isin(layers)].pivot_table("accuracy", ["target", "draw"], "group", "mean")
        lead = by_draw[group] - by_draw["ordinary"]
        estimates = {target: _Estimate.over_draws(values) for target, values in lead.groupby("target")}
        leads = (f"{target} {_points(each.value)} ± {100 * each.margin:.1f}" for target, each in estimates.items())
        numbers = f"accuracy over ordinary tokens, in points: {'; '.join(leads)}"
        most = pictures.loc[layers, group].max()
        if most < PICTURES:
            yield claim, "undecided", f"{numbers}; at most {most:.0f} pictures train a probe, {PICTURES} are needed"
            continue
        better = [each.value > each.margin for each in estimates.values()]
        smallest = max(each.margin for each in estimates.values())
        verdict: Verdict = "reproduced" if all(better) else "in part" if any(better) else _absent(smallest)
        shown = "" if verdict != "undecided" else f"; {_could_show('lead', smallest)}"
        yield claim, verdict, numbers + shown
        if group == "v_sink" and any(better):
            yield from _depth(scores, lead)


def _depth(scores: pd.DataFrame, lead: pd.Series) -> Iterator[_Checked]:
    by_target = lead.unstack("target")
    if "count" in by_target and len(by_target.columns) > 1:
        other = by_target.drop(columns="count").mean().idxmax()
        ahead = _Estimate.over_draws(by_target["count"] - by_target[other])
        numbers = f"count {_points(by_target['count'].mean())}, {other} {_points(by_target[other].mean())}, difference ± {100 * ahead.margin:.1f}"
        yield "their lead is largest on the count", ahead.exceeds(0), numbers
    mean = scores.pivot_table("accuracy", ["draw", "layer"], "group", "mean")
    gap, v_sink = (mean["v_sink"] - mean["ordinary"]).unstack("layer"), mean["v_sink"].unstack("layer")
    late = np.arange(gap.shape[1]) >= 2 * gap.shape[1] / 3
    early, end = gap.loc[:, ~late].mean(axis=1), gap.loc[:, late].mean(axis=1)
    more = _Estimate.over_draws(early - end)
    numbers = f"{_points(early.mean())} before the last third of the layers, {_points(end.mean())} in it, difference ± {100 * more.margin:.1f}"
    yield "their lead is larger in early and middle layers", more.exceeds(0), numbers
    first, last = v_sink.iloc[:, 0], v_sink.iloc[:, -1]
    drop = _Estimate.over_draws(first - last)
    numbers = f"V-sinks: {first.mean():.1%} at the first layer, {last.mean():.1%} at the last, mean over targets; difference ± {100 * drop.margin:.1f}"
    claim = "the information in V-sinks hardly decays with depth"
    yield claim, _opposite(drop.exceeds(RELEVANT)), numbers


# --- sweep (paper, section 3.3)


def _sweep(results: Results) -> Iterator[_Checked]:
    items, answers = results.table("items"), results.table("answers")
    whole, layered = (leaning(items, answers, together=together) for together in (True, False))
    if len(whole):
        yield _differ("O1: whether larger or smaller scales of sinks are better depends on the task", whole)
        claim = "O2: and on the depth: for one task, larger scales are better in one layer and smaller ones in another"
        yield _differ(claim, layered, within="task")
    yield _reasoning(layered)
    yield _best(items, answers)
    yield _three(items, answers)


def _differ(claim: str, leans: pd.DataFrame, within: str | None = None) -> _Checked:
    """Check for significant leanings up and down: among all rows, or among those of one and the same task."""
    if leans["layer" if within else "task"].nunique() < 2:
        return claim, "not testable", f"the sweep has one {'layer' if within else 'task'} only"
    clear = leans[leans["corrected"] < LEVEL]
    up, down = clear[clear["lean"] > 0], clear[clear["lean"] < 0]
    both = set(up[within]) & set(down[within]) if within else up["task"].any() and down["task"].any()

    def listed(rows: pd.DataFrame) -> str:
        ranked = rows.reindex(rows["lean"].abs().sort_values(ascending=False).index).head(4)
        places = ["" if layer == "all" else f" in layer {layer}" for layer in ranked["layer"]]
        named = zip(ranked["task"], places, ranked["lean"], strict=True)
        return ", ".join(f"{task}{place} {_points(lean)}" for task, place, lean in named) or "none"

    numbers = f"of {len(leans)} leanings {len(up)} are up ({listed(up)}) and {len(down)} down ({listed(down)}), p < {LEVEL} corrected"
    return _decided(claim, bool(both), numbers, "lean", leans)


def _reasoning(leans: pd.DataFrame) -> _Checked:
    claim = "O2: for tasks of reasoning, larger scales of sinks are better in most layers (26 of 32)"
    leans = leans[leans["task"].str.lower().str.contains("|".join(REASONING))]
    if leans.empty:
        return claim, "not testable", "no task here is one of reasoning"
    signs = leans.assign(up=leans["lean"] > 0, down=leans["lean"] < 0)
    counts = signs.groupby("task")[["up", "down"]].sum()
    layers = leans["layer"].nunique()
    p = [float(sign_test(row.up, row.down)) for row in counts.itertuples()]
    clear = (counts["up"] > layers / 2) & (np.array(p) < LEVEL)  # half of the layers lean up by chance
    numbers = "; ".join(
        f"{task}: {row.up / layers:.0%} of the layers, p = {each:.2g}"
        for (task, row), each in zip(counts.iterrows(), p, strict=True)
    )
    fewest = next((up for up in range(layers // 2, layers + 1) if sign_test(up, layers - up) < LEVEL), np.inf)
    if clear.any() or fewest / layers <= OFTEN_UP:
        verdict: Verdict = "reproduced" if clear.all() else "in part" if clear.any() else "not reproduced"
        return claim, verdict, numbers
    shown = f"{layers} layers are too few to tell"
    if np.isfinite(fewest):
        shown = f"{fewest} of {layers} layers would have to lean up"
    return claim, "undecided", f"{numbers}; {shown}"


def _best(items: pd.DataFrame, answers: pd.DataFrame) -> _Checked:
    claim = "some layer and setting makes a task better (up to +12.02)"
    best = confirmed(items, answers)
    if best.empty:
        return claim, "undecided", "each task needs two items at least"
    clear = best[(best["confirmed"] > 0) & (best["corrected"] < LEVEL)]
    numbers = "; ".join(
        f"{row.task} {_points(row.searched)} where chosen, {_points(row.confirmed)} on other items"
        for row in clear.itertuples()
    )
    summed = f"mean over tasks {_points(best['searched'].mean())} where chosen, {_points(best['confirmed'].mean())} on other items"
    return _decided(claim, bool(len(clear)), "; ".join(filter(None, (numbers, summed))), "gain", best)


def _three(items: pd.DataFrame, answers: pd.DataFrame) -> _Checked:
    claim = "O3: scaling L-sinks and ordinary tokens apart adds little"
    best = confirmed(items, answers, families=groups_apart)
    if best.empty or "three groups" not in set(best["family"]):
        return claim, "not testable", "the sweep has no settings of three groups (--grid with --three)"
    table = best.pivot(index="task", columns="family", values="confirmed")
    apart = table["three groups"] - table["two groups"]
    more, spread = apart.mean(), 2 * apart.std() / len(apart) ** 0.5  # over tasks
    numbers = (
        f"best setting on items that did not choose it, mean over tasks: {_points(table['two groups'].mean())} with two groups, "
        f"{_points(table['three groups'].mean())} with three; difference {_points(more)} ± {100 * spread:.1f}"
    )
    if np.isinf(best["smallest"].median()):
        return claim, "undecided", f"{numbers}; {_why_blind(best)}"
    if more + spread < LITTLE:
        return claim, "reproduced", numbers
    if more - spread > LITTLE:
        return claim, "not reproduced", numbers
    return claim, "undecided", f"{numbers}; {_could_show('difference', abs(more) + spread)}"


def _decided(claim: str, present: bool, numbers: str, effect: str, table: pd.DataFrame) -> _Checked:
    """Return a claim of the sweep that an effect exists; its absence is a result only if most rows could have shown it."""
    smallest = table["smallest"].median()
    verdict: Verdict = "reproduced" if present else _absent(smallest)
    if verdict == "undecided":
        numbers += f"; {_could_show(effect, smallest) if np.isfinite(smallest) else _why_blind(table)}"
    return claim, verdict, numbers


def _absent(smallest: float) -> Verdict:
    return "not reproduced" if smallest <= RELEVANT else "undecided"


def _could_show(effect: str, smallest: float) -> str:
    return f"the smallest {effect} that this study could have shown is {100 * smallest:.3g} points, more than {100 * RELEVANT:.0f}"


def _why_blind(table: pd.DataFrame) -> str:
    """Return the reason why no effect, however large, could have been significant."""
    if table["base"].isin([0, 1]).mean() >= 0.5:
        return f"the unmodified model answers {table['base'].median():.0%} of the items of most tasks correctly, so that effects cannot show"
    return "so few items cannot show any effect, however large"


#: The check of each kind of study, with the place of its claims in the paper.
_CHECKS: dict[str, tuple[str, Callable[[Results], Iterator[_Checked]]]] = {
    "anatomy": ("section 1", _anatomy),
    "probes": ("section 3.2", _probes),
    "sweep": ("section 3.3", _sweep),
}


def _points(share: Any) -> str:
    """Return a difference of shares in points, such as "+1.5"."""
    return f"{100 * share:+.1f}"


def table_of(checked: Iterable[Claim]) -> pd.DataFrame:
    """Return one row a claim.

    Raises:
        SinkgateError: there is none.
    """
    rows = [vars(claim) for claim in checked]
    if not rows:
        raise SinkgateError("no finished study here bears on a claim of the paper: run anatomy, probe or sweep")
    return pd.DataFrame(rows)
