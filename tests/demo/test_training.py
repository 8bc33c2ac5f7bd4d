"""The demo model's making: packed rows equal single prompts, a resumed run equals a whole one, the card tells the truth."""

from random import Random

import pytest
import torch
from safetensors.torch import load_file

from sinkgate.demo import objectives, train
from sinkgate.demo.batches import pack, pixels
from sinkgate.demo.build import PATCHES, build_processor, build_tokenizer
from sinkgate.models.loading import DEMO
from sinkgate.scenes.questions import ask_all
from sinkgate.scenes.scene import Scene


def test_packed_rows_equal_single_prompts(demo):
    """Logits of every answer in a packed row are those of its question asked alone, template included."""
    rng = Random(3)
    scenes = [Scene.random(rng) for _ in range(2)]
    pairs = [ask_all(scene, rng)[:4] for scene in scenes]
    packed = pack([[(q.question, q.answer) for q in questions] for questions in pairs], demo.tokenizer, torch.float32)
    images = demo.processor.image_processor([scene.render() for scene in scenes], return_tensors="pt")["pixel_values"]
    together = demo.model(
        input_ids=packed.input_ids,
        pixel_values=images,
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
    ).logits
    for row, (scene, questions) in enumerate(zip(scenes, pairs, strict=True)):
        answers = packed.labels[row] != -100
        starts = [i for i in range(len(answers)) if answers[i] and not answers[i - 1]]
        for start, question in zip(starts, questions, strict=True):
            prompt = demo.prompt(scene.render(), question.question)
            alone = demo.model(**prompt.inputs).logits[0, -1]
            assert torch.allclose(together[row, start - 1], alone, atol=2e-3), question


def test_a_narrowed_turn_sees_only_the_kept_patches(demo):
    """Whatever the hidden patches hold, the narrowed turn says the same and the other turn sees the change."""
    scenes = [Scene.random(Random(i)) for i in range(2)]
    turns = [[("How many objects are there?", "3"), ("What color is the background?", "white")] for _ in scenes]
    packed = pack(turns, demo.tokenizer, torch.float32)
    patches = torch.zeros(2, PATCHES, dtype=torch.bool)
    patches[0, 5], patches[1, 9] = True, True
    mask = packed.narrowed([[True, False], [False, True]], patches)
    embeddings = demo.model.get_input_embeddings()(packed.input_ids)
    embeddings[:, :PATCHES] = torch.randn(2, PATCHES, embeddings.shape[-1], generator=torch.Generator().manual_seed(0))
    changed = embeddings.clone()
    for row, last in enumerate(patches.nonzero()[:, 1].tolist()):
        changed[row, last + 1 : PATCHES] += 1  # only patches behind the kept one: it cannot see them itself

    def say(inputs):
        return demo.model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=packed.position_ids, use_cache=False
        ).last_hidden_state.detach()

    same = torch.isclose(say(embeddings), say(changed), atol=1e-5).all(-1)
    assert same[0][packed.segments[0] == 1].all() and same[1][packed.segments[1] == 2].all()
    assert not same[0][packed.segments[0] == 2].any() and not same[1][packed.segments[1] == 1].any()
    assert torch.equal(packed.narrowed([[False] * 2] * 2, patches), packed.attention_mask)


def test_question_labels_are_the_words_of_questions(demo):
    packed = pack(
        [[("How many objects are there?", "3"), ("Is there a red circle?", "yes")]], demo.tokenizer, torch.float32
    )
    labels = packed.question_labels[0]
    words = demo.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
    assert words == "how many objects are there is there a red circle"
    assert ((packed.labels >= 0) & (packed.question_labels >= 0)).sum() == 0


def test_training_pixels_are_what_the_processor_makes():
    scenes = [Scene.random(Random(i)) for i in range(8)]
    trained = pixels(scenes)
    shown = build_processor().image_processor([scene.render() for scene in scenes], return_tensors="pt")["pixel_values"]
    assert trained.shape == shown.shape
    assert (trained - shown).abs().mean() < 0.02
    noisy = pixels(scenes, Random(0))
    assert noisy.abs().max() <= 1 and not torch.equal(noisy, trained)


def run(out):
    train.main(out, tower_steps=2, answer_steps=3, tower_batch=4, answer_batch=2, questions=2, device="cpu")


def test_a_killed_run_continues_to_the_same_weights(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    real = train.run_stage

    def killed_midway(name, module, optimizer, **options):
        if name == "answers":
            monkeypatch.setattr(objectives, "tower_targets", _raise_at_third_call(objectives.tower_targets))
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


def test_the_folder_is_small_and_whole():
    files = {path.name for path in DEMO.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= files
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 20e6
    assert len(build_tokenizer()) < 120 and PATCHES == 64
