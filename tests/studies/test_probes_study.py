"""Probes: features are what the model has, draws and splits are honest, and a probe finds what is there and nothing else."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_info, threadpool_limits
from tiny import noise_image

from sinkgate import SinkgateError
from sinkgate.data import Pictured, scene_facts
from sinkgate.sinks.classify import SinkMasks, classify
from sinkgate.sinks.criteria import AttentionShare, NormOutliers
from sinkgate.studies import probes
from sinkgate.studies.features import Features, draw_ordinary, encoder_states, read_states
from sinkgate.studies.probes import Probes, advantage, against_shuffled, probe, split, summary
from sinkgate.studies.runner import run

SOME = {"v_sink": NormOutliers(times=1.1), "l_sink": AttentionShare(times=1.3)}  # of a random model: some of each
QUICK = {"regularisers": [0.01, 1.0], "folds": 2}


# --- features


def pictures(count):
    return [Pictured(noise_image(seed), {"count": str(seed % 3), "colors": frozenset()}) for seed in range(count)]


def test_features_are_means_of_what_is_observed(tiny):
    study = Features(tiny, pictures(4), question="How many objects?", tokens=3, draws=2, **SOME)
    states = study.work(0)["states"]
    checked = set()
    for number, picture in enumerate(study.pictures):
        prompt = tiny.prompt(picture.image, "How many objects?")
        observation = tiny.observe(prompt)
        sinks = classify(observation, prompt.sheets, **SOME)
        drawn = draw_ordinary(sinks, 3, 2, f"0/{number}")
        for layer in range(tiny.num_layers):
            tokens = [observation.hidden[layer, position] for position in prompt.visual.tolist()]
            groups = [sinks.v_sink.nonzero()[:, 0], sinks.l_sink[layer].nonzero()[:, 0], *drawn]
            for slot, group in enumerate(groups):
                stored = states[str(layer)][number, slot]
                if len(group):
                    checked.add(slot)
                    assert torch.allclose(stored, sum(tokens[token] for token in group) / len(group), atol=1e-5)
                else:
                    assert stored.isnan().all()
        patches = torch.stack(
            [observation.features[(prompt.token_of_patch == token).nonzero()[0, 0]] for token in drawn[1]]
        )
        assert torch.allclose(states["encoder"][number, 3], patches.mean(0), atol=1e-5)
        assert states["encoder"][number, 1].isnan().all()  # there is no layer there to be an L-sink of
    assert checked == {0, 1, 2, 3}


def test_a_token_of_several_patches_is_their_mean():
    features = torch.arange(10.0).view(5, 2)
    observation = SimpleNamespace(
        features=features, token_of_patch=torch.tensor([1, -1, 0, 1, 0]), visual=torch.tensor([4, 5])
    )
    assert encoder_states(observation).tolist() == [[6, 7], [3, 4]]
    for closed in ({"features": None}, {"token_of_patch": None}):
        assert encoder_states(SimpleNamespace(**{**vars(observation), **closed})) is None


def test_chunks_and_order_change_nothing(tiny):
    by_two, by_three = (Features(tiny, pictures(5), chunk=chunk, tokens=2, draws=3, **SOME) for chunk in (2, 3))
    first = [by_two.work(unit) for unit in (2, 0, 1)]
    first = [first[1], first[2], first[0]]
    second = [by_three.work(unit) for unit in range(by_three.units)]
    assert (by_two.units, by_three.units) == (3, 2)
    for layer in ("encoder", "0", "2"):
        one, other = (torch.cat([part["states"][layer] for part in parts]) for parts in (first, second))
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    targets = [pd.concat([part["targets"] for part in parts], ignore_index=True) for parts in (first, second)]
    assert targets[0].equals(targets[1]) and targets[0]["sample"].tolist() == list(range(5))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.integers(1, 6), st.integers(1, 6))
def test_ordinary_tokens_are_sinks_at_no_layer(seed, share, tokens, draws):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(5, 20, generator=generator) < share * torch.rand(5, 1, generator=generator)
    sinks = SinkMasks(masks[0], masks[1:] & ~masks[0])
    drawn = draw_ordinary(sinks, tokens, draws, "a")
    assert len(drawn) == draws
    for each in drawn:
        assert len(each.unique()) == (tokens if int((~masks.any(0)).sum()) >= tokens else 0)
        assert not masks.any(0)[each].any()
    assert all(
        map(torch.equal, drawn, draw_ordinary(sinks, tokens, draws + 1, "a"))
    )  # fewer draws are the first of more


def test_every_ordinary_token_is_drawn_as_often():
    sinks = SinkMasks(torch.arange(12) < 2, torch.zeros(3, 12, dtype=torch.bool))
    drawn = torch.cat([each for number in range(200) for each in draw_ordinary(sinks, 5, 2, f"0/{number}")])
    counts = torch.bincount(drawn, minlength=12)
    assert counts[:2].sum() == 0 and counts[2:].min() > 150 and counts[2:].max() < 250  # 200 each; 10 is one deviation


def test_a_picture_with_too_few_ordinary_tokens_goes_without(tiny):
    states = Features(tiny, pictures(1), tokens=17, draws=2, **SOME).work(0)["states"]["1"][0]  # of 16 tokens
    assert states[2:].isnan().all() and not states[0].isnan().any()


def test_half_precision_is_refused_where_it_does_not_reach(tiny, monkeypatch):
    stored = Features(tiny, pictures(1), dtype="float16", **SOME).work(0)["states"]["0"]
    assert stored.dtype == torch.float16
    real = tiny.each_layer
    monkeypatch.setattr(
        tiny, "each_layer", lambda prompt, reduce, *rest: real(prompt, lambda states: reduce(1e6 * states), *rest)
    )
    with pytest.raises(SinkgateError, match='beyond the range of float16; use dtype="float32"'):
        Features(tiny, pictures(1), dtype="float16", **SOME).work(0)


def test_wrong_arguments_and_pictures(tiny):
    for wrong in ({"tokens": 0}, {"draws": 0}, {"dtype": "int8"}):
        with pytest.raises(SinkgateError, match=f"{next(iter(wrong))} is"):
            Features(tiny, [], **wrong)
    with pytest.raises(SinkgateError, match="there is no layer 3; .* has 3"):
        Features(tiny, [], layers=[0, 3])
    with pytest.raises(SinkgateError, match="picture 1: the image file is empty"):
        Features(tiny, [*pictures(1), Pictured(b"", {})]).work(0)


# --- a probe


def planted(rng, labels, width=12, strength=3.0):
    """Noise with the labels in its first dimensions."""
    states = rng.normal(size=(len(labels), width))
    signal = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    states[:, : signal.shape[1]] += strength * signal
    return states.astype(np.float32)


def test_a_probe_finds_a_planted_class_and_a_shuffled_one_does_not():
    rng = np.random.default_rng(0)
    labels = rng.choice(["3", "4", "10"], 400)
    states = planted(rng, labels)
    scores = probe(states[:250], labels[:250], states[250:], labels[250:])
    assert scores["true"].accuracy > 0.9 and scores["true"].mean_average_precision > 0.9
    assert scores["shuffled"].accuracy < 0.5 and scores["shuffled"].mean_average_precision < 0.5
    assert scores["true"].regulariser == scores["shuffled"].regulariser
    assert scores["true"].chance == pd.Series(labels[250:]).value_counts(normalize=True).max()
    assert scores["true"][4:] == (0, 250, 150)
    nothing = rng.normal(size=states.shape)
    assert probe(nothing[:250], labels[:250], nothing[250:], labels[250:])["true"].accuracy < 0.5


def test_many_labels_and_those_that_never_or_always_occur():
    rng = np.random.default_rng(1)
    labels = rng.random((400, 3)) < (0.5, 0.3, 0.4)
    states = planted(rng, labels)
    three = probe(states[:250], labels[:250], states[250:], labels[250:], **QUICK)
    assert three["true"].accuracy > 0.85 and three["true"].mean_average_precision > 0.85
    assert three["shuffled"].mean_average_precision < 0.55 and three["true"].left_out == 0
    assert three["true"].chance == pytest.approx(
        np.mean([max(column.mean(), 1 - column.mean()) for column in labels[250:].T])
    )
    always, never, once = np.ones((400, 1), bool), np.zeros((400, 1), bool), np.arange(400)[:, None] == 7
    six = np.hstack([labels[:, :1], always, labels[:, 1:2], never, once, labels[:, 2:]])
    for label, scores in probe(states[:250], six[:250], states[250:], six[250:], **QUICK).items():
        if label == "true":  # shuffling moves other columns together
            assert scores[:4] == three[label][:4]
        assert scores.left_out == 3
    constant = probe(states[:250], never[:250], states[250:], never[250:])["true"]
    assert np.isnan(constant.accuracy) and np.isnan(constant.chance) and constant[4:] == (1, 250, 150)


def test_a_label_that_the_test_lacks_has_no_precision_but_an_accuracy():
    rng = np.random.default_rng(2)
    labels = rng.random((300, 2)) < 0.5
    states = planted(rng, labels, strength=8.0)
    labels[200:, 1] = False
    scores = probe(states[:200], labels[:200], states[200:], labels[200:], **QUICK)["true"]
    assert (
        scores.mean_average_precision > 0.99 and 0.6 < scores.accuracy < 0.9
    )  # the second label's states say otherwise


def test_a_class_too_rare_to_learn_is_wrong_in_the_test():
    rng = np.random.default_rng(3)
    labels = rng.choice(["a", "b"], 300)
    states = planted(rng, labels, strength=9.0)
    labels[7], labels[200:220] = "c", "c"
    scores = probe(states[:200], labels[:200], states[200:], labels[200:], **QUICK)["true"]
    assert scores[4:] == (1, 199, 100) and 0.75 < scores.accuracy <= 0.8
    alone = probe(states[:8], np.array(["a"] * 8), states[8:], labels[8:])["true"]
    assert np.isnan(alone.accuracy) and alone.train == 8


def test_the_choice_never_sees_the_test():
    rng = np.random.default_rng(4)
    labels = rng.choice(["a", "b", "c"], 240)
    states = planted(rng, labels, width=100, strength=2.0)
    one = probe(states[:120], labels[:120], states[120:], labels[120:])["true"]
    other = probe(states[:120], labels[:120], 50 * states[120:] + 3, np.roll(labels[120:], 7))["true"]
    assert one.regulariser == other.regulariser and one.accuracy > other.accuracy + 0.2
    chosen = {
        probe(s[:120], labels[:120], s[120:], labels[120:])["true"].regulariser
        for strength in (0.0, 1.0, 6.0)
        for s in [planted(np.random.default_rng(5), labels, 100, strength)]
    }
    assert len(chosen) > 1  # or it would choose nothing


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("classes", [("b", "a"), ("c", "a", "b"), (True, False)])
def test_the_penalty_is_chosen_by_the_log_loss_of_scikit_learn(classes):
    rng = np.random.default_rng(7)
    labels = rng.choice(classes, 90)
    states = planted(rng, labels, width=20, strength=1.0)
    settings = {"Cs": [0.001, 0.1, 10.0], "cv": StratifiedKFold(3), "max_iter": 1000}
    own, reference = (
        LogisticRegressionCV(**settings, scoring=scoring).fit(states, labels)
        for scoring in (probes._log_likelihood, "neg_log_loss")
    )
    for label, scores in reference.scores_.items():
        assert own.scores_[label] == pytest.approx(scores, abs=1e-6)


def test_scale_and_offset_of_features_do_not_matter():
    rng = np.random.default_rng(6)
    labels = rng.choice(["a", "b"], 200)
    states = planted(rng, labels, strength=1.0)
    moved = (states * rng.uniform(0.01, 100, 12) + rng.normal(size=12)).astype(np.float32)
    plain, scaled = (probe(s[:120], labels[:120], s[120:], labels[120:], **QUICK)["true"] for s in (states, moved))
    assert scaled.accuracy == pytest.approx(plain.accuracy, abs=0.02)


# --- the study


@pytest.fixture
def parts(tmp_path):
    """Two parts of 100 pictures: V-sinks know the count, ordinary tokens do not, every third picture has an L-sink (in layer 1)."""
    rng = np.random.default_rng(0)
    counts = rng.choice(["1", "2"], 100)
    folders = []
    for first in (0, 60):
        rows = range(first, 60 if first == 0 else 100)
        targets = counts[list(rows)]
        states = rng.normal(size=(len(rows), 4, 8))
        states[:, 0] = planted(rng, targets, 8, strength=6.0)
        states[:, 1] = planted(rng, targets, 8, strength=6.0)
        states[[row % 3 > 0 for row in rows], 1] = np.nan
        states[[row % 10 == 0 for row in rows], 2:] = np.nan
        layer_0 = states.copy()
        layer_0[:, 1] = np.nan
        folder = tmp_path / f"{first:05d}"
        folder.mkdir()
        tensors = {str(layer): torch.tensor(each).half() for layer, each in ((1, states), (0, layer_0), (10, states))}
        save_file({**tensors, "encoder": torch.tensor(layer_0)}, folder / "states.safetensors")
        table = {
            "sample": list(rows),
            "count": [f'"{count}"' if row % 2 else None for count, row in zip(targets, rows, strict=True)],
            "colors": ['["red"]' if count == "1" else "[]" for count in targets],
        }
        pd.DataFrame(table).to_parquet(folder / "targets.parquet")
        folders.append(folder)
    return folders


def test_each_group_is_probed_on_the_pictures_that_have_it(parts):
    study = Probes(parts, **QUICK)
    assert study.places == ["encoder", "0", "1", "10"] and study.units == 4
    assert study.settings["targets"] == ["count", "colors"]
    scores = study.work(2)["scores"]
    assert list(scores.columns) == [
        "target", "place", "group", "draw", "labels", "accuracy", "mean_average_precision", "chance", "regulariser", "left_out", "train", "test",
    ]  # fmt: skip
    assert set(scores["place"]) == {"1"} and len(scores) == 2 * 3 * 2 * 2
    pictures_of = (
        scores.assign(pictures=scores["train"] + scores["test"]).groupby(["target", "group"])["pictures"].unique()
    )
    assert {key: value.tolist() for key, value in pictures_of.items()} == {
        ("count", "v_sink"): [50], ("count", "l_sink"): [17], ("count", "ordinary"): [50],
        ("colors", "v_sink"): [100], ("colors", "l_sink"): [34], ("colors", "ordinary"): [90],
    }  # fmt: skip
    mean = summary(scores).set_index(["target", "group", "labels"])["accuracy"]
    assert mean["count", "v_sink", "true"] > 0.95 and mean["colors", "v_sink", "true"] > 0.95
    assert mean["colors", "ordinary", "true"] < 0.75 and mean["colors", "v_sink", "shuffled"] < 0.75
    assert set(study.work(0)["scores"]["group"]) == {"v_sink", "ordinary"}  # no picture has an L-sink there


def test_shared_probes_see_the_same_pictures(parts):
    scores = Probes(parts, shared=True, **QUICK).work(2)["scores"]
    assert set(scores.query("target == 'colors'").eval("train + test")) == {30}  # an L-sink and ordinary tokens
    assert scores.groupby(["target", "draw"])[["train", "test"]].nunique().eq(1).all(axis=None)
    alone = Probes(parts, shared=True, **QUICK).work(1)["scores"]
    assert set(alone.query("target == 'colors'").eval("train + test")) == {
        90
    }  # none has an L-sink: it is not asked for


def test_fits_run_on_one_blas_thread(parts, monkeypatch):
    threads = set()

    def count(*_):
        threads.update(pool["num_threads"] for pool in threadpool_info())
        return {}

    monkeypatch.setattr(probes, "_probe", count)
    with threadpool_limits(4):
        Probes(parts).work(0)
    assert threads == {1}


def test_what_is_too_little_to_learn_from_is_told_as_nan(parts):
    scores = Probes(parts, targets=["count"], folds=12).work(2)["scores"].query("group == 'l_sink'")
    assert scores["accuracy"].isna().all() and (scores["train"] + scores["test"] <= 17).all() and len(scores) == 4
    assert summary(scores)["draws"].eq(0).all()


def test_splits_are_by_draw_and_of_the_share_asked_for():
    splits = [split(100, 0.3, (0, draw)) for draw in range(4)]
    assert [each.sum() for each in splits] == [30] * 4 and len({tuple(each) for each in splits}) == 4
    assert (split(100, 0.3, (0, 2)) == splits[2]).all() and (split(100, 0.3, (1, 2)) != splits[2]).any()


def test_states_are_read_in_the_order_of_the_parts(parts):
    read, other = read_states(parts, "10"), read_states(parts[::-1], "10")
    assert read.shape == (4, 100, 8) and read.dtype == np.float32
    assert np.array_equal(read, np.concatenate([other[:, 40:], other[:, :40]], 1), equal_nan=True)


def test_wrong_targets_and_arguments(parts):
    with pytest.raises(SinkgateError, match="no target 'size'; these pictures have count, colors"):
        Probes(parts, targets=["size"]).work(0)
    table = pd.read_parquet(parts[1] / "targets.parquet")
    table.assign(colors='"red"').to_parquet(parts[1] / "targets.parquet")
    with pytest.raises(SinkgateError, match="target 'colors' is one class in some pictures"):
        Probes(parts).work(0)
    for wrong in ({"parts": []}, {"test": 1.0}, {"folds": 1}, {"regularisers": [0.0]}):
        with pytest.raises(SinkgateError):
            Probes(**{"parts": parts, **wrong})


def test_summary_and_advantage_of_known_scores():
    rows = [
        (group, labels, draw, score, 2 * score)
        for group, labels, scores in (
            ("v_sink", "true", (0.9, 0.8, 1.0)), ("v_sink", "shuffled", (0.5, 0.5, 0.5)),
            ("l_sink", "true", (0.6, np.nan, 0.5)), ("ordinary", "true", (0.5, 0.6, 0.7)), ("ordinary", "shuffled", (0.9, 0.9, 0.9)),
        )
        for draw, score in enumerate(scores)
    ]  # fmt: skip
    scores = pd.DataFrame(rows, columns=["group", "labels", "draw", "accuracy", "mean_average_precision"])
    scores = scores.assign(target="count", place="3", chance=0.4, train=70, test=30)
    mean = summary(scores).set_index(["group", "labels"])
    assert mean.loc[("v_sink", "true"), "accuracy"] == pytest.approx(0.9)
    assert mean.loc[("v_sink", "true"), "accuracy_std"] == pytest.approx(0.1)
    assert mean.loc[("l_sink", "true"), "draws"] == 2 and mean.loc[("l_sink", "true"), "train"] == 70
    better = advantage(scores).set_index("group")
    assert list(better.index) == ["v_sink", "l_sink"]
    assert better.loc["v_sink", "accuracy"] == pytest.approx((0.4 + 0.2 + 0.3) / 3)
    assert better.loc["v_sink", "accuracy_std"] == pytest.approx(np.std([0.4, 0.2, 0.3], ddof=1))
    assert better.loc["v_sink", "mean_average_precision"] == pytest.approx(0.6)
    assert better.loc["l_sink", "accuracy"] == pytest.approx((0.1 - 0.2) / 2) and better.loc["l_sink", "draws"] == 2


def test_both_studies_in_their_folders(demo, tmp_path):
    """On the demo model V-sinks know the background, and whether there is one object or two."""
    facts = list(scene_facts(60, counts=(1, 2)))
    features = run(Features(demo, facts, layers=[1, 6], draws=2, chunk=25), tmp_path / "features", progress=False)
    assert len(features.parts) == 3 and features.table("targets")["sample"].tolist() == list(range(60))
    assert features.about["settings"]["layers"] == [1, 6]
    study = Probes(features.parts, features.about["model"], targets=["background", "count"], **QUICK)
    scores = run(study, tmp_path / "probes", progress=False).table("scores")
    assert list(dict.fromkeys(scores["place"])) == ["encoder", "1", "6"]
    mean = summary(scores).query("labels == 'true' and group == 'v_sink'")
    assert len(mean) == 6 and (mean["accuracy"] > mean["chance"] + 0.2).all()


def test_probes_beside_their_control_leave_out_what_could_not_be_measured():
    rows = [
        {
            "target": "count",
            "place": "2",
            "group": group,
            "labels": labels,
            "draw": draw,
            "accuracy": accuracy + draw / 10,
        }
        | {"mean_average_precision": accuracy, "chance": 0.3, "train": 70, "test": 30}
        for group, labels, accuracy in [
            ("v_sink", "true", 0.5),
            ("v_sink", "shuffled", 0.2),
            ("l_sink", "true", np.nan),
            ("l_sink", "shuffled", np.nan),
        ]
        for draw in (0, 1)
    ]
    table = against_shuffled(pd.DataFrame(rows))
    assert table["group"].tolist() == ["v_sink"] and not table.isna().any(axis=None)
    assert table.loc[0, ["accuracy", "shuffled", "chance"]].tolist() == pytest.approx([0.55, 0.25, 0.3])
