"""The racing sweep: its error rate by simulation, its winners against the exact map, kills, and what it saves."""

import numpy as np
import pytest
from dummy_study import parts, scene_items, tables

from sinkgate.analysis.racing import STAKES, Race, against_as_good, against_gain, fewest_samples
from sinkgate.errors import SinkgateError
from sinkgate.studies.html_report import write_page
from sinkgate.studies.race import RacingSweep, placed, saved
from sinkgate.studies.results import Results
from sinkgate.studies.runner import Shard, run
from sinkgate.studies.sweep import CELL, UNMODIFIED, Sweep, right_of

POINTS = ((0.0, 0.0), (1.0, 0.0), (3.0, 3.0))
OPTIONS = {"chunk": 16, "level": 0.9, "margin": 0.02}


def drawn(rng, samples, gains, changed=0.2):
    """Answers of settings and, last, of the unmodified model; each setting changes a share of them and gains on the mean."""
    base = rng.random(samples) < 0.5
    columns = []
    for gain in gains:
        better = (rng.random(samples) < changed + gain) & ~base
        worse = (rng.random(samples) < changed - gain) & base
        columns.append((base | better) & ~worse)
    return np.stack([*columns, base], 1)


def raced(right, chunk=8, **options):
    """The race over given answers, and its drops."""
    race, drops = Race(right.shape[1] - 1, **options), []
    for start in range(0, len(right), chunk):
        drops += race.update(right[start : start + chunk, race.running])
    return race, drops


def test_settings_that_are_as_good_are_called_worse_no_more_often_than_the_level_says():
    """Looked at after every sample. The test for a fixed number of samples, repeated in this way, errs far more often."""
    level, runs, errors, naive = 0.1, 1000, 0, 0
    for seed in range(runs):
        right = drawn(np.random.default_rng(seed), 800, [0.0])
        difference = right[:, 0].astype(int) - right[:, 1]
        wins, losses = (difference > 0).cumsum(), (difference < 0).cumsum()
        errors += bool((against_as_good(wins, losses) >= -np.log(level)).any())
        naive += bool((losses - wins > 1.2816 * np.sqrt(losses + wins)).any())
    assert 0 < errors <= level * runs, errors
    assert naive > 4 * level * runs, naive


def test_a_setting_that_gains_the_margin_is_kept_as_often_as_the_level_says():
    level, margin, runs = 0.2, 0.1, 400
    rights = [drawn(np.random.default_rng(seed), 600, [margin]) for seed in range(runs)]
    errors = sum(
        any(drop.reason == "no gain" for drop in raced(each, level=level, margin=margin)[1]) for each in rights
    )
    assert 0 < errors <= level / 2 * runs, errors


def test_a_planted_best_outlasts_many_idle_settings():
    """A made-up world of 60 settings in which one gains 8 points: how often it is kept, and what is saved."""
    survived, answers, settings, samples = 0, 0, 60, 3000
    for seed in range(10):
        right = drawn(np.random.default_rng(seed), samples, [0.08, *[0.0] * (settings - 1)], changed=0.1)
        race, drops = raced(right, chunk=16, margin=0.02)
        survived += 0 in race.settings
        answers += sum(drop.samples for drop in drops) + len(race.settings) * samples
        assert {drop.rival for drop in drops if drop.reason == "worse"} <= {0, settings}
    assert survived == 10
    assert 10 * settings * samples / answers > 4


def test_wealth_counts_what_its_definition_says():
    rng = np.random.default_rng(0)
    bets = rng.choice([-1, 0, 1], 50)
    counts = np.array((bets == 1).sum()), np.array((bets == -1).sum())
    by_hand = np.log(np.mean([np.prod(1 - stake * bets) for stake in STAKES]))
    assert against_as_good(*counts) == pytest.approx(by_hand)
    margin = 0.1
    by_hand = np.log(np.mean([np.prod(1 - stake / (1 - margin) * (bets - margin)) for stake in STAKES]))
    assert against_gain(*counts, len(bets), margin) == pytest.approx(by_hand)


def test_an_idle_setting_leaves_near_the_fewest_samples_that_any_test_needs():
    base = np.random.default_rng(0).random(2000) < 0.5
    right = np.stack([base] * 11, 1)
    race, drops = raced(right, chunk=1)
    fewest = fewest_samples(10)
    assert not race.settings and {drop.reason for drop in drops} == {"no gain"}
    assert fewest < drops[0].samples < 1.6 * fewest
    assert drops[0].p <= 0.05 / 20 and (drops[0].wins, drops[0].losses) == (0, 0)


@pytest.fixture(scope="module")
def study(demo):
    return RacingSweep(demo, scene_items(64), [2, 3], POINTS, **OPTIONS)


@pytest.fixture(scope="module")
def results(study, tmp_path_factory):
    return run(study, tmp_path_factory.mktemp("race"), progress=False)


def test_the_best_of_the_exact_map_is_in_the_race_to_its_end(demo, results, study, tmp_path):
    exact = run(Sweep(demo, study.items, study.layers, POINTS, chunk=16), tmp_path, progress=False)
    right, base = right_of(exact.table("answers"))
    change = right.mean() - base.mean()
    answers = results.table("answers")
    mine, _ = right_of(answers, complete=False)
    finished = mine.columns[mine.notna().all()]
    assert 0 < len(finished) < len(right.columns), "some settings are dropped, some are not"
    assert change.idxmax() in finished
    for cell in mine.columns:  # answers that the race has are those of the exact map
        assert (mine[cell].dropna() == right.loc[mine[cell].dropna().index, cell]).all()
    assert saved(answers) == pytest.approx(right.size / mine.notna().sum().sum())


def test_the_table_says_when_and_why_each_setting_left(results, study):
    dropped, answers = results.table("dropped"), results.table("answers")
    assert len(dropped) and set(dropped["reason"]) <= {"worse", "no gain"}
    for row in dropped.itertuples():
        same = np.logical_and.reduce([np.isclose(answers[name], getattr(row, name)) for name in CELL])
        assert row.samples == same.sum() and row.p <= study.level / 2 / len(study.choices)
        assert bool(row.worse_than) == (row.reason == "worse")
    table = placed(answers, dropped)
    assert len(table) == len(study.choices)
    assert sorted(table["state"]) == sorted([*dropped["reason"], *["finished"] * (len(table) - len(dropped))])
    assert (table["samples"].diff().dropna() <= 0).all() and (table["low"] <= table["change"]).all()
    settings = results.about["settings"]
    assert results.study == "race" and (settings["level"], settings["margin"], settings["seed"]) == (0.9, 0.02, 0)


def test_items_come_in_an_order_of_the_seed(results, study):
    numbers = results.table("items")["sample"].tolist()
    assert sorted(numbers) == list(range(64)) and numbers != sorted(numbers)
    ids = {number: item.id for number, item in enumerate(study.items)}
    assert results.table("items")["id"].tolist() == [ids[number] for number in numbers]


def test_a_killed_race_goes_on_with_the_same_settings(demo, study, results, tmp_path):
    class Killed(BaseException):
        pass

    class Dying(RacingSweep):
        def work(self, unit):
            if unit == 2:
                raise Killed
            return super().work(unit)

    with pytest.raises(Killed):
        run(Dying(demo, study.items, [2, 3], POINTS, **OPTIONS), tmp_path, progress=False)
    assert len(Results.load(tmp_path).parts) == 2
    run(RacingSweep(demo, study.items, [2, 3], POINTS, **OPTIONS), tmp_path, progress=False)
    assert tables(tmp_path) == tables(results.folder) and parts(tmp_path) == parts(results.folder)


def test_a_race_is_run_by_one_process_and_is_no_exact_sweep(demo, study, results, tmp_path):
    with pytest.raises(SinkgateError, match="each part of a race depends on those before.*one process"):
        run(study, tmp_path, shard=Shard(0, 2), progress=False)
    with pytest.raises(SinkgateError, match="study is race there and sweep here"):
        run(Sweep(demo, study.items, [2, 3], POINTS, chunk=16), results.folder, progress=False)
    with pytest.raises(SinkgateError, match="margin of a race is 2"):
        RacingSweep(demo, study.items, margin=2)


def test_a_page_shows_the_race(results, tmp_path):
    page = tmp_path / "race.html"
    write_page(results.folder, page)
    text = page.read_text()
    assert "Racing sweep" in text and "times fewer answers" in text and "worse" in text


def test_a_race_without_settings_left_answers_as_the_unmodified_model(demo, tmp_path):
    study = RacingSweep(demo, scene_items(24), [0], ((1.0, 0.999),), chunk=8, level=0.9, margin=0.5)
    answers = run(study, tmp_path, progress=False).table("answers")
    assert len(answers) == 24 + 8 and (answers["layer"].tail(8) == UNMODIFIED).all()
