"""Learned gates: their start, what they read, their gradients, their files."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import noise_image, shaken, some_sinks, tiny_llava
from zoo import ZOO

import sinkgate as sg
from sinkgate.methods.lsg import LSG, Groups, LSGConfig, SinkGate
from sinkgate.methods.lsg.config import GROUPINGS, SIGNALS
from sinkgate.models.vlm import VLM

QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def case():
    vlm = sg.load(tiny_llava("siglip", dtype=torch.float64))
    prompt = vlm.prompt(noise_image(3), QUESTION)
    return vlm, prompt, some_sinks(vlm, prompt, share=0.4)


def test_a_gate_has_the_papers_parameters():
    gate = SinkGate(LSGConfig((10,), 4096))
    assert sum(parameter.numel() for parameter in gate.parameters()) == 262_272


@given(st.sampled_from(list(GROUPINGS)), st.sampled_from(["paper", "identity"]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_scales_sum_to_their_total_and_begin_equal(grouping, start, seed):
    config = LSGConfig((0,), 32, grouping=grouping, start=start)
    signal = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * 100
    count = len(config.groups)
    fresh, trained = SinkGate(config)(signal), shaken(SinkGate(config), seed)(signal)
    expected = 1 / count if start == "paper" else 1.0
    assert torch.equal(fresh, torch.full_like(fresh, expected)) or start == "paper"
    assert torch.allclose(fresh, torch.full_like(fresh, expected))
    assert torch.allclose(trained.sum(1), torch.tensor(count * expected)) and (trained >= 0).all()


@pytest.mark.parametrize("name", ZOO)
def test_on_every_architecture_gates_start_as_they_say_and_read_as_they_act(name):
    family = ZOO[name]
    vlm, prompt = family.vlm(), family.vlm().read(family.sample())
    sinks = some_sinks(vlm, prompt, share=0.4)
    layers = range(vlm.num_layers)
    identity = LSG.for_vlm(vlm, layers, start="identity")
    assert identity.read(vlm, prompt, sinks).is_identity
    half = LSG.for_vlm(vlm, layers).read(vlm, prompt, sinks)
    assert torch.allclose(half.scales, torch.full((vlm.num_layers, 3), 0.5))
    lsg = shaken(LSG.for_vlm(vlm, layers, start="identity", grouping="three"))
    with torch.no_grad(), lsg.applied(vlm, vlm.batch([prompt], [sinks])) as trace:
        logits = vlm.model(**vlm.warm_inputs(prompt), use_cache=False, logits_to_keep=1).logits[0, -1]
    assert sorted(trace.scales) == list(layers)
    table = lsg.read(vlm, prompt, sinks)
    assert not torch.allclose(table.scales, torch.ones(()), atol=0.01)
    fixed = vlm.predict(prompt, table, sinks)
    assert torch.allclose(logits.float().softmax(-1), fixed.probabilities, atol=1e-5)
    assert not torch.allclose(fixed.probabilities, vlm.predict(prompt).probabilities, atol=1e-5)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_each_gate_reads_the_input_of_its_layer(case, signal, grouping):
    vlm, prompt, sinks = case
    lsg = shaken(LSG.for_vlm(vlm, [1], signal=signal, grouping=grouping)).double()
    hidden = vlm.observe(prompt).hidden[1].double()
    read = {"last": hidden[-1], "mean": hidden.mean(0), "visual": hidden[prompt.visual].mean(0)}[signal]
    with torch.no_grad():
        expected = lsg.gates["1"](read[None])[0]
    got = lsg.read(vlm, prompt, sinks).scales
    for columns, scale in zip(GROUPINGS[grouping], expected.tolist(), strict=True):
        assert got[1, list(columns)].tolist() == pytest.approx([scale] * len(columns), abs=1e-5)
    assert (got[[0, 2]] == 1).all()


def test_gradients_equal_finite_differences():
    """On BLIP-2's OPT, whose norms stay in float64; LLaMA's compute in float32, too coarse for differences."""
    vlm = VLM(ZOO["blip-2"].model(dtype=torch.float64), None, "blip-2")
    sample = ZOO["blip-2"].sample()
    prompt = vlm.read({**sample, "pixel_values": sample["pixel_values"].double()})
    sinks = some_sinks(vlm, prompt, share=0.4)
    lsg = shaken(LSG.for_vlm(vlm, [0, 2], bottleneck=3, start="identity", grouping="l_sink")).double()
    batch = vlm.batch([prompt], [sinks])
    inputs = batch.inputs

    def loss():
        with lsg.applied(vlm, batch):
            return vlm.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].log_softmax(-1)[7]

    loss().backward()
    for gate in lsg.gates.values():
        weight = gate.up.weight
        for position in ((0, 0), (1, 2), (0, 1)):
            step, values = 1e-5, []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[position] += sign * step
                    values.append(float(loss()))
                    weight[position] -= sign * step
            slope = (values[0] - values[1]) / (2 * step)
            assert weight.grad[position].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert any(gate.down.weight.grad.abs().sum() > 0 for gate in lsg.gates.values())


def test_in_decoding_the_prompts_scales_stay_unless_asked(case):
    vlm, prompt, sinks = case
    lsg = shaken(LSG.for_vlm(vlm, [0, 1, 2], start="identity")).double()
    batch, options = vlm.batch([prompt], [sinks]), {"max_new_tokens": 5, "do_sample": False}
    options["suppress_tokens"] = [vlm.adapter.image_token_id]
    with torch.no_grad(), lsg.applied(vlm, batch):
        stay = vlm.model.generate(**prompt.inputs, **options)[0, prompt.length :].tolist()
    fixed = vlm.answer(
        prompt, lsg.read(vlm, prompt, sinks), sinks, **{k: v for k, v in options.items() if k != "do_sample"}
    )
    assert stay == fixed.ids
    scales = []
    with torch.no_grad(), lsg.applied(vlm, batch, every_step=True) as trace:
        vlm.model.generate(
            **prompt.inputs, **options, stopping_criteria=[lambda *_: scales.append(trace.scales[1]) or False]
        )
    assert not torch.allclose(scales[0], scales[-1]), "read again from each new token"


def test_files_round_trip_and_refuse(case, tmp_path):
    vlm, prompt, sinks = case
    lsg = shaken(LSG.for_vlm(vlm, [0, 2], grouping="three", signal="mean", start="identity")).double()
    lsg.save_pretrained(tmp_path / "gates")
    again = LSG.from_pretrained(tmp_path / "gates")
    assert again.config == lsg.config
    assert torch.allclose(again.read(vlm, prompt, sinks).scales, lsg.read(vlm, prompt, sinks).scales, atol=1e-5)
    assert "2 layers" not in lsg.trainable_parameters() and "[0, 2]" in lsg.trainable_parameters()
    config = tmp_path / "gates" / "gate_config.json"
    content = json.loads(config.read_text())
    for change, words in (
        ({"format": "other"}, "format"),
        ({"version": 9}, "version 9"),
        ({"colour": 1}, "unknown.*colour"),
        ({"signal": "first"}, "signal is 'first'.*last"),
        ({"layers": [2, 0]}, "rising"),
        ({"layers": "all"}, "another type"),
        ({"bottleneck": 5}, "expected"),
    ):
        config.write_text(json.dumps(content | change))
        with pytest.raises(sg.GateError, match=words):
            LSG.from_pretrained(tmp_path / "gates")
    config.write_text(json.dumps(content))
    (tmp_path / "gates" / "gates.safetensors").write_bytes(b"broken")
    with pytest.raises(sg.GateError, match="cannot be read"):
        LSG.from_pretrained(tmp_path / "gates")
    with pytest.raises(sg.GateError, match="cannot be read"):
        LSG.from_pretrained(tmp_path / "nowhere")


def test_gates_of_another_model_are_refused(case, demo):
    vlm, _, _ = case
    lsg = LSG.for_vlm(vlm, [1])
    with pytest.raises(sg.GateError, match="trained on .*any_model"):
        lsg.check_fits(demo)
    with pytest.raises(sg.GateError, match="32 wide, those of demo are 128"):
        lsg.check_fits(demo, any_model=True)
    with pytest.raises(sg.GateError, match="no layer 3"):
        LSG.for_vlm(vlm, [1, 3])
    mllama = VLM(ZOO["mllama"].model(), None, "mllama")
    with pytest.raises(sg.GateError, match="no hidden states"):
        LSG.for_vlm(mllama, [0], signal="visual")


def test_without_v_sinks_all_tokens_are_the_rest(case):
    vlm, prompt, sinks = case
    none = sg.SinkMap(**{**vars(sinks), "v_sink": torch.zeros_like(sinks.v_sink)})
    lsg = shaken(LSG.for_vlm(vlm, [1]))
    groups = Groups.of(vlm.batch([prompt], [none]), lsg.config)
    assert not groups.members[:, 0].any() and (groups.members[:, 1, 0, prompt.visual]).all()
    assert torch.isfinite(lsg.read(vlm, prompt, none).scales).all()


def test_gates_of_several_are_joined_by_layer(case):
    vlm, prompt, sinks = case
    whole = shaken(LSG.for_vlm(vlm, [0, 1, 2]))
    joined = LSG.joined([whole.only([2]), whole.only([0, 1])])
    assert joined.config == whole.config and joined.gates["2"] is whole.gates["2"]
    assert torch.equal(joined.read(vlm, prompt, sinks).scales, whole.read(vlm, prompt, sinks).scales)
    with pytest.raises(sg.GateError, match="several gates in layer 1"):
        LSG.joined([whole.only([1]), whole.only([0, 1])])
    with pytest.raises(sg.GateError, match="signal 'last' and 'mean'"):
        LSG.joined([whole.only([1]), LSG.for_vlm(vlm, [0], signal="mean")])
    with pytest.raises(sg.GateError, match="no gates to join"):
        LSG.joined([])
