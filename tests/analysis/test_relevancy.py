"""Relevancy is a difference of log-probabilities that a plain computation gives too; its gradient is the limit of small scales."""

import functools

import numpy as np
import pytest
import torch
from tiny import noise_image
from zoo import ZOO

import sinkgate as sg
from sinkgate.models.vlm import VLM


@pytest.fixture(scope="module")
def prompt(demo: sg.VLM) -> sg.Prompt:
    return demo.prompt(noise_image(0), "How many objects are there?")


def log_probability(vlm, prompt, ids, token=None, scale=0.0, layers=None):
    """By hand: one forward of prompt and answer, Keys scaled by hooks on ``k_proj`` where tokens are given."""

    def scaled(_module, _args, output):
        output = output.clone()
        output[:, prompt.visual[token]] *= scale
        return output

    chosen = [] if token is None else [vlm.attention[layer] for layer in layers or range(vlm.num_layers)]
    hooks = [attention.k_proj.register_forward_hook(scaled) for attention in chosen]
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0, prompt.length - 1 : -1].float().log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return float(logits[range(len(ids)), ids].sum())


def test_leave_out_is_the_difference_that_hooks_give(demo, prompt):
    ids = demo.encode_answer(prompt, "3")
    plain = log_probability(demo, prompt, ids)
    effect = sg.relevancy(demo, prompt, "3", batch_size=10)
    assert effect.values.shape == (64,) and effect.log_probability == pytest.approx(plain, abs=1e-4)
    for token in (0, 9, 63):
        assert float(effect.values[token]) == pytest.approx(plain - log_probability(demo, prompt, ids, token), abs=1e-4)
    halved = sg.relevancy(demo, prompt, "3", scale=0.5, layers=[2, 5], groups=torch.eye(64, dtype=torch.bool)[[9]])
    expected = plain - log_probability(demo, prompt, ids, 9, 0.5, [2, 5])
    assert float(halved.values) == pytest.approx(expected, abs=1e-4)
    assert effect.map().shape == (8, 8) and float(effect.map()[1, 1]) == float(effect.values[9])


def test_batches_and_singles_agree_and_scale_one_changes_nothing(demo, prompt):
    some = torch.eye(64, dtype=torch.bool)[::6]
    alone, beside = (sg.relevancy(demo, prompt, "3", groups=some, batch_size=size) for size in (1, 4))
    torch.testing.assert_close(alone.values, beside.values, atol=1e-4, rtol=0)
    assert sg.relevancy(demo, prompt, "3", groups=some, scale=1.0).values.abs().max() < 1e-4


def test_the_gradient_is_the_limit_of_small_changes(demo, prompt):
    near = 0.99
    gradient = sg.relevancy(demo, prompt, "3", estimate="gradient", scale=near)
    measured = sg.relevancy(demo, prompt, "3", scale=near)
    torch.testing.assert_close(gradient.values, measured.values, atol=2e-4, rtol=0.05)
    assert all(parameter.grad is None for parameter in demo.model.parameters())
    together = sg.relevancy(
        demo, prompt, "3", estimate="gradient", scale=near, groups=torch.ones(1, 64, dtype=torch.bool)
    )
    assert float(together.values) == pytest.approx(float(gradient.values.sum()), rel=1e-3)


def test_groups_are_scaled_together_and_the_own_answer_is_the_default(demo, prompt):
    groups = torch.zeros(2, 64, dtype=torch.bool)
    groups[0, [3, 9]] = groups[1, 20:40] = True
    effect = sg.relevancy(demo, prompt, groups=groups)
    trace = demo.answer(prompt)
    assert effect.answer == trace.text and effect.values.shape == (2,)
    plain = log_probability(demo, prompt, trace.ids)
    assert float(effect.values[0]) == pytest.approx(plain - log_probability(demo, prompt, trace.ids, [3, 9]), abs=1e-4)
    assert effect.map()[0, 3] == effect.map()[1, 1] == effect.values[0] and effect.map()[7, 7] == 0


def test_it_is_short_in_a_notebook(demo, prompt):
    shown = [repr(sg.relevancy(demo, prompt, estimate="gradient")), repr(sg.logit_lens(demo, prompt, top=2))]
    assert all("64" in text and "visual tokens" in text and len(text) < 160 for text in shown), shown


def test_wrong_arguments_are_named(demo, prompt):
    cases = {
        "estimate is 'shap'; expected one of leave-out, gradient": {"estimate": "shap"},
        r"layer \[8\]; expected whole numbers from 0 to 7": {"layers": [8]},
        r"layer \[1.5\]; expected whole numbers": {"layers": [1.5]},
        "no table of true and false": {"groups": [[True], [True, False]]},
        "scale is 'a'": {"scale": "a"},
        "batch_size 2.5; expected": {"batch_size": 2.5},
        r"groups is torch.float32 of shape \(1, 64\); expected torch.bool of shape \(groups, 64\)": {
            "groups": torch.ones(1, 64)
        },
        "scale is nan": {"scale": float("nan")},
        "batch_size 0; expected": {"batch_size": 0},
    }
    for words, options in cases.items():
        with pytest.raises(sg.SinkgateError, match=words):
            sg.relevancy(demo, prompt, "3", **options)
    result = sg.relevancy(demo, prompt, "3", layers=[7], groups=torch.ones(1, 64, dtype=torch.bool))
    assert torch.equal(result.map(np.int64(-1)), result.map())
    for sheet, words in ((9, "a sheet is a number from 0 to 0; got 9"), (None, "a sheet is a whole number; got None")):
        with pytest.raises(sg.SinkgateError, match=words):
            result.map(sheet)
    trace = demo.predict(prompt)
    for options, words in (
        ({"layer": 8}, "a layer is a number from 0 to 7; got 8"),
        ({"layer": 2, "head": 99}, "a head is a number from 0 to"),
        ({"layer": 2, "sheet": 1}, "a sheet is a number from 0 to 0; got 1"),
        ({"layer": 2, "row": None}, "an attention row is a whole number; got None"),
    ):
        with pytest.raises(sg.SinkgateError, match=words):
            trace.visual(**options)


def test_numbers_and_tables_may_be_those_of_numpy_and_a_layer_counts_once(demo, prompt):
    expected = sg.relevancy(demo, prompt, "3", layers=[1], estimate="gradient").values
    for layers in ([1, 1], np.array([1]), 1):
        assert torch.equal(sg.relevancy(demo, prompt, "3", layers=layers, estimate="gradient").values, expected)
    groups = np.arange(64)[None] < 8
    effect = sg.relevancy(demo, prompt, "3", groups=groups, scale=np.float32(0), batch_size=np.int64(2))
    assert torch.equal(effect.values, sg.relevancy(demo, prompt, "3", groups=torch.from_numpy(groups)).values)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama", "gemma3", "qwen3_vl", "instructblip"])
def test_architectures(name, monkeypatch):
    family = ZOO[name]
    model = family.model()
    vlm = VLM(model, None, model.config.model_type)
    monkeypatch.setattr(vlm, "answer", functools.partial(vlm.answer, max_new_tokens=4))  # it never ends by itself
    prompt = vlm.read(family.sample())
    groups = torch.arange(len(prompt.visual))[None] % 3 == torch.arange(3)[:, None]
    effect = sg.relevancy(vlm, prompt, groups=groups, scale=0.5)
    small = [
        sg.relevancy(vlm, prompt, groups=groups, scale=0.999, estimate=each).values
        for each in ("leave-out", "gradient")
    ]
    assert effect.values.isfinite().all() and effect.values.abs().max() > 1e-6
    torch.testing.assert_close(*small, atol=2e-4, rtol=0.1)
