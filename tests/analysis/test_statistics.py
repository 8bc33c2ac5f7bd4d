"""Statistics against scipy's own, and against what must hold whatever the numbers are."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from sinkgate.analysis import statistics
from sinkgate.analysis.statistics import (
    compared,
    flip_test,
    holm,
    intervals,
    questions_needed,
    score_interval,
    sign_test,
    smallest_effect,
)


@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_is_the_exact_binomial_test(wins, losses):
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_lowers_p_and_keeps_the_order(p):
    corrected = holm(p)
    assert (corrected >= np.array(p)).all() and (corrected <= 1).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()
    assert corrected.min() == pytest.approx(min(1, min(p) * len(p)))


def test_holm_on_a_worked_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_intervals_agree_with_scipys_bootstrap():
    values = np.random.default_rng(0).choice([-1, 0, 1], size=(300, 2), p=[0.1, 0.6, 0.3])
    low, high = intervals(values, draws=4000)
    for column in range(2):
        theirs = bootstrap((values[:, column],), np.mean, method="percentile", n_resamples=4000, rng=1)
        assert low[column] == pytest.approx(theirs.confidence_interval.low, abs=0.01)
        assert high[column] == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_stored_draws_are_those_of_a_call_that_stores_none(monkeypatch):
    values = np.random.default_rng(0).choice([-1, 0, 1], size=(90, 3), p=[0.1, 0.6, 0.3])
    once, again = intervals(values, draws=600, seed=5), intervals(-values, draws=600, seed=5)
    monkeypatch.setattr(statistics, "STORED", 0)
    for stored, sign in ((once, 1), (again, -1)):
        assert np.array_equal(stored, intervals(sign * values, draws=600, seed=5))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    runs = rng.choice([-1, 0, 1], size=(200, 120), p=[0.1, 0.6, 0.3])  # one column a repetition of the study
    low, high = intervals(runs, draws=1000)
    assert 0.88 <= ((low <= 0.2) & (high >= 0.2)).mean() <= 0.99


def test_questions_about_one_picture_are_drawn_together():
    """Six questions a picture with one outcome are as sure as one: wider intervals than of independent questions, and the right coverage."""
    rng = np.random.default_rng(0)
    pictures = np.repeat(np.arange(40), 6)
    runs = np.repeat(rng.choice([-1, 0, 1], size=(40, 150), p=[0.1, 0.6, 0.3]), 6, axis=0)
    low, high = intervals(runs, draws=1000, pictures=pictures)
    assert 0.88 <= ((low <= 0.2) & (high >= 0.2)).mean() <= 0.99
    naive_low, naive_high = intervals(runs, draws=1000)
    assert ((naive_low <= 0.2) & (naive_high >= 0.2)).mean() < 0.7
    once = intervals(runs[::6], draws=1000)
    assert np.allclose((low, high), once)


def test_without_shared_pictures_nothing_changes():
    values = np.random.default_rng(0).choice([-1, 0, 1], size=(50, 3))
    assert np.allclose(intervals(values), intervals(values, pictures=np.arange(50)))
    right, base = pd.DataFrame(values > 0), pd.Series(values[:, 0] < 1)
    expected = compared(right, base)
    assert compared(right, base, pictures=pd.Series(range(50))).equals(expected)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12))
def test_flipping_single_samples_is_the_sign_test(values):
    differences = np.array(values)[:, None]
    expected = sign_test((differences > 0).sum(), (differences < 0).sum())
    assert flip_test(differences, np.arange(len(values)))[0] == pytest.approx(float(expected))


def test_flips_of_many_pictures_are_drawn():
    rng = np.random.default_rng(0)
    none, strong = rng.choice([-1, 1], 60), np.ones(60)
    p = flip_test(np.repeat(np.stack([none, strong], 1), 3, axis=0), np.repeat(np.arange(60), 3))
    assert p[0] > 0.05 and p[1] == pytest.approx(1 / 10_001)
    assert abs(p[0] - sign_test((none > 0).sum(), (none < 0).sum())) < 0.03
    assert flip_test(np.zeros((4, 1)), [0, 0, 1, 1])[0] == 1


def test_a_comparison_and_a_score_follow_the_pictures():
    right = pd.DataFrame({"gated": [True] * 4 + [False] * 2})
    base, pictures = pd.Series([False] * 4 + [False] * 2), pd.Series(["a", "a", "b", "b", "c", "c"])
    row = compared(right, base, pictures=pictures).loc["gated"]
    assert row["p"] == 0.5 and (row["wins"], row["losses"]) == (4, 0)  # two pictures changed: p of 2 of 2
    frames = [pd.DataFrame({"right": each}) for each in (right["gated"], base)]
    low, high = score_interval(lambda frame: frame["right"].mean(), *frames, pictures=pictures)
    assert (low, high) == pytest.approx((row["low"], row["high"]), abs=0.05)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_a_comparison_adds_up(pairs):
    right = pd.DataFrame({"gated": [a for a, _ in pairs], "same": [b for _, b in pairs]})
    base = pd.Series([b for _, b in pairs])
    table = compared(right, base)
    assert np.allclose(table["accuracy"] - table["base"], table["change"])
    assert np.allclose((table["wins"] - table["losses"]) / len(pairs), table["change"])
    assert (table["low"] <= table["change"] + 1e-9).all() and (table["change"] <= table["high"] + 1e-9).all()
    same = table.loc["same"]
    assert (same["change"], same["low"], same["high"], same["effect"], same["p"]) == (0, 0, 0, 0, 1)
    turned = compared(pd.DataFrame({"gated": base}), right["gated"]).loc["gated"]
    assert turned["change"] == pytest.approx(-table.loc["gated", "change"])
    assert turned["p"] == pytest.approx(table.loc["gated", "p"])


def test_an_interval_of_a_score_is_that_of_the_mean_where_the_score_is_the_mean():
    rng = np.random.default_rng(0)
    base, other = rng.random(400) < 0.5, rng.random(400) < 0.7
    low, high = intervals((other.astype(int) - base)[:, None])
    interval = score_interval(
        lambda frame: frame["right"].mean(), pd.DataFrame({"right": other}), pd.DataFrame({"right": base})
    )
    assert interval == pytest.approx((low[0], high[0]), abs=0.015)


def test_the_smallest_effect_is_found_as_often_as_promised():
    rng, tests = np.random.default_rng(0), 5

    def changes(effect, runs=400):
        return rng.choice([-1, 0, 1], size=(300, runs), p=[0.1 - effect / 2, 0.8, 0.1 + effect / 2])

    effect = float(np.median(smallest_effect(changes(0.0), tests)))
    assert 0.05 < effect < 0.12
    power = [
        (sign_test((drawn > 0).sum(0), (drawn < 0).sum(0)) < 0.05 / tests).mean()
        for drawn in (changes(effect), changes(effect / 2))
    ]
    assert power[0] == pytest.approx(0.8, abs=0.1) and power[1] < 0.4


def test_few_samples_can_show_nothing():
    assert smallest_effect(np.zeros(5)) == np.inf and smallest_effect(np.zeros(6)) == 1.0
    assert smallest_effect(np.zeros(60)) == pytest.approx(0.1), "six of sixty in one direction: p = 0.03"
    assert smallest_effect(np.zeros(60), tests=1000) > smallest_effect(np.zeros(60))
    assert smallest_effect(np.full((40, 2), 0.25)).shape == (2,)


def test_copies_about_one_picture_show_no_smaller_effect():
    rng = np.random.default_rng(3)
    values = rng.choice([-1, 0, 1], size=(90, 4), p=[0.1, 0.75, 0.15])
    pictures = np.repeat(np.arange(90), 4)
    assert smallest_effect(values.repeat(4, 0), 3, pictures=pictures) == pytest.approx(smallest_effect(values, 3))
    assert (smallest_effect(values.repeat(4, 0), 3) < 0.6 * smallest_effect(values, 3)).all()
    assert questions_needed(values.repeat(4, 0), pictures=pictures) == pytest.approx(
        4 * questions_needed(values), abs=4
    )


def test_so_many_questions_show_the_effect():
    rng = np.random.default_rng(0)

    def changes(count, runs, effect=0.0):
        return rng.choice([-1, 0, 1], size=(count, runs), p=[0.05 - effect / 2, 0.9, 0.05 + effect / 2])

    needed = int(np.median(questions_needed(changes(400, 200), 0.04)))
    drawn = changes(needed, 400, 0.04)
    share = (sign_test((drawn > 0).sum(0), (drawn < 0).sum(0)) < 0.05).mean()
    assert share == pytest.approx(0.8, abs=0.1)
    assert questions_needed(np.zeros(50), 0.01) == 600, "six that change, each of which is one in a hundred"
    assert float(smallest_effect(changes(needed, 1)[:, 0])) == pytest.approx(0.04, rel=0.25)
    with pytest.raises(ValueError, match="effect is 0"):
        questions_needed([0, 1], 0)


def test_the_example_of_the_docstring():
    assert questions_needed([0, 1, 0, -1, 0, 0, 1, 0, 0, 0] * 10, effect=0.05) == 920
