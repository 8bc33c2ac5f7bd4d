"""The oracle sweep: its answers against one forward at a time, its statistics against planted results."""

import numpy as np
import pandas as pd
import pytest
from dummy_study import scene_items

import sinkgate as sg
from sinkgate.benchmarks import Item
from sinkgate.data import Sample
from sinkgate.errors import SinkgateError
from sinkgate.studies.runner import Shard, run
from sinkgate.studies.sweep import UNMODIFIED, Sweep, confirmed, gains, groups_apart, in_words, leaning

POINTS = ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (1.0, 1.0))


@pytest.fixture(scope="module")
def items():
    return scene_items(7)


@pytest.fixture(scope="module")
def swept(demo, items, tmp_path_factory):
    return run(Sweep(demo, items, [2, 5], POINTS, chunk=3), tmp_path_factory.mktemp("sweep"), progress=False)


def test_answers_are_those_of_one_question_at_a_time(demo, items, swept):
    answers = swept.table("answers")
    assert len(answers) == len(items) * (1 + 2 * 3)  # the unmodified model is there once
    for number, item in enumerate(items):
        prompt = demo.prompt(item.sample.images, item.sample.question)
        for row in answers[answers["sample"] == number].itertuples():
            gates = sg.Gates.ones(demo)
            if row.layer != UNMODIFIED:
                gates = gates.set("v_sink", row.v_sink, row.layer).set("rest", row.ordinary, row.layer)
            assert row.right == (demo.answer(prompt, gates).text == item.sample.answer)


def test_items_with_options_are_judged_as_choose_does(demo, tmp_path):
    options = ("1", "2", "3", "4", "5")
    questions = scene_items(4, kinds=["count"])
    items = [
        Item(Sample(each.sample.images, each.sample.question, each.sample.answer, "count", options), each.id, {})
        for each in questions
    ]
    answers = run(Sweep(demo, items, [1, 2], POINTS, chunk=2), tmp_path, progress=False).table("answers")
    for number, item in enumerate(items):
        session = sg.Session(demo, demo.prompt(item.sample.images, item.sample.question))
        mine = answers[answers["sample"] == number]
        settings = [
            sg.Gates.ones(demo)
            if row.layer == UNMODIFIED
            else sg.Gates.ones(demo).set("v_sink", row.v_sink, row.layer).set("rest", row.ordinary, row.layer)
            for row in mine.itertuples()
        ]
        chosen = sg.choose(session, settings, options)
        assert mine["right"].tolist() == [options[index] == item.sample.answer for index in chosen]
        assert (mine["loss"] >= 0).all()
        assert (mine.loc[mine["right"], "loss"] < np.log(5)).all(), "the most probable of five has more than a fifth"


def test_neither_chunks_nor_shards_change_what_is_right(demo, items, swept, tmp_path):
    study = Sweep(demo, items, [2, 5], POINTS, chunk=2)
    run(study, tmp_path, shard=Shard(1, 2), progress=False)
    again = run(study, tmp_path, shard=Shard(0, 2), progress=False)
    key = ["sample", "layer", "v_sink"]
    mine, other = (each.table("answers").sort_values(key, ignore_index=True) for each in (again, swept))
    pd.testing.assert_frame_equal(mine, other, check_exact=False, atol=1e-4)
    pd.testing.assert_frame_equal(again.table("items"), swept.table("items"))


def test_three_groups(demo, items, tmp_path):
    points = [(1.0, 1.0, 0.0), (0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)]  # one twice, one the unmodified model
    study = Sweep(demo, items[:2], [3], points, chunk=2)
    answers = run(study, tmp_path, progress=False).table("answers")
    assert set(zip(answers["v_sink"], answers["l_sink"], answers["ordinary"], strict=True)) == {
        (1, 1, 1),
        (1, 0, 1),
        (0.5, 0.5, 0.5),
    }
    assert len(answers) == 2 * 3, "each cell once"


def test_an_item_that_cannot_be_asked_stops_the_sweep(demo, items, tmp_path):
    broken = Item(Sample((b"no picture",), "How many objects are there?", "1", "count"), "broken-1", {})
    with pytest.raises(SinkgateError, match="item broken-1 cannot be put to the model"):
        run(Sweep(demo, [*items[:1], broken], [0], POINTS), tmp_path, progress=False)
    with pytest.raises(SinkgateError, match="no sample"):
        run(Sweep(demo, [], [0], POINTS), tmp_path, progress=False)


# --- statistics on planted results


def planted(samples=400, seed=0):
    """Task "up" gains 20 points with V-sinks up in layer 0 and loses with them down; "down" the other way in layer 1; "flat" nothing."""
    rng = np.random.default_rng(seed)
    items = pd.DataFrame({"sample": range(3 * samples), "task": np.repeat(["up", "down", "flat"], samples)})
    cells = [(-1, 1.0, 1.0, 1.0)] + [
        (layer, v, *rest) for layer in (0, 1) for v, rest in ((0.9, (0.1, 0.1)), (0.1, (0.9, 0.9)), (0.5, (1.0, 0.2)))
    ]
    luck = rng.random(3 * samples)
    rows = []
    for layer, v_sink, l_sink, ordinary in cells:
        side = np.sign(v_sink - 0.5) if layer >= 0 else 0
        wish = {"up": side if layer == 0 else 0, "down": -side if layer == 1 else 0, "flat": 0}
        chance = 0.5 + 0.2 * items["task"].map(wish)
        right = (luck < chance).to_numpy() ^ (rng.random(3 * samples) < 0.05)
        rows.append(
            pd.DataFrame({"sample": items["sample"], "layer": layer, "v_sink": np.float32(v_sink), "l_sink": np.float32(l_sink),
                          "ordinary": np.float32(ordinary), "right": right, "loss": 1.0})
        )  # fmt: skip
    return items, pd.concat(rows, ignore_index=True)


def test_gains_find_what_was_planted_and_nothing_else():
    items, answers = planted()
    table = gains(items, answers)
    assert len(table) == 3 * 6
    clear = table[table["corrected"] < 0.01]
    assert set(zip(clear["task"], clear["layer"], clear["v_sink"], clear["change"] > 0, strict=True)) == {
        ("up", 0, 0.9, True),
        ("up", 0, 0.1, False),
        ("down", 1, 0.9, False),
        ("down", 1, 0.1, True),
    }
    row = table.query("task == 'up' and layer == 0 and v_sink == 0.9").iloc[0]
    right = answers.query("layer == 0 and v_sink > 0.8 and sample < 400")["right"].to_numpy()
    base = answers.query("layer == -1 and sample < 400")["right"].to_numpy()
    assert row["change"] == pytest.approx(right.mean() - base.mean())
    assert row["low"] < row["change"] < row["high"] and row["samples"] == 400


def test_the_best_of_many_idle_settings_is_not_confirmed():
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"sample": range(300), "task": "idle"})
    cells = [(-1, 1.0), *((layer, v / 10) for layer in range(20) for v in range(10))]
    answers = pd.concat(
        [
            pd.DataFrame({"sample": range(300), "layer": layer, "v_sink": v, "l_sink": 1.0, "ordinary": 1.0,
                          "right": rng.random(300) < 0.5, "loss": 1.0})
            for layer, v in cells
        ]
    )  # fmt: skip
    assert gains(items, answers)["change"].max() > 0.08, "chance alone promises as much"
    assert (gains(items, answers)["corrected"] > 0.05).all()
    (row,) = confirmed(items, answers).to_dict("records")
    assert row["searched"] > 0.08 > row["confirmed"] and row["low"] < 0 < row["high"]


def test_a_planted_best_is_confirmed():
    items, answers = planted()
    table = confirmed(items, answers).set_index("task")
    for task, cell in (("up", "layer 0: V 0.9, rest 0.1"), ("down", "layer 1: V 0.1, rest 0.9")):
        assert table.loc[task, ["first", "second"]].tolist() == [cell, cell]
        assert table.loc[task, "low"] > 0.1 and table.loc[task, "p"] < 0.001
    assert table.loc["flat", "low"] < 0 < table.loc["flat", "high"] or table.loc["flat", "confirmed"] <= 0
    families = confirmed(items, answers, families=groups_apart)
    assert set(families["family"]) == {"two groups", "three groups"}
    three = families[families["family"] == "three groups"]
    assert (
        three["first"]
        .isin(["layer 0: V 0.5, L 1, ordinary 0.2", "layer 1: V 0.5, L 1, ordinary 0.2", "unmodified"])
        .all()
    )


def test_an_oracle_leaves_the_model_alone_if_nothing_gains():
    items, answers = planted()
    worse = answers.assign(
        right=answers["right"] & (answers["layer"] < 0), loss=np.where(answers["layer"] < 0, 1.0, 0.5)
    )
    same = answers.assign(
        right=answers.merge(answers.query("layer == -1"), on="sample")["right_y"].to_numpy(),
        loss=np.where(answers["layer"] < 0, 1.0, 0.5),
    )
    for each in (worse, same):
        for families in (None, groups_apart):
            table = confirmed(items, each, families=families)
            assert (table[["first", "second"]] == "unmodified").all(axis=None)
            assert (table[["searched", "confirmed", "low", "high"]] == 0).all(axis=None)


def test_the_smallest_change_that_could_be_shown_is_told():
    items, answers = planted()
    many, few = (
        table.set_index("task")["smallest"] for table in (confirmed(items, answers), confirmed(*planted(samples=9)))
    )
    assert (many < 0.1).all() and (few > 0.3).all()
    wrong = confirmed(items, answers.assign(right=False))
    assert np.isinf(wrong["smallest"]).all() and np.isinf(leaning(items, answers.assign(right=False))["smallest"]).all()


def test_leanings_tell_direction_and_depth():
    items, answers = planted()
    table = leaning(items, answers).set_index(["task", "layer"])
    assert table.loc[("up", 0), "low"] > 0.2 and table.loc[("down", 1), "high"] < -0.2
    rest = table.drop([("up", 0), ("down", 1)])
    assert (rest["corrected"] > 0.05).all()
    whole = leaning(items, answers, together=True).set_index("task")
    assert whole.loc["up", "lean"] == pytest.approx(table.loc["up", "lean"].mean())
    off_line = answers[answers["l_sink"] != answers["ordinary"]]
    assert leaning(items, pd.concat([off_line, answers[answers["layer"] == -1]])).empty


def test_questions_about_one_picture_count_as_one():
    """Every question three times about the same picture: no more is known than from one of each."""
    items, answers = planted(60)
    items = items.assign(picture=[f"picture {number}" for number in items["sample"]])
    copies = [table.assign(sample=3 * table["sample"] + copy) for copy in range(3) for table in (items, answers)]
    three_items = pd.concat(copies[::2]).sort_values("sample", ignore_index=True)
    three_answers = pd.concat(copies[1::2], ignore_index=True)
    once, thrice = leaning(items, answers), leaning(three_items, three_answers)
    for column in ("lean", "low", "high", "smallest"):
        assert thrice[column].to_numpy() == pytest.approx(once[column].to_numpy())
    assert thrice["p"].to_numpy() == pytest.approx(once["p"].to_numpy(), abs=0.02)
    alone = confirmed(three_items.drop(columns="picture"), three_answers).iloc[0]
    together = confirmed(three_items, three_answers).iloc[0]
    assert together["task"] == "up" and together["first"] == together["second"] == "layer 0: V 0.9, rest 0.1"
    assert together["high"] - together["low"] == pytest.approx(3**0.5 * (alone["high"] - alone["low"]), rel=0.3)
    assert alone["p"] < together["p"] < 0.05 and together["smallest"] > 1.4 * alone["smallest"]


def test_a_task_on_one_picture_confirms_nothing():
    items, answers = planted(20)
    assert confirmed(items.assign(picture="one"), answers).empty
    assert (leaning(items.assign(picture="one"), answers)["p"] == 1).all()


def test_cells_in_words():
    cell = pd.Series({"layer": 3, "v_sink": 0.5, "l_sink": 1.0, "ordinary": 1.0})
    assert in_words(cell) == "layer 3: V 0.5, rest 1"
    assert in_words(cell.replace({0.5: 2.0}) * [1, 1, 0.25, 1]) == "layer 3: V 2, L 0.25, ordinary 1"
