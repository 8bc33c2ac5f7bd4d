"""Answers behind prompts: what is checked in one forward is what would be generated, on every architecture."""

import pytest
import torch
from tiny import noise_image, shaken, tiny_llava
from zoo import ZOO

import sinkgate as sg
from sinkgate.data import Sample
from sinkgate.methods import Fixed
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import find_v_sinks
from sinkgate.training.dataset import ExampleCache, ImageSinks, Prefix, SinkCounts, absent, batches
from sinkgate.training.ensemble import frozen
from sinkgate.training.evaluation import evaluate

QUESTION = "What color is the circle?"


def some_masks(vlm, prompt):
    v_sink = torch.arange(len(prompt.visual)) % 3 == 0
    return sg.SinkMasks(v_sink, torch.zeros(vlm.num_layers, len(v_sink), dtype=torch.bool))


@pytest.mark.parametrize("name", ZOO)
def test_an_answer_in_one_forward_is_what_decoding_gives(name):
    family = ZOO[name]
    vlm, prompt = family.vlm(), family.vlm().read(family.sample())
    sinks = some_masks(vlm, prompt)
    lsg = shaken(LSG.for_vlm(vlm, range(vlm.num_layers), start="identity"))
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options |= {"suppress_tokens": [vlm.adapter.image_token_id], "eos_token_id": None}
    for method in (Fixed(sg.Gates.ones(vlm)), lsg):
        with torch.no_grad(), method.applied(vlm, vlm.batch([prompt], [sinks])):
            written = vlm.model.generate(**prompt.inputs, **options)
        answer = written.sequences[0, prompt.length :].tolist()
        batch = vlm.batch([prompt], [sinks], [answer])
        assert torch.equal(batch.labels[0, prompt.length :], torch.tensor(answer))
        with torch.no_grad():
            logits = Prefix(vlm, batch).run(method)
        assert torch.allclose(logits[0], torch.cat(written.logits), atol=2e-4), type(method).__name__
    with frozen(vlm), lsg.applied(vlm, batch):
        prefix = Prefix(vlm, batch)
        prefix.batch.losses(prefix.within(lsg)).sum().backward()
    learnt = [gate.up.weight.grad for gate in lsg.gates.values()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in learnt)
    assert any(gradient.abs().sum() > 0 for gradient in learnt)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_side_by_side_is_as_alone(tower):
    vlm = sg.load(tiny_llava(tower, dtype=torch.float64))
    lsg = shaken(LSG.for_vlm(vlm, [0, 1, 2], start="identity")).double()
    examples = ExampleCache(vlm, some_masks)
    samples = [
        Sample((noise_image(1),), QUESTION, "red"),
        Sample((noise_image(2),), "Count the small red objects.", "a small red circle and two"),
        Sample((noise_image(3),), "Where is the large green square?", "top left"),
    ]
    ready = [examples.prepare(sample, "") for sample in samples]
    with torch.no_grad():
        together = Prefix(vlm, next(batches(vlm, ready))[1])
        for method in (lsg, lsg.only([2])):
            logits = together.run(method)
            losses, right = together.batch.losses(logits), together.right(logits)
            for row, example in enumerate(ready):
                alone = Prefix(vlm, next(batches(vlm, [example]))[1])
                single = alone.run(method)
                count = len(example.answer)
                assert torch.allclose(logits[row, :count], single[0], atol=1e-5)
                assert losses[row].item() == pytest.approx(alone.batch.losses(single)[0].item(), abs=1e-5)
                assert right[row] == alone.right(single)[0]


def test_encoded_answers_are_what_the_model_writes(demo):
    image = noise_image(0, (64, 64))
    prompt = demo.prompt(image, "How many objects are there?")
    written = demo.answer(prompt).ids
    text = demo.tokenizer.decode(written, skip_special_tokens=True)
    assert demo.encode_answer(prompt, text) == written, "with the token that ends it"
    with pytest.raises(sg.PromptError, match="answer is empty"):
        demo.encode_answer(prompt, " \n")


def test_evaluation_says_right_where_generation_does(demo):
    from random import Random

    from sinkgate.scenes.questions import ask_all
    from sinkgate.scenes.scene import Scene

    rng = Random("evaluation")
    scenes = [Scene.random(rng)]
    samples = [
        Sample((scene.render(64),), pair.question, pair.answer, pair.kind)
        for scene in scenes
        for pair in ask_all(scene, rng)
    ]
    gates = sg.Gates.ones(demo).set("rest", 0.0, [2])  # wrong often
    examples = ExampleCache(demo, lambda vlm, prompt: find_v_sinks(vlm, prompt))
    marks = evaluate(demo, {"off": Fixed(gates), "plain": Fixed(sg.Gates.ones(demo))}, samples, examples=examples)
    for name, table in (("off", gates), ("plain", None)):
        answers = []
        for sample in samples:
            prompt = demo.prompt(sample.images, sample.question)
            answers.append(demo.answer(prompt, table, find_v_sinks(demo, prompt)).text == sample.answer)
        assert marks.right[name] == answers
        assert marks.accuracy(name) == pytest.approx(sum(answers) / len(answers))
    assert marks.accuracy("plain") > marks.accuracy("off")
    by_kind = marks.by_kind("off")
    counts = {kind: marks.kinds.count(kind) for kind in by_kind}
    assert sum(by_kind[kind] * counts[kind] for kind in counts) == pytest.approx(sum(marks.right["off"]))
    with pytest.raises(sg.SinkgateError, match="no sample can be used.*empty"):
        evaluate(demo, {"off": Fixed(gates)}, [(noise_image(), "What?", "")], examples=examples)


def test_the_vision_encoder_alone_finds_the_same_v_sinks(demo):
    prompt = demo.prompt(noise_image(5, (64, 64)), QUESTION)
    assert torch.equal(find_v_sinks(demo, prompt).v_sink, sg.find_sinks(demo, prompt).v_sink)
    assert not find_v_sinks(demo, prompt).l_sink.any()


def test_images_of_several_questions_count_once():
    counts = [
        ImageSinks(*each) for each in ((0, 0, "", "norm", "a"), (2, 0, "", "norm", "a"), (0, 0, "", "", "b"), (0, None))
    ]
    assert SinkCounts.of(counts) == SinkCounts(3, 1, 0, "", "norm")
    assert absent(counts) == absent([ImageSinks(0, 0, picture="a")] * 8) == "", "too few images"
    assert absent([ImageSinks(0, 1, picture=str(number)) for number in range(8)]) == "no V-sinks in 8 images so far"


def test_questions_about_one_image_are_evaluated_as_one_image(demo):
    image = noise_image(0, (64, 64))
    samples = [(image, "How many objects are there?", "2"), (image, QUESTION, "red"), (noise_image(1), QUESTION, "red")]
    assert evaluate(demo, {"plain": Fixed(sg.Gates.ones(demo))}, samples, progress=False).sinks.images == 2
