"""The cards of the demo models: right answers are those of greedy decoding, sinks are checked against the scenes, numbers are the studies'."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import sinkgate as sg
from sinkgate.data import scene_samples
from sinkgate.demo import card as cards
from sinkgate.demo.batches import pack
from sinkgate.demo.plans import PLANS, published
from sinkgate.demo.scoring import by_kind, dialogues, held_out, right_answers
from sinkgate.demo.sinks import ENCODER, SceneSinks, on_objects, steady, summary
from sinkgate.methods import Fixed
from sinkgate.models.dimensions import sink_criteria
from sinkgate.scenes.questions import KINDS
from sinkgate.scenes.scene import Scene, SceneObject
from sinkgate.studies.runner import run
from sinkgate.training.dataset import ExampleCache


def test_packed_rows_are_scored_as_greedy_generation(demo):
    data = held_out(seed=9, count=2)
    packed = pack(dialogues(data), demo.tokenizer, torch.float32)
    images = demo.processor.image_processor([scene.render() for scene, _ in data], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = demo.model(
            input_ids=packed.input_ids,
            pixel_values=images,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
        ).logits
    answers = [
        [demo.answer(demo.prompt(scene.render(), q.question)).text == q.answer for q in questions]
        for scene, questions in data
    ]
    assert right_answers(logits, packed) == answers
    wrong = logits.roll(1, -1)
    assert not any(map(any, right_answers(wrong, packed)))


def test_accuracy_by_kind_counts_the_questions_of_each_kind():
    data = held_out(seed=3, count=40)
    scores = by_kind(data, [[q.answer == "yes" for q in questions] for _, questions in data])
    answers = [q.answer for _, questions in data for q in questions if q.kind == "presence"]
    assert scores["presence"] == answers.count("yes") / len(answers) > 0
    assert scores["count"] == 0 and list(scores) == list(KINDS)


def test_objects_cover_the_patches_under_their_middle():
    scene = Scene(
        "black",
        (SceneObject("circle", "red", "large", 0.3, 0.3), SceneObject("cross", "green", "small", 0.8, 0.7)),
    )
    covered = on_objects(scene, (8, 8))
    pixels = np.asarray(scene.render(1600)).astype(int)
    painted = [
        np.abs(pixels[r * 200 + 100, c * 200 + 100] - pixels[0, 0]).sum() > 60 for r in range(8) for c in range(8)
    ]
    assert any(painted) and all(covered[i] for i, paint in enumerate(painted) if paint)  # the boxes hold all paint
    assert covered.sum() < 20


def test_steady_sinks_are_the_same_for_every_question(demo):
    """A token that draws attention for one question of four is no L-sink; one that does for all four is."""
    scene, questions = held_out(seed=2, count=1)[0]
    prompts = [demo.prompt(scene.render(), question.question) for question in questions[:4]]
    flat = [replace(one, key_attention=torch.full_like(one.key_attention, 0.01)) for one in map(demo.observe, prompts)]
    for one in flat:
        one.key_attention[2, one.visual[11]] = 0.5
    flat[0].key_attention[2, flat[0].visual[30]] = 0.5
    flat[0].encoder_attention.fill_(0.01)
    criteria = sink_criteria(demo, v_sink="attention", l_sink="attention")
    v_sink, named = steady(flat, prompts[0].sheets, criteria)
    assert not v_sink.any()
    assert named.nonzero().tolist() == [[2, 11]]


def test_the_study_counts_sinks_on_objects(demo, tmp_path):
    results = run(SceneSinks(demo, [(scene, q[:3]) for scene, q in held_out(2, 2)]), tmp_path, progress=False)
    sinks = results.table("sinks")
    encoder = sinks[(sinks["layer"] == ENCODER) & (sinks["criterion"] == "attention")]
    for (scene, questions), tokens in zip(held_out(2, 2), encoder["tokens"], strict=True):
        found_by_name = sg.find_sinks(demo, demo.prompt(scene.render(), questions[0].question), v_sink="attention")
        assert tokens == found_by_name.v_sink.sum() > 0
    assert (encoder["attention"] > 5).all() and (sinks["on_objects"] <= sinks["tokens"]).all()
    row = summary(results).query("criterion == 'attention' and group == 'v_sink'").iloc[0]
    assert row["tokens"] == encoder["tokens"].mean() and row["images"] == 1 and row["encoder"] > 5
    assert summary(results).query("criterion == 'massive'")["tokens"].isna().all()


@pytest.mark.parametrize("name", PLANS)
def test_the_published_card_repeats_the_studies(name):
    plan = PLANS[name]
    record = json.loads((plan.weights / cards.RECORD).read_text())
    assert (plan.weights / "README.md").read_text() == cards.card(plan, record, published(plan))
    assert record["weights"] == cards.fingerprint(plan.weights)
    assert published(plan)["accuracy"].about["model"]["revision"]
    for figure in ("growth.svg", "accuracy.svg") if "history" in record else ():
        assert (plan.weights / figure).read_text().startswith("<svg")


def no_sinks(vlm, prompt):
    tokens = len(prompt.visual)
    return sg.SinkMasks(torch.zeros(tokens).bool(), torch.zeros(vlm.num_layers, tokens).bool())


def test_the_published_model_is_as_good_as_its_card(demo):
    """260 fresh questions against the card's numbers, which were measured on other seeds."""
    samples = list(scene_samples(260, 77, split="test", size=128))
    examples = ExampleCache(demo, no_sinks)  # nothing is scaled: none need be found
    result = sg.evaluate(demo, {"unmodified": Fixed(sg.Gates.ones(demo))}, samples, examples=examples, progress=False)
    table = cards.accuracy_by_kind(published(PLANS["demo-small"])["accuracy"]).set_index("kind")["accuracy"]
    assert result.accuracy("unmodified") == pytest.approx(table["all"], abs=0.03)
    assert set(table.index) == {*KINDS, "all"}
    for kind, accuracy in result.by_kind("unmodified").items():
        assert accuracy == pytest.approx(table[kind], abs=0.2), kind


def test_times_are_of_both_models_in_one_run(monkeypatch, demo):
    monkeypatch.setattr(cards, "load", lambda name, **_: demo)
    cost = cards.measure_cost(PLANS["demo-small"], pictures=1)
    assert cost["parameters"] == demo.model.num_parameters() and cost["megabytes"] > 4
    assert cost["tick_ms"] > 0 and cost["small"]["prefill_ms"] > 0
