"""Reweighting and LoRA: their formulas, their parameters, their files."""

import json
import sys

import pytest
import torch
from method_cases import logits, prompts_of, some_sinks, vlm_of
from safetensors.torch import load_file, save_file
from tiny import shaken
from torch import nn

import sinkgate as sg
from sinkgate.methods import LoRA, Reweight, ReweightConfig


@pytest.fixture(scope="module")
def case():
    vlm = vlm_of("llava", torch.float64)
    (prompt,) = prompts_of("llava", vlm)
    return vlm, prompt, some_sinks(vlm, prompt)


def test_both_have_as_many_parameters_as_the_papers_gate():
    assert sum(p.numel() for p in Reweight(ReweightConfig(4096)).parameters()) == 262_272
    four = {name: nn.Linear(4096, 4096, bias=False, device="meta") for name in ("q", "k", "v", "o")}
    from peft import LoraConfig

    from sinkgate.methods.lora import _wrapped

    wrapped = _wrapped(four, LoraConfig(r=8, target_modules=list(four)))
    inside = {p for part in wrapped.values() for p in part.parameters()} - {four[name].weight for name in four}
    assert sum(p.numel() for p in inside) == 262_144


@pytest.mark.parametrize("weighing", ["softmax", "sigmoid"])
def test_weights_come_from_the_question_and_multiply_the_visual_tokens(case, weighing):
    vlm, prompt, sinks = case
    method = shaken(Reweight.for_vlm(vlm, bottleneck=5, weighing=weighing)).double()
    batch, states = vlm.batch([prompt], [sinks], [[7, 8]]), []
    hook = vlm.adapter.layers[0].register_forward_pre_hook(
        lambda _m, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        logits(vlm, batch)
        logits(vlm, batch, method)
    hook.remove()
    plain, weighed = states[0][0], states[1][0]
    question = plain[int(prompt.visual[-1]) + 1 : prompt.length].mean(0)
    normal = (question - question.mean()) / (question.var(unbiased=False) + 1e-5).sqrt()
    scores = method.up.weight @ nn.functional.gelu(method.down.weight @ normal)
    sigmoid = 1 / (1 + (-scores).exp())
    softmax = scores.exp() / scores.exp().sum()
    on_sinks, on_others = (2 * (softmax if weighing == "softmax" else sigmoid)).tolist()
    factor = torch.ones(len(plain), dtype=plain.dtype)
    factor[prompt.visual] = torch.where(sinks.v_sink, on_sinks, on_others).double()
    assert on_sinks != pytest.approx(1, abs=0.05)
    assert torch.allclose(weighed, plain * factor[:, None], atol=1e-6)


def test_reweight_files_round_trip_and_refuse(case, demo, tmp_path):
    vlm, prompt, sinks = case
    method = shaken(Reweight.for_vlm(vlm, weighing="sigmoid"))
    method.save_pretrained(tmp_path)
    again, batch = Reweight.from_pretrained(tmp_path), vlm.batch([prompt], [sinks])
    assert again.config == method.config
    with torch.no_grad():
        assert torch.equal(logits(vlm, batch, again), logits(vlm, batch, method))
    with pytest.raises(sg.GateError, match="32 wide, those of demo are 128"), again.applied(demo, batch):
        pass
    config = tmp_path / "reweight_config.json"
    content = json.loads(config.read_text())
    for change, words in (
        ({"format": "other"}, "format"),
        ({"version": 2}, "version 1"),
        ({"colour": 1}, "colour"),
        ({"weighing": "linear"}, "softmax or sigmoid"),
        ({"bottleneck": "64"}, "whole number"),
        ({"bottleneck": 5}, "cannot be read"),
    ):
        config.write_text(json.dumps(content | change))
        with pytest.raises(sg.GateError, match=words):
            Reweight.from_pretrained(tmp_path)
    config.write_text(json.dumps(content))
    (tmp_path / "reweight.safetensors").write_bytes(b"broken")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(sg.GateError, match="cannot be read"):
            Reweight.from_pretrained(folder)


def test_lora_is_a_low_rank_update_of_each_projection(case):
    vlm, prompt, sinks = case
    method, batch = shaken(LoRA.for_vlm(vlm, 1, rank=3, alpha=6)).double(), vlm.batch([prompt], [sinks])
    assert all(parameter.requires_grad for parameter in vlm.model.parameters()), "the model is as it was"
    with torch.no_grad():
        values = logits(vlm, batch, method)
    updates, attention = method.updates, vlm.attention[1]
    assert set(updates) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    before = {name: getattr(attention, name).weight.clone() for name in updates}
    with torch.no_grad():
        for name in updates:
            part = updates[name]
            getattr(attention, name).weight += 6 / 3 * part["lora_B"].weight @ part["lora_A"].weight
        expected = logits(vlm, batch)
        for name, weight in before.items():
            getattr(attention, name).weight.copy_(weight)
    assert torch.allclose(values, expected, atol=1e-6)
    assert sum(p.numel() for p in method.parameters()) == 3 * sum(sum(weight.shape) for weight in before.values())
    assert not any("lora" in name for name, _ in vlm.model.named_modules())


def test_half_precision_models_learn_in_float32():
    vlm = vlm_of("llava", torch.bfloat16)
    (prompt,) = prompts_of("llava", vlm)
    batch = vlm.batch([prompt], [some_sinks(vlm, prompt)])
    for method in (shaken(Reweight.for_vlm(vlm)), shaken(LoRA.for_vlm(vlm, 1))):
        assert {p.dtype for p in method.parameters()} == {torch.float32}
        values = logits(vlm, batch, method)
        assert values.dtype == torch.bfloat16 and not torch.equal(values, logits(vlm, batch))


def test_lora_files_are_pefts_own(case, tmp_path):
    from peft import PeftModel

    vlm, prompt, sinks = case
    method, batch = shaken(LoRA.for_vlm(vlm, 2)), vlm.batch([prompt], [sinks])
    method.save_pretrained(tmp_path)
    again, other = LoRA.from_pretrained(tmp_path, vlm), vlm_of("llava", torch.float64)
    with torch.no_grad():
        expected = logits(vlm, batch, method)
        assert again.first_layer(vlm) == 2 and torch.equal(logits(vlm, batch, again), expected)
        by_peft = PeftModel.from_pretrained(other.model, tmp_path)
        values = by_peft(**batch.inputs, use_cache=False).logits  # peft computes updates in the model's float64
    assert torch.allclose(values, expected, atol=1e-4)
    assert not torch.allclose(expected, logits(vlm, batch), atol=1e-2)


def test_lora_refuses_in_words(case, demo, tmp_path, monkeypatch):
    vlm, prompt, sinks = case
    batch, other = vlm.batch([prompt], [sinks]), vlm_of("llava", torch.float64)
    method = LoRA.for_vlm(vlm, 2)
    with pytest.raises(sg.SinkgateError, match="made on .*from_pretrained"), method.applied(other, batch):
        pass
    with pytest.raises(sg.SinkgateError, match="no layer 3.*0 to 2"):
        LoRA.for_vlm(vlm, 3)
    method.save_pretrained(tmp_path)
    with pytest.raises(sg.SinkgateError, match="for demo cannot be read|is .*, expected"):
        LoRA.from_pretrained(tmp_path, demo, any_model=True)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != first}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(sg.SinkgateError, match="lora_A.weight is missing, expected"):
        LoRA.from_pretrained(tmp_path, vlm)
    with pytest.raises(sg.SinkgateError, match="cannot be read"):
        LoRA.from_pretrained(tmp_path / "nowhere", vlm)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(sg.SinkgateError, match=r'pip install "sinkgate\[train\]"'):
        LoRA.for_vlm(vlm, 1)
