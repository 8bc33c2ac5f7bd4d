"""Methods on a benchmark: batches equal single questions, scores equal those computed by hand."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from dummy_study import scene_items

import sinkgate as sg
from sinkgate.benchmarks import SCENES, Item
from sinkgate.data import Sample
from sinkgate.errors import PromptError, SinkgateError
from sinkgate.methods import VAR, Fixed, Registers, Remove, SinkToTheFront
from sinkgate.models.finder import SinkFinder
from sinkgate.studies.evaluation import Evaluation, accuracies, attention_by_method, changes, scores
from sinkgate.studies.runner import run
from sinkgate.training.dataset import ExampleCache
from sinkgate.training.evaluation import evaluate


@pytest.fixture(scope="module")
def items():
    return [replace(item, columns={"scope": "local"}) for item in scene_items(9)]


@pytest.fixture(scope="module")
def methods(demo):
    off = sg.Gates.ones(demo).set("v_sink", 0.0, [2])
    return {"unmodified": Fixed(sg.Gates.ones(demo)), "off": Fixed(off), "var": VAR(), "removed": Remove()}


def test_written_answers_are_those_of_one_question_at_a_time(demo, items, methods, tmp_path):
    study = Evaluation(demo, SCENES, items, methods, "generate", chunk=4)
    answers = run(study, tmp_path, progress=False).table("answers").set_index(["method", "sample"])
    off = sg.Gates.ones(demo).set("v_sink", 0.0, [2])
    for number, item in enumerate(items):
        prompt = demo.prompt(item.sample.images, item.sample.question)
        for name, gates in (("unmodified", None), ("off", off)):
            row, text = answers.loc[(name, number)], demo.answer(prompt, gates).text
            assert row["text"] == text and row["right"] == (text == item.sample.answer)


def test_attention_is_that_of_a_trace(demo, items, tmp_path):
    """One and several prompts in a batch; methods that start at a late layer, or move tokens; the unmodified model."""
    late = sg.Gates.ones(demo).set("v_sink", 0.0, [5])
    methods = {
        "unmodified": Fixed(sg.Gates.ones(demo)),
        "late": Fixed(late),
        "removed": Remove(),
        "front": SinkToTheFront(),
    }
    study = Evaluation(demo, SCENES, items[:5], methods, chunk=4, find=SinkFinder(), attention=True)
    table = run(study, tmp_path, progress=False).table("attention")
    groups = ["v_sink", "l_sink", "ordinary", "text"]
    assert table.groupby("method").size().eq(5).all()
    assert np.allclose(table[groups].sum(axis=1), 1, atol=1e-5)
    shares = table.set_index(["method", "sample"])[groups]
    for number, item in enumerate(items[:5]):
        prompt = demo.prompt(item.sample.images, item.sample.question)
        sinks = sg.find_sinks(demo, prompt)
        for name, gates in (("unmodified", None), ("late", late)):
            expected = demo.predict(prompt, gates).shares(sinks)
            means = [float(expected[group].mean()) for group in groups]
            assert np.allclose(shares.loc[(name, number)], means, atol=1e-5)
    assert (shares.loc["removed", "v_sink"] == 0).all()
    # tokens in front of the others lose the attention of their old place, not that of another token
    front, plain = shares.loc["front", "v_sink"], shares.loc["unmodified", "v_sink"]
    assert ((front / plain).between(0.5, 2)).all()
    means = attention_by_method(table).set_index("method")
    assert means.loc["late", "v_sink"] == pytest.approx(shares.loc["late", "v_sink"].mean(), rel=1e-5)


def test_methods_that_encode_the_image_anew_are_evaluated(demo, items, tmp_path):
    """The neurons of no patch leave the model as it is but for the extra token; example caches without pixels are refused."""
    methods = {"unmodified": Fixed(sg.Gates.ones(demo)), "registers": Registers(((1, 3),))}
    for scoring in ("likelihood", "generate"):
        answers = run(Evaluation(demo, SCENES, items[:3], methods, scoring), tmp_path / scoring, progress=False)
        assert answers.table("answers").groupby("method").size().to_dict() == {"registers": 3, "unmodified": 3}
    samples = [item.sample for item in items[:2]]
    assert len(evaluate(demo, methods, samples, progress=False).right["registers"]) == 2
    with pytest.raises(PromptError, match="pixels=True"):
        evaluate(demo, methods, samples, examples=ExampleCache(demo), progress=False)


def test_forced_and_written_agree_where_answers_are_open(demo, items, methods, tmp_path):
    both = [
        run(Evaluation(demo, SCENES, items, methods, scoring, chunk=5), tmp_path / scoring, progress=False)
        for scoring in ("likelihood", "generate")
    ]
    forced, written = (each.table("answers").set_index(["method", "sample"])["right"] for each in both)
    assert forced.equals(written[forced.index])
    assert 0 < forced.mean() < 1, "a test of both sides"


def test_old_names_of_scoring_are_the_same_study(demo, items, methods, tmp_path):
    for old, new in (("forced", "likelihood"), ("written", "generate")):
        assert (
            Evaluation(demo, SCENES, items, methods, old).settings
            == Evaluation(demo, SCENES, items, methods, new).settings
        )


def test_an_option_is_said(demo, methods, tmp_path):
    options = ("1", "2", "3", "4", "5")
    questions = [item.sample for item in scene_items(5, kinds=["count"])]
    items = [Item(replace(sample, options=options), str(i), {"scope": "global"}) for i, sample in enumerate(questions)]
    answers = run(Evaluation(demo, SCENES, items, methods), tmp_path, progress=False).table("answers")
    joined = answers.merge(
        pd.DataFrame({"sample": range(5), "true": [sample.answer for sample in questions]}), on="sample"
    )
    assert joined["said"].isin(options).all()
    assert (joined["right"] == (joined["said"] == joined["true"])).all()


def frames():
    items = pd.DataFrame(
        {"sample": range(6), "task": ["a", "a", "b", "b", "b", "b"], "scope": ["global"] * 2 + ["local"] * 4}
    )
    right = {"unmodified": [1, 0, 1, 0, 0, 0], "better": [1, 1, 1, 1, 0, 1], "same": [1, 0, 1, 0, 0, 0]}
    answers = [
        pd.DataFrame({"sample": range(6), "method": name, "right": map(bool, marks)}) for name, marks in right.items()
    ]
    return items, pd.concat(answers, ignore_index=True)


def test_scores_and_changes_by_hand():
    items, answers = frames()
    table = scores(SCENES, items, answers).set_index(["score", "method"])
    assert table.loc[("micro", "better"), "value"] == pytest.approx(5 / 6)
    assert table.loc[("kind mean", "better"), "value"] == pytest.approx((1 + 3 / 4) / 2)
    assert table.loc[("local", "better"), "change"] == pytest.approx(1 / 2)
    low, high = table.loc[("micro", "better"), ["low", "high"]]
    assert low <= 1 / 2 <= high and low >= 0
    assert (table.xs("same", level="method")[["change", "low", "high"]] == 0).all(axis=None)
    result = changes(items, answers).set_index(["task", "method"])
    assert result.loc[("all", "better"), ["wins", "losses"]].tolist() == [3, 0]
    assert result.loc[("all", "better"), "p"] == pytest.approx(0.25)
    assert result.loc[("b", "better"), "change"] == pytest.approx(0.5)
    assert (result["corrected"] >= result["p"]).all()
    by_task = accuracies(items, answers).set_index("task")
    assert by_task.loc["b"].tolist() == [1 / 4, 3 / 4, 1 / 4]
    assert list(by_task.columns) == ["unmodified", "better", "same"]
    assert by_task.loc["all", "unmodified"] == pytest.approx(2 / 6)


def test_scores_that_few_items_do_not_define_are_left_out(recwarn):
    items, answers = frames()
    few = items.assign(scope="local")
    table = scores(SCENES, few, answers)
    assert set(table["score"]) == {"micro", "kind mean", "local"} and table.notna().all(axis=None)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_what_is_wrong_is_said_before_anything_runs(demo, items, methods):
    with pytest.raises(SinkgateError, match="one called 'unmodified'"):
        Evaluation(demo, SCENES, items, {"var": VAR()})
    with pytest.raises(SinkgateError, match="scoring is 'sung'; expected likelihood or generate"):
        Evaluation(demo, SCENES, items, methods, "sung")
    with pytest.raises(SinkgateError, match="no extractor 'strict'.*robust"):
        Evaluation(demo, SCENES, items, methods, "written", "strict")
    with pytest.raises(SinkgateError, match="measured with likelihood scoring; got generate"):
        Evaluation(demo, SCENES, items, methods, "generate", attention=True)


def test_other_pictures_are_another_study(demo, items, methods, tmp_path):
    plain = {"unmodified": methods["unmodified"]}
    run(Evaluation(demo, SCENES, items[:3], plain), tmp_path, progress=False)
    swapped = [replace(items[0], sample=replace(items[0].sample, images=items[1].sample.images)), *items[1:3]]
    with pytest.raises(SinkgateError, match="the checksum of the samples' content is .* there and .* here"):
        run(Evaluation(demo, SCENES, swapped, plain), tmp_path, progress=False)
    with pytest.raises(
        SinkgateError, match="the checksum of the files of gates is not set there and 1 here; name another folder"
    ):
        run(Evaluation(demo, SCENES, items[:3], plain, origins={"gates": "1"}), tmp_path, progress=False)
    assert run(
        Evaluation(demo, SCENES, items[:3], plain, about={"path": "elsewhere"}), tmp_path, progress=False
    ).finished


class Unchanged:
    """A method of a user's own, with an option."""

    criterion, uses_l_sinks = None, False

    def __init__(self, number):
        self.number, self.lock = number, object()

    def first_layer(self, vlm):
        return len(vlm.adapter.all_layers)

    def applied(self, vlm, batch, recorder=None):
        return vlm.attached(None, recorder)


def test_another_method_under_the_same_name_is_another_study(demo, items, tmp_path):
    def begin(method, out, **options):
        methods = {"unmodified": Fixed(sg.Gates.ones(demo)), "ours": method}
        return run(Evaluation(demo, SCENES, items[:3], methods, **options), tmp_path / out, progress=False)

    torch.manual_seed(0)
    trained = sg.LSG.for_vlm(demo, [2])
    other = sg.LSG.for_vlm(demo, [2])
    with torch.no_grad():
        other.gates["2"].up.weight.add_(1)
    gates = sg.Gates.ones(demo)
    for number, (one, another) in enumerate(
        [
            (VAR(), VAR(moved=0.5)),
            (trained, other),
            (Fixed(gates.set("rest", 0.5, 2)), Fixed(gates.set("rest", 0.5, 3))),
            (Fixed(gates), Fixed(gates, "norm")),
            (Unchanged(1), Unchanged(2)),
        ]
    ):
        out = f"{number}"
        begin(one, out)
        assert begin(deepcopy(one), out).finished, "the same again"
        with pytest.raises(SinkgateError, match=r"begun with other options of the method ours: .* there, .* here"):
            begin(another, out)
    with pytest.raises(SinkgateError, match="attention measured here, not there; name another folder"):
        begin(VAR(), "0", attention=True)
    with pytest.raises(SinkgateError, match="was begun with the method ours|methods is"):
        plain = {"unmodified": Fixed(gates)}
        run(Evaluation(demo, SCENES, items[:3], plain), tmp_path / "0", progress=False)


def test_a_study_that_holds_no_options_of_methods_goes_on(demo, items, tmp_path):
    """Those of older releases."""
    methods = {"unmodified": Fixed(sg.Gates.ones(demo)), "var": VAR()}
    study = Evaluation(demo, SCENES, items[:3], methods)
    run(study, tmp_path, progress=False)
    record = json.loads((tmp_path / "study.json").read_text())
    del record["settings"]["options"]
    (tmp_path / "study.json").write_text(json.dumps(record))
    assert run(study, tmp_path, progress=False).finished


def test_an_item_that_cannot_be_asked_is_named(demo, items, methods, tmp_path):
    broken = Item(Sample((b"",), "How many objects are there?", "1"), "q-7", {})
    for scoring in ("likelihood", "generate"):
        with pytest.raises(SinkgateError, match="item q-7"):
            run(Evaluation(demo, SCENES, [*items[:2], broken], methods, scoring), tmp_path / scoring, progress=False)
