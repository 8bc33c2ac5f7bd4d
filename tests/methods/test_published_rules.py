"""Methods that scale logits of some rows, against an attention that follows the published rules step by step."""

import pytest
import torch
from tiny import noise_image, tiny_llava
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.masking_utils import eager_mask

import sinkgate as sg
from sinkgate.methods import PAI, VAF, AdaptVis, FastV, ScalingVis, Suppress
from sinkgate.methods.base import layers_by_depth


@pytest.fixture(scope="module")
def tiny():
    model, processor = tiny_llava("clip", dtype=torch.float64, layers=4)
    return sg.VLM(model, processor, "tiny")


@pytest.fixture(scope="module")
def prompts(tiny):
    return [
        tiny.prompt(noise_image(seed), text)
        for seed, text in enumerate(("what color is the circle", "count", "how many"))
    ]


def masks(vlm, prompt):
    count = len(prompt.visual)
    return sg.SinkMasks(torch.zeros(count, dtype=torch.bool), torch.zeros(vlm.num_layers, count, dtype=torch.bool))


class Published:
    """Plain attention of one prompt whose logits (H, Q, K) a rule changes in place, in some layers of every forward."""

    def __init__(self, vlm, layers, rule):
        self.vlm, self.layers, self.rule = vlm, layers, rule

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        repeat = query.shape[1] // key.shape[1]
        logits = query[0] @ key[0].repeat_interleave(repeat, 0).mT * scaling
        if module.layer_idx in self.layers:
            self.rule(logits)
        if attention_mask is not None:
            logits = logits + attention_mask[0, :, :, : logits.shape[2]]
        output = logits.softmax(-1) @ value[0].repeat_interleave(repeat, 0)
        return output.transpose(0, 1)[None].contiguous(), None

    def __enter__(self):
        AttentionInterface.register("published", self)
        AttentionMaskInterface.register("published", eager_mask)
        self.vlm.model.set_attn_implementation({"text_config": "published"})

    def __exit__(self, *_):
        self.vlm.model.set_attn_implementation({"text_config": "sdpa"})
        del AttentionInterface._global_mapping["published"], AttentionMaskInterface._global_mapping["published"]


def generated(vlm, prompt):
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [vlm.adapter.image_token_id]
    with torch.no_grad():
        return torch.stack(vlm.model.generate(**prompt.inputs, **options).logits, 1)


def scaling_vis(weight):
    def of(first, end):
        def rule(logits):
            if logits.shape[1] > 1:  # the prompt's last row; rows of generated tokens stay
                logits[:, -1, first:end] *= weight

        return rule

    return of


def vaf(image, system):
    def of(first, end):
        def rule(logits):
            rows = slice(end, None) if logits.shape[1] > 1 else slice(None)
            logits[:, rows, first:end] *= image
            logits[:, rows, :first] *= system

        return rule

    return of


RULES = {
    "ScalingVis": (lambda: ScalingVis(0.3), range(4), scaling_vis(0.3)),
    "ScalingVis, one layer": (lambda: ScalingVis(2.5, (2,)), [2], scaling_vis(2.5)),
    "VAF": (lambda: VAF(1.8, 0.4, (1, 2)), [1, 2], vaf(1.8, 0.4)),
    "VAF, the paper's layers": (lambda: VAF(), [1], vaf(1.15, 0.95)),  # 9 to 14 of 32 lie in the second of four
}


@pytest.mark.parametrize("name", RULES)
def test_logits_are_those_of_the_published_rule(tiny, prompts, name):
    make, layers, rule = RULES[name]
    prompt = prompts[0]
    first, end = int(prompt.visual[0]), int(prompt.visual[-1]) + 1
    plain = generated(tiny, prompt)
    with make().applied(tiny, tiny.batch([prompt], [masks(tiny, prompt)])):
        got = generated(tiny, prompt)
    with Published(tiny, layers, rule(first, end)):
        expected = generated(tiny, prompt)
    assert (got - expected).abs().max() < 1e-6
    assert (got - plain).abs().max() > 1e-4, "it must act, or the test shows nothing"


def test_adaptvis_chooses_by_the_first_token_s_probability(tiny, prompts):
    """Each prompt of a batch for itself; a threshold between two of them parts them."""
    batch = tiny.batch(prompts, [masks(tiny, prompt) for prompt in prompts])
    sure = torch.tensor([tiny.predict(prompt).probabilities.max() for prompt in prompts])
    method = AdaptVis(0.3, 2.5, threshold=float(sure.sort().values[1]))
    assert torch.allclose(method.confidence(tiny, batch), sure, atol=1e-6)
    answers = tiny.batch(prompts, batch.sinks, [[5, 6], [7], [8, 9, 10]])
    assert torch.allclose(method.confidence(tiny, answers), sure, atol=1e-6)
    with torch.no_grad(), method.applied(tiny, batch):
        got = tiny.model(**batch.inputs, logits_to_keep=1).logits[:, -1]
    weights = [2.5 if each >= method.threshold else 0.3 for each in sure]
    assert sorted(weights) == [0.3, 2.5, 2.5]
    for row, prompt, weight in zip(got, prompts, weights, strict=True):
        single = tiny.batch([prompt], [masks(tiny, prompt)])
        with torch.no_grad(), ScalingVis(weight).applied(tiny, single):
            expected = tiny.model(**single.inputs, logits_to_keep=1).logits[0, -1]
        assert torch.allclose(row, expected, atol=1e-6)


def test_layers_of_other_depths_lie_at_the_same_depth():
    from types import SimpleNamespace

    def of(depth):
        return layers_by_depth(SimpleNamespace(num_layers=depth), 9, 14)

    assert of(32) == tuple(range(9, 15)) and of(64) == tuple(range(18, 30))
    assert of(8) == (2, 3) and of(4) == (1,) and of(1) == of(2) == (0,)


def test_layers_and_weights_that_do_not_exist_are_refused(tiny, prompts):
    batch = tiny.batch(prompts[:1], [masks(tiny, prompts[0])])
    for method in (ScalingVis(layers=(4,)), AdaptVis(layers=(4,)), VAF(layers=(4,))):
        with pytest.raises(sg.SinkgateError, match="no layer 4: tiny has layers 0 to 3"), method.applied(tiny, batch):
            pass
    for method, name in ((ScalingVis, "weight"), (AdaptVis, "sure"), (VAF, "image"), (Suppress, "scale")):
        for wrong in (5.0, float("nan"), "2", None, True):
            with pytest.raises(sg.GateError, match=f"{name} is .*; expected a finite number from 0 to 4"):
                method(**{name: wrong})
    for wrong in (7.0, float("nan"), "x"):
        with pytest.raises(sg.GateError, match="threshold is .* from 0 to 1"):
            AdaptVis(threshold=wrong)
    with pytest.raises(sg.GateError, match="guidance is inf; expected a finite number of at least 1"):
        PAI(guidance=float("inf"))
    for wrong in (2.5, "2", True):
        with pytest.raises(sg.GateError, match="the layer is a whole number"):
            FastV(layer=wrong)
    with pytest.raises(sg.GateError, match="a layer is a whole number"):
        VAF(layers="1-2").gates(tiny)


def test_layers_are_counted_as_gates_count_them(tiny):
    expected = VAF(layers=(3,)).gates(tiny)
    assert VAF(layers=(-1,)).gates(tiny) == VAF(layers=torch.tensor([3])).gates(tiny) == expected


def pai(boost):
    def of(first, end):
        def rule(logits):
            image = logits[:, -1, first:end]
            logits[:, -1, first:end] = image + boost * image.abs()

        return rule

    return of


def test_pai_raises_the_image_in_rows_that_produce_a_token(tiny, prompts):
    prompt = prompts[0]
    first, end = int(prompt.visual[0]), int(prompt.visual[-1]) + 1
    method = PAI(0.7, guidance=1.0, layers=(1, 3))
    with method.applied(tiny, tiny.batch([prompt], [masks(tiny, prompt)])):
        got = generated(tiny, prompt)
    with Published(tiny, [1, 3], pai(0.7)(first, end)):
        expected = generated(tiny, prompt)
    assert (got - expected).abs().max() < 1e-6
    assert (got - generated(tiny, prompt)).abs().max() > 1e-4
    assert method.first_layer(tiny) == 1 and PAI().first_layer(tiny) == 0


def test_pai_guides_as_transformers_processor_does(tiny, prompts):
    """The text alone is the prompt without its image tokens, for each prompt of a padded batch; from the second token on in steps."""
    batch = tiny.batch(prompts, [masks(tiny, prompt) for prompt in prompts])
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [tiny.adapter.image_token_id]
    with torch.no_grad(), PAI(0.0, guidance=3.0).applied(tiny, batch):
        got = torch.stack(tiny.model.generate(**batch.inputs, **options).logits, 1)
    for row, prompt in zip(got, prompts, strict=True):
        ids = prompt.inputs["input_ids"]
        text = ids[ids != tiny.adapter.image_token_id][None]
        processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(3.0, tiny.model, text)
        scores = []

        def keep(_ids, step, scores=scores):
            scores.append(step[0])
            return step

        with torch.no_grad():
            tiny.model.generate(**prompt.inputs, logits_processor=[processor, keep], **options)
        difference = row.double() - torch.stack(scores)
        difference[:, tiny.adapter.image_token_id] = difference[:, 0]  # suppressed, which shifts all others alike
        assert (difference - difference[:, :1]).abs().max() < 1e-4


def test_pai_excludes_implausible_tokens_and_refuses_beams(tiny, prompts):
    logits = torch.tensor([3.0, 2.0, 0.0])
    plausible = PAI(plausibility=0.1).guided(logits, torch.zeros(3)).isfinite()
    assert plausible.tolist() == [True, True, False]
    batch = tiny.batch(prompts[:1], [masks(tiny, prompts[0])])
    with (
        pytest.raises(sg.UnsupportedModelError, match="got 2 for 1: leave beams out"),
        PAI().applied(tiny, batch),
    ):
        tiny.model.generate(**batch.inputs, max_new_tokens=2, num_beams=2)
    for options, message in (({"guidance": 0.5}, "guidance is 0.5"), ({"boost": 4}, "boost is 4")):
        with pytest.raises(sg.SinkgateError, match=message):
            PAI(**options)
