"""Scores: equal to plain implementations written from the published formulas, on frames of any make and on cases worked by hand."""

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkgate.analysis.statistics import score_interval
from sinkgate.benchmarks import BENCHMARKS, benchmark
from sinkgate.benchmarks.mmstar import CATEGORIES


def mean(values):
    values = list(values)
    return Fraction(sum(map(int, values)), len(values)) if values else math.nan


def mean_of_groups(rows, column):
    groups = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row["right"])
    return sum(map(mean, groups.values())) / len(groups) if groups else math.nan


def chosen(rows, **wanted):
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def right(rows):
    return [row["right"] for row in rows]


def mmstar_scores(rows):
    parts = {name: mean_of_groups(chosen(rows, category=name), "l2_category") for name in CATEGORIES}
    return {"sub-category mean": mean_of_groups(rows, "l2_category"), "micro": mean(right(rows)), **parts}


def cvbench_scores(rows):
    ade, coco, omni = (mean(right(chosen(rows, source=source))) for source in ("ADE20K", "COCO", "Omni3D"))
    tasks = {task: mean(right(chosen(rows, task=task))) for task in ("Count", "Relation", "Depth", "Distance")}
    return {
        "task mean": mean_of_groups(rows, "task"),
        "official": ((ade + coco) / 2 + omni) / 2,
        "micro": mean(right(rows)),
        "2D": (ade + coco) / 2,
        "3D": omni,
        **tasks,
    }


def pope_part(rows):
    if not rows:
        return dict.fromkeys(("accuracy", "precision", "recall", "F1", "yes share"), math.nan)
    hits = sum(row["said"] == "yes" == row["answer"] for row in rows)
    false_alarms = sum(row["said"] == "yes" != row["answer"] for row in rows)
    misses = sum(row["said"] != "yes" == row["answer"] for row in rows)
    precision = Fraction(hits, hits + false_alarms) if hits + false_alarms else 0
    recall = Fraction(hits, hits + misses) if hits + misses else 0
    return {
        "accuracy": mean(row["said"] == row["answer"] for row in rows),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
        "yes share": mean(row["said"] == "yes" for row in rows),
    }


def pope_scores(rows):
    parts = {f"{name} ({part})": value for part in ("random", "popular", "adversarial") for name, value in pope_part(chosen(rows, category=part)).items()}  # fmt: skip
    return {**pope_part(rows), **parts}


def scenes_scores(rows):
    scopes = {scope: mean(right(chosen(rows, scope=scope))) for scope in ("global", "local")}
    return {"micro": mean(right(rows)), "kind mean": mean_of_groups(rows, "task"), **scopes}


PLAIN = {"mmstar": mmstar_scores, "cvbench": cvbench_scores, "pope": pope_scores, "scenes": scenes_scores}


def rows_of(**columns):
    """Frames as lists of rows; answers and what was said are drawn, right follows."""
    drawn = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in columns.items()})
    return st.lists(drawn.map(lambda row: {**row, "right": row.get("right", row.get("said") == row.get("answer"))}), min_size=1, max_size=40)  # fmt: skip


FRAMES = {
    "mmstar": rows_of(category=CATEGORIES[:3], l2_category="abcdefg", right=(True, False)),
    "cvbench": rows_of(task=("Count", "Relation", "Depth", "Distance"), source=("ADE20K", "COCO", "Omni3D"), right=(True, False)),
    "pope": rows_of(category=("random", "popular", "adversarial"), answer=("yes", "no"), said=("yes", "no", None)),
    "scenes": rows_of(task=("count", "color", "size"), scope=("global", "local"), right=(True, False)),
}  # fmt: skip


def test_every_benchmark_and_every_score_is_compared():
    row = {"category": "math", "l2_category": "a", "task": "Count", "source": "COCO", "answer": "yes", "said": "no", "scope": "local", "right": False}  # fmt: skip
    assert {name: list(plain([row])) for name, plain in PLAIN.items()} == {
        name: list(each.scores) for name, each in BENCHMARKS.items()
    }


@pytest.mark.parametrize("name", list(PLAIN))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_scores_equal_plain_implementations(name, data):
    rows = data.draw(FRAMES[name])
    expected = {score: float(value) for score, value in PLAIN[name](rows).items()}
    computed = {score: function(pd.DataFrame(rows)) for score, function in benchmark(name).scores.items()}
    assert computed == pytest.approx(expected, nan_ok=True, abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(rows_of(category=("random", "popular", "adversarial"), answer=("yes", "no"), said=("yes", "no")))
def test_pope_knows_what_was_said_where_one_of_two_was(rows):
    frame = pd.DataFrame(rows)
    for score in benchmark("pope").scores.values():
        assert score(frame.drop(columns="said")) == pytest.approx(score(frame), nan_ok=True)


def test_mmstar_by_hand():
    """Sub-categories of 2, 1 and 1 items: 1/2, 0 and 1 right."""
    frame = pd.DataFrame(
        {
            "category": ["math", "math", "math", "coarse perception"],
            "l2_category": ["geometry", "geometry", "statistical reasoning", "image emotion"],
            "right": [True, False, False, True],
        }
    )
    scores = {name: score(frame) for name, score in benchmark("mmstar").scores.items()}
    assert scores["sub-category mean"] == 0.5 and scores["micro"] == 0.5
    assert scores["math"] == 0.25 and scores["coarse perception"] == 1
    assert math.isnan(scores["logical reasoning"])
    more = pd.concat([frame, frame.iloc[:1]])
    assert benchmark("mmstar").scores["sub-category mean"](more) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert benchmark("mmstar").scores["micro"](more) == 0.6


def test_cvbench_by_hand():
    """ADE20K 1 of 2, COCO 1 of 1, Omni3D 1 of 4: 1/2 ((1/2 + 1) / 2 + 1/4) = 1/2."""
    frame = pd.DataFrame(
        {
            "task": ["Count", "Relation", "Count", "Depth", "Depth", "Depth", "Distance"],
            "source": ["ADE20K", "ADE20K", "COCO", *["Omni3D"] * 4],
            "right": [True, False, True, True, False, False, False],
        }
    )
    scores = {name: score(frame) for name, score in benchmark("cvbench").scores.items()}
    assert scores["official"] == 0.5 and scores["2D"] == 0.75 and scores["3D"] == 0.25
    assert scores["micro"] == pytest.approx(3 / 7)
    assert scores["task mean"] == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)
    assert math.isnan(benchmark("cvbench").scores["official"](frame[frame["source"] != "COCO"]))


def test_pope_by_hand():
    """3 hits, 1 false alarm, 1 miss, 1 that is neither yes nor no where yes is true, 2 rightly denied."""
    answers = ["yes", "yes", "yes", "no", "yes", "yes", "no", "no"]
    replies = ["yes", "yes", "yes", "yes", "no", None, "no", "no"]
    frame = pd.DataFrame({"answer": answers, "said": replies, "category": "popular"})
    frame["right"] = frame["answer"] == frame["said"]
    scores = {name: score(frame) for name, score in benchmark("pope").scores.items()}
    assert scores["accuracy"] == 5 / 8 and scores["precision"] == 3 / 4 and scores["recall"] == 3 / 5
    assert scores["F1"] == pytest.approx(2 / 3) and scores["yes share"] == 0.5
    assert scores["recall (popular)"] == 3 / 5 and math.isnan(scores["recall (random)"])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["cvbench", "mmstar", "pope", "scenes"])
def test_intervals_of_all_draws_at_once_are_those_of_single_draws(name, shared):
    """And the draws are those of earlier releases: pictures by number, with all their questions."""
    rng, count = np.random.default_rng(3), 20  # few, so that draws lack whole categories
    table = pd.DataFrame(
        {
            "task": rng.choice(["Count", "Relation", "Depth"], count),
            "source": rng.choice(["ADE20K", "COCO", "Omni3D"], count),
            "category": rng.choice([*CATEGORIES[:2], "random", "popular"], count),
            "l2_category": rng.choice(["a", "b"], count),
            "scope": rng.choice(["global", "local"], count),
            "answer": rng.choice(["Yes", "No"], count),
            "picture": rng.choice(["p", "q", "r", "s", "t", "u", "v"], count),
            "right": rng.random(count) < 0.7,
        }
    )
    base = table.assign(right=rng.random(count) < 0.4)
    codes, names = pd.factorize(table["picture"])
    size = len(names) if shared else count
    draw = np.random.default_rng(5)
    draws = []
    for _ in range(6):  # percentiles show four of them, the two at each end
        drawn = draw.integers(0, size, size)
        draws.append(np.concatenate([np.flatnonzero(codes == each) for each in drawn]) if shared else drawn)
    for label, score in BENCHMARKS[name].scores.items():
        changes = [score(table.iloc[drawn]) - score(base.iloc[drawn]) for drawn in draws]
        defined = [change for change in changes if not np.isnan(change)]
        expected = np.quantile(defined, [0.025, 0.975]) if defined else [np.nan, np.nan]
        options = {"draws": 6, "seed": 5, "pictures": table["picture"] if shared else None}
        at_once = score_interval(score, table, base, **options)
        assert at_once == pytest.approx(tuple(expected), abs=1e-12, nan_ok=True), label
        one_by_one = score_interval(lambda each, score=score: score(each), table, base, **options)
        assert one_by_one == pytest.approx(at_once, abs=1e-12, nan_ok=True), label
