"""The demo model's making: packed rows equal single prompts, a resumed run equals a whole one, the card tells the truth."""

import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from sinkgate.demo import evaluate, train
from sinkgate.demo.batches import pack, pixels
from sinkgate.demo.build import PATCHES, build_processor, build_tokenizer
from sinkgate.demo.questions import KINDS, ask_all
from sinkgate.demo.scenes import Scene
from sinkgate.loading import DEMO


def test_packed_rows_equal_single_prompts(demo):
    """Logits of every answer in a packed row are those of its question asked alone, template included."""
    rng = Random(3)
    scenes = [Scene.random(rng) for _ in range(2)]
    asked = [ask_all(scene, rng)[:4] for scene in scenes]
    packed = pack([[(q.question, q.answer) for q in questions] for questions in asked], demo.tokenizer, torch.float32)
    images = demo.processor.image_processor([scene.render() for scene in scenes], return_tensors="pt")["pixel_values"]
    together = demo.model(
        input_ids=packed.input_ids,
        pixel_values=images,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
    ).logits
    for row, (scene, questions) in enumerate(zip(scenes, asked, strict=True)):
        answers = packed.labels[row] != -100
        starts = [i for i in range(len(answers)) if answers[i] and not answers[i - 1]]
        for start, question in zip(starts, questions, strict=True):
            prompt = demo.prompt(scene.render(), question.question)
            alone = demo.model(**prompt.inputs).logits[0, -1]
            assert torch.allclose(together[row, start - 1], alone, atol=2e-3), question


def test_training_pixels_are_what_the_processor_makes():
    scenes = [Scene.random(Random(i)) for i in range(8)]
    trained = pixels(scenes)
    shown = build_processor().image_processor([scene.render() for scene in scenes], return_tensors="pt")["pixel_values"]
    assert trained.shape == shown.shape
    assert (trained - shown).abs().mean() < 0.02
    noisy = pixels(scenes, Random(0))
    assert noisy.abs().max() <= 1 and not torch.equal(noisy, trained)


def run(out):
    train.main(out, tower_steps=3, answer_steps=4, tower_batch=4, answer_batch=2, questions=2, device="cpu")


def test_a_killed_run_continues_to_the_same_weights(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    real = train.run_stage

    def killed_midway(name, module, optimizer, **options):
        if name == "answers":
            monkeypatch.setattr(train, "pack", _raise_at_third_call(train.pack))
        return real(name, module, optimizer, **{**options, "save_every": 1})

    monkeypatch.setattr(train, "run_stage", killed_midway)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.undo()
    assert torch.load(tmp_path / "killed" / "answers.pt", weights_only=True)["step"] == 2
    run(tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def _raise_at_third_call(function):
    calls = []

    def counted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*args)

    return counted


def test_accuracy_is_what_greedy_generation_gives(demo):
    data = evaluate.held_out(seed=9, count=12)
    scores = evaluate.accuracy(demo, data, batch=5)
    right = {kind: [] for kind in KINDS}
    for scene, questions in data:
        for question in questions:
            text = demo.answer(demo.prompt(scene.render(), question.question)).text
            right[question.kind].append(text == question.answer)
    for kind, score in scores.items():
        assert score.questions == len(right[kind])
        assert score.accuracy == pytest.approx(sum(right[kind]) / len(right[kind]))


def test_the_shipped_model_is_as_good_as_its_card_says(demo):
    """300 fresh scenes against the card's numbers, which were measured on other seeds."""
    report = json.loads((DEMO / "evaluation.json").read_text())
    scores = evaluate.accuracy(demo, evaluate.held_out(seed=77, count=300))
    assert evaluate.overall(scores) == pytest.approx(report["overall"], abs=0.03)
    for kind, score in scores.items():
        assert score.accuracy == pytest.approx(report["kinds"][kind]["accuracy"], abs=0.10), kind
    card = (DEMO / "README.md").read_text()
    assert f"**{report['overall']:.1%}**" in card
    assert report["overall"] >= 0.75


def test_the_folder_is_small_and_whole():
    files = {path.name for path in DEMO.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= files
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 20e6
    assert len(build_tokenizer()) < 120 and PATCHES == 64
