"""Released gates in layouts made up by hand: each is understood as an independent reader would, or refused in words."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import sinkgate as sg
from sinkgate import cli
from sinkgate.methods.lsg import LSG
from sinkgate.methods.lsg.importer import SETTINGS, WEIGHTS, import_gates

D, B = 24, 6


def write(folder, tensors, **values):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(values))
    return folder


@pytest.fixture
def put(tmp_path):
    return lambda tensors, **values: write(tmp_path / "released", tensors, **values)


def gate(seed=0, *, bias=(), norm=False, width=D, bottleneck=B):
    """Parameters of one gate by the role that they have in it."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"down": (bottleneck, width), "up": (2, bottleneck)}
    sizes |= {name: {"down_bias": (bottleneck,), "up_bias": (2,)}[name] for name in bias}
    sizes |= {"norm": (width,), "norm_bias": (width,)} if norm else {}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def run(parts, signal, activation=F.gelu):
    """Compute such a gate by hand."""
    centred = signal - signal.mean(-1, keepdim=True)
    signal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    signal = signal * parts.get("norm", 1) + parts.get("norm_bias", 0)
    inner = activation(signal @ parts["down"].T + parts.get("down_bias", 0))
    return (inner @ parts["up"].T + parts.get("up_bias", 0)).softmax(-1)


def same(lsg, layer, parts, **options):
    signal = torch.randn(7, D, generator=torch.Generator().manual_seed(1)) * 3
    return torch.allclose(lsg.gates[str(layer)](signal), run(parts, signal, **options), atol=1e-5)


#: How a gate of a layer may name its parameters.
LAYOUTS = {
    "llama": {
        "norm": "model.layers.{}.sink_gate.norm.weight",
        "norm_bias": "model.layers.{}.sink_gate.norm.bias",
        "down": "model.layers.{}.sink_gate.fc1.weight",
        "down_bias": "model.layers.{}.sink_gate.fc1.bias",
        "up": "model.layers.{}.sink_gate.fc2.weight",
        "up_bias": "model.layers.{}.sink_gate.fc2.bias",
    },
    "LLaVA under PEFT": {
        "norm": "base_model.model.model.layers.{}.self_attn.sink_gate.norm.weight",
        "norm_bias": "base_model.model.model.layers.{}.self_attn.sink_gate.norm.bias",
        "down": "base_model.model.model.layers.{}.self_attn.sink_gate.down_proj.weight",
        "down_bias": "base_model.model.model.layers.{}.self_attn.sink_gate.down_proj.bias",
        "up": "base_model.model.model.layers.{}.self_attn.sink_gate.up_proj.weight",
        "up_bias": "base_model.model.model.layers.{}.self_attn.sink_gate.up_proj.bias",
    },
    "PEFT's prefix alone": {
        "norm": "base_model.layers.{}.sink_gate.norm.weight",
        "norm_bias": "base_model.layers.{}.sink_gate.norm.bias",
        "down": "base_model.layers.{}.sink_gate.mlp.0.weight",
        "down_bias": "base_model.layers.{}.sink_gate.mlp.0.bias",
        "up": "base_model.layers.{}.sink_gate.mlp.2.weight",
        "up_bias": "base_model.layers.{}.sink_gate.mlp.2.bias",
    },
    "sequential": {
        "norm": "base_model.model.model.lsg_gates.{}.0.weight",
        "norm_bias": "base_model.model.model.lsg_gates.{}.0.bias",
        "down": "base_model.model.model.lsg_gates.{}.1.weight",
        "down_bias": "base_model.model.model.lsg_gates.{}.1.bias",
        "up": "base_model.model.model.lsg_gates.{}.3.weight",
        "up_bias": "base_model.model.model.lsg_gates.{}.3.bias",
    },
    "parallel": {
        "norm": "module.gates.L{}.ln.weight",
        "norm_bias": "module.gates.L{}.ln.bias",
        "down": "module.gates.L{}.mlp.0.weight",
        "down_bias": "module.gates.L{}.mlp.0.bias",
        "up": "module.gates.L{}.mlp.2.weight",
        "up_bias": "module.gates.L{}.mlp.2.bias",
    },
    "flat": {
        "norm": "sink_gate_{}_gamma",
        "norm_bias": "sink_gate_{}_beta",
        "down": "sink_gate_{}_w1",
        "down_bias": "sink_gate_{}_b1",
        "up": "sink_gate_{}_w2",
        "up_bias": "sink_gate_{}_b2",
    },
    "layers last": {
        "norm": "sink.layers.{}.gate.pre.weight",
        "norm_bias": "sink.layers.{}.gate.pre.bias",
        "down": "sink.layers.{}.gate.0.proj_in.weight",
        "down_bias": "sink.layers.{}.gate.0.proj_in.bias",
        "up": "sink.layers.{}.gate.0.proj_out.weight",
        "up_bias": "sink.layers.{}.gate.0.proj_out.bias",
    },
}


def named(layout, gates):
    return {
        LAYOUTS[layout][role].format(layer): value for layer, parts in gates.items() for role, value in parts.items()
    }


@given(
    layout=st.sampled_from(list(LAYOUTS)),
    layers=st.sets(st.integers(0, 31), min_size=1, max_size=5),
    bias=st.sampled_from([(), ("down_bias",), ("up_bias",), ("down_bias", "up_bias")]),
    norm=st.booleans(),
    listed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=120, deadline=None)
def test_layouts_are_understood(tmp_path_factory, layout, layers, bias, norm, listed, dtype, order):
    layers = sorted(layers)
    gates = {layer: gate(layer, bias=bias, norm=norm) for layer in layers}
    gates = {layer: {role: value.to(dtype).float() for role, value in parts.items()} for layer, parts in gates.items()}
    tensors = {name: value.to(dtype) for name, value in named(layout, gates).items()}
    names = list(tensors)
    order.shuffle(names)
    tensors = {name: tensors[name] for name in names}
    listed = listed or layers == list(range(len(layers)))  # else they may be places in a list
    values = {"gate_layers": layers} if listed else {}
    report = import_gates(write(tmp_path_factory.mktemp("released"), tensors, **values))
    assert not report.doubts and not report.leftovers, str(report)
    lsg = report.to_lsg()
    assert list(lsg.config.layers) == layers and (lsg.config.bottleneck, lsg.config.hidden_size) == (B, D)
    assert lsg.config.bias == bool(bias) and lsg.config.norm_weights == norm
    for layer in layers:
        assert same(lsg, layer, gates[layer])
    assert len(report.tensors) == len(tensors)
    assert all(meaning.startswith("layer ") for meaning in report.tensors.values())


def test_a_gate_in_full_size_has_the_papers_parameters(put):
    parts = gate(width=4096, bottleneck=64)
    lsg = import_gates(put(named("llama", {10: parts}))).to_lsg()
    assert lsg.num_parameters == 262_272 and lsg.config.layers == (10,)


def test_what_the_files_cannot_tell_is_said_and_can_be_set(put):
    parts = gate(bias=("up_bias",))
    folder = put(named("llama", {10: parts}))
    plain, other = import_gates(folder), import_gates(folder, swapped=True, offset=1, activation="silu")
    for words in (
        "first, as the paper",
        "0 added",
        "gelu, default chosen by us",
        "'dimensions' is used",
        "none is named",
    ):
        assert words in str(plain)
    for words in ("second", "1 added", "silu, given", "layer 11"):
        assert words in str(other)
    assert plain.to_lsg().config.criterion == "dimensions"
    assert other.to_lsg().config.layers == (11,)
    turned = {**parts, "up": parts["up"].flip(0), "up_bias": parts["up_bias"].flip(0)}
    assert same(other.to_lsg(), 11, turned, activation=F.silu)
    with pytest.raises(sg.GateError, match="activation is 'tanh'"):
        import_gates(folder, activation="tanh")
    with pytest.raises(sg.GateError, match="rising numbers from 0"):
        import_gates(folder, offset=-11)


def test_settings_are_taken_by_words_and_values(put):
    folder = put(
        named("llama", {10: gate()}),
        sink_layer=10,
        gate_activation="SiLU",
        hidden_size=D,
        base_model_name_or_path="liuhaotian/llava-v1.5-7b",
        mm_vision_select_layer=-2,
        num_hidden_layers=32,
        hidden_act="gelu",
        prior=1,
        colour="red",
    )
    report = import_gates(folder)
    meanings = {key: meaning.split(", ", 1)[1] for key, meaning in report.settings.items()}
    assert meanings == {
        "sink_layer": "the layers of the gates",
        "gate_activation": "the activation",
        "hidden_size": "not understood",
        "base_model_name_or_path": "the base model",
        "mm_vision_select_layer": "not understood",
        "num_hidden_layers": "not understood",
        "hidden_act": "not understood",
        "prior": "not understood",
        "colour": "not understood",
    }
    config = report.to_lsg().config
    assert (config.activation, config.base_model) == ("silu", "liuhaotian/llava-v1.5-7b")
    overruled = import_gates(folder, activation="relu", base_model="llava-hf/llava-1.5-7b-hf")
    assert (overruled.to_lsg().config.activation, overruled.to_lsg().config.base_model) == (
        "relu",
        "llava-hf/llava-1.5-7b-hf",
    )
    assert "overruled" in overruled.settings["gate_activation"]
    known = import_gates(folder, base_model="LLaVA-1.5-7b")
    assert known.to_lsg().config.base_model == "llava-hf/llava-1.5-7b-hf", "as a loaded model is called"


# --- layers


BARE = {
    "down": "sink_gate.1.weight",
    "up": "sink_gate.3.weight",
    "norm": "sink_gate.0.weight",
    "norm_bias": "sink_gate.0.bias",
}


def bare(parts):
    return {BARE[role]: value for role, value in parts.items()}


@pytest.mark.parametrize("value", [10, [10], "10", "L10"])
def test_one_gate_without_a_number_is_placed_by_the_settings(put, value):
    parts = gate(norm=True)
    lsg = import_gates(put(bare(parts), layer=value)).to_lsg()
    assert lsg.config.layers == (10,) and same(lsg, 10, parts)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give them as layers"),
        ({"num_layers": 32}, "give them as layers"),
        ({"layers": [3, 6]}, "give them as layers"),
        ({"layer": 3, "target_layer": 4}, "give them as layers"),
        ({"layer": -2}, "give them as layers"),
        ({"layer": True}, "give them as layers"),
    ],
)
def test_one_gate_without_a_layer_is_refused(put, values, words):
    parts = gate()
    folder = put(bare(parts), **values)
    with pytest.raises(sg.GateError, match=words):
        import_gates(folder).to_lsg()
    lsg = import_gates(folder, layers=[10], offset=5).to_lsg()
    assert lsg.config.layers == (10,) and same(lsg, 10, parts)


STACK = [3, 6, 7, 10, 19]


def test_places_in_a_list_are_not_taken_for_layers(put):
    gates = {index: gate(index) for index in range(5)}
    tensors = named("sequential", gates)
    with pytest.raises(sg.GateError, match=r"names say layers \[0, 1, 2, 3, 4\], settings say"):
        import_gates(put(tensors)).to_lsg()
    with pytest.raises(sg.GateError, match=r"names say layers \[0, 1, 2, 3, 4\], settings say"):
        import_gates(put(tensors, layers=[10, 3, 6, 7, 19])).to_lsg()  # in which order?
    with pytest.raises(sg.GateError, match=r"names say layers \[0, 1, 2, 3, 4\], settings say"):
        import_gates(put(tensors, layers=STACK, target_layers=[4, 7, 8, 11, 20])).to_lsg()
    for report in (import_gates(put(tensors, layers=STACK)), import_gates(put(tensors), layers=STACK)):
        lsg = report.to_lsg()
        assert list(lsg.config.layers) == STACK
        assert all(same(lsg, layer, gates[index]) for index, layer in enumerate(STACK))


def test_layers_given_go_by_the_numbers_in_names_not_by_their_spelling(put):
    gates = {index: gate(index) for index in (2, 10, 9)}
    lsg = import_gates(put(named("flat", gates)), layers=[20, 21, 22]).to_lsg()
    assert all(same(lsg, layer, gates[index]) for layer, index in ((20, 2), (21, 9), (22, 10)))
    with pytest.raises(sg.GateError, match="3 gates are in .*a layer for each"):
        import_gates(put(named("flat", gates)), layers=[20])


def test_names_and_settings_that_contradict_are_refused(put):
    with pytest.raises(sg.GateError, match=r"names say layers \[10\], settings say .*11"):
        import_gates(put(named("llama", {10: gate()}), layer=11)).to_lsg()


def test_several_numbers_in_a_name_are_refused_unless_one_follows_layers(put):
    parts = gate()
    folder = put({"v2.gate.10.a.weight": parts["down"], "v2.gate.10.b.weight": parts["up"]})
    with pytest.raises(sg.GateError, match=r"names say layers \[None\], settings say .*give them as layers"):
        import_gates(folder).to_lsg()


# --- refusals


def test_two_candidates_for_one_layer_are_refused(put):
    one, two = named("llama", {10: gate(1)}), named("flat", {10: gate(2)})
    with pytest.raises(sg.GateError, match="fc1.weight or sink_gate_10_w1 may go with .*fc2.weight or sink_gate_10_w2"):
        import_gates(put(one | two)).to_lsg()
    with pytest.raises(sg.GateError, match="two gates are for one layer"):
        import_gates(put(named("llama", {3: gate(1), 4: gate(2)})), layers=[4, 4]).to_lsg()


def test_ambiguous_pairs_are_refused(put):
    parts = gate()
    first = {"gate_10.a": parts["down"], "gate_10.b": parts["down"] + 1, "gate_10.c": parts["up"]}
    with pytest.raises(sg.GateError, match="gate_10.a or gate_10.b may go with gate_10.c"):
        import_gates(put(first)).to_lsg()
    second = {"gate_10.a": parts["down"], "gate_10.b": parts["up"], "gate_10.c": parts["up"]}
    with pytest.raises(sg.GateError, match="gate_10.a may go with gate_10.b or gate_10.c"):
        import_gates(put(second)).to_lsg()


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"model.mm_projector.0.weight": torch.zeros(D, B)},
        {"gate.10.a": torch.zeros(2, D), "gate.10.b": torch.zeros(D, D)},  # no bottleneck
        {"gate.10.a": torch.zeros(2, 2), "gate.10.b": torch.zeros(2, D)},
        {"gate.10.a": torch.zeros(3, B), "gate.10.b": torch.zeros(B, D)},  # three groups
        {"gate.10.a": torch.zeros(B, 2), "gate.10.b": torch.zeros(B, D)},  # one transposed, one not
        {"gates.down": torch.zeros(5, B, D), "gates.up": torch.zeros(5, 2, B)},
        {"gate.10.a": torch.zeros(2, B, dtype=torch.int8), "gate.10.b": torch.zeros(B, D)},
        {"gate.10.a": torch.zeros(2, B), "gate.10.b": torch.zeros(B, D).to_sparse()},
        {"gate.10.a": torch.zeros(2, B, device="meta"), "gate.10.b": torch.zeros(B, D, device="meta")},
        {"gate.10.a": torch.zeros(0), "gate.10.b": torch.zeros(0)},  # sharded away
    ],
)
def test_without_a_gate_of_the_papers_shape_nothing_is_read(put, tensors):
    report = import_gates(put(tensors, layer=10))
    with pytest.raises(sg.GateError, match="no two matrices"):
        report.to_lsg(force=True)
    assert all(meaning.startswith("not understood") for meaning in report.tensors.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(put, value):
    parts = gate(bias=("down_bias",))
    parts["down_bias"][3] = value
    with pytest.raises(sg.GateError, match="fc1.bias holds NaN or infinity"):
        import_gates(put(named("llama", {10: parts}))).to_lsg(force=True)


def test_gates_of_several_sizes_are_refused(put):
    with pytest.raises(sg.GateError, match="one D and one b"):
        import_gates(put(named("llama", {3: gate(), 4: gate(bottleneck=5)}))).to_lsg()


@pytest.mark.parametrize(
    "extra",
    [
        {"model.layers.10.sink_gate.temperature": torch.ones(1)},
        {"model.layers.10.sink_gate.norm.weight": torch.ones(D)},  # an RMSNorm?
        {"model.layers.10.sink_gate.fc1.weight_scale": torch.ones(B)},
        {"model.layers.3.sink_gate.fc1.weight": torch.ones(B, D)},  # a first matrix without a second
        {"model.rho": torch.ones(2)},
        {"model.gate": torch.ones(4)},
        {"model.odd": torch.ones(B, D)},
        {"epoch": 2},
        {"layers": [10]},
    ],
)
def test_leftovers_that_look_like_a_gate_are_refused_unless_forced(put, extra):
    parts = gate()
    report = import_gates(put(named("llama", {10: parts}) | extra))
    (name,) = extra
    with pytest.raises(sg.GateError, match=f"{name}.*not understood; force"):
        report.to_lsg()
    assert report.tensors[name].startswith("not understood")
    assert same(report.to_lsg(force=True), 10, parts)


@pytest.mark.parametrize("scope", ["model.layers.10.router", "router_10", "10.head", "router", "model.head"])
def test_without_a_word_for_gates_neighbours_count_as_theirs(put, scope):
    """Left out in silence, a norm's weight would change what the gate computes."""
    parts = gate()
    tensors = {f"{scope}.mlp.0.weight": parts["down"], f"{scope}.mlp.2.weight": parts["up"]}
    assert same(import_gates(put(tensors, layer=10)).to_lsg(), 10, parts)
    with pytest.raises(sg.GateError, match="norm.weight, shape .* not understood"):
        import_gates(put(tensors | {f"{scope}.norm.weight": torch.ones(D)}, layer=10)).to_lsg()


def test_gates_of_one_set_may_have_different_biases(put):
    gates = {3: gate(3), 4: gate(4, bias=("down_bias",)), 7: gate(7, norm=True), 9: gate(9, bias=("up_bias",))}
    lsg = import_gates(put(named("sequential", gates))).to_lsg()
    assert lsg.config.bias and lsg.config.norm_weights
    assert all(same(lsg, layer, parts) for layer, parts in gates.items())


def test_other_weights_of_the_model_are_reported_only(put):
    others = {
        "model.mm_projector.0.weight": torch.zeros(D, 16),
        "model.mm_projector.0.bias": torch.zeros(D),
        "model.layers.10.mlp.gate_proj.weight": torch.zeros(40, D),
        "model.layers.10.input_layernorm.weight": torch.zeros(D),
    }
    report = import_gates(put(named("llama", {10: gate()}) | others))
    report.to_lsg()
    assert all(report.tensors[name].startswith("not understood, shape") for name in others)
    assert "4 are in the file and left out" in str(report)


def test_settings_that_may_change_the_scales_are_leftovers(put):
    folder = put(named("llama", {10: gate()}), sink_prior=1.25, tau=20, temperature=1.0)
    with pytest.raises(sg.GateError, match="sink_prior = 1.25"):
        import_gates(folder).to_lsg()
    assert len(import_gates(folder).leftovers) == 1
    assert isinstance(import_gates(folder).to_lsg(force=True), LSG)


@pytest.mark.parametrize("values", [{"activation": "tanh"}, {"activation": "gelu", "gate_act": "relu"}])
def test_another_activation_is_refused_unless_said(put, values):
    folder = put(named("llama", {10: gate()}), **values)
    with pytest.raises(sg.GateError, match="the activation is .*give it as activation"):
        import_gates(folder).to_lsg()
    assert import_gates(folder, activation="relu").to_lsg().config.activation == "relu"


# --- files


class Bomb:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_bomb_does_not_go_off(put, tmp_path, save):
    folder = put({})
    save({"gate.10.a": Bomb(f"touch {tmp_path / 'ran'}")}, folder / WEIGHTS)
    with pytest.raises(sg.GateError, match="other objects than tensors.*nothing of it was run") as caught:
        import_gates(folder)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"broken", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_broken_weights_are_one_sentence(put, content):
    folder = put({})
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(sg.GateError, match=WEIGHTS) as caught:
        import_gates(folder).to_lsg()
    assert "\n" not in str(caught.value)


def test_a_file_that_holds_itself_is_refused(put):
    folder = put({})
    content: dict = {}
    content["again"] = content
    torch.save(content, folder / WEIGHTS)
    with pytest.raises(sg.GateError, match="no two matrices"):
        import_gates(folder).to_lsg(force=True)


@pytest.mark.parametrize("content", ["[10]", "{", "[" * 100_000])
def test_broken_settings_are_one_sentence(put, content):
    folder = put(named("llama", {10: gate()}))
    (folder / SETTINGS).write_text(content)
    with pytest.raises(sg.GateError, match=SETTINGS):
        import_gates(folder)


def test_missing_files_are_named(put, tmp_path):
    folder = put(named("llama", {10: gate()}))
    with pytest.raises(sg.GateError, match="nowhere.*give a folder with"):
        import_gates(tmp_path / "nowhere")
    (folder / SETTINGS).unlink()
    with pytest.raises(sg.GateError, match=f"{SETTINGS} cannot be read"):
        import_gates(folder)


# --- the command and the model


@pytest.fixture
def convert(monkeypatch, capsys):
    def command(*args, code=0):
        monkeypatch.setattr(sys, "argv", ["sinkgate", "convert", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        out, err = capsys.readouterr()
        assert int(stopped.value.code or 0) == code, err
        return out, err

    return command


def test_the_command_converts(put, tmp_path, convert):
    parts = gate()
    folder, out = put(named("llama", {10: parts}), prior=1.25), tmp_path / "ours"
    printed, error = convert(folder, "--out", out, code=2)
    assert "fc1.weight: layer 10, down.weight" in printed and "prior = 1.25" in error and not out.exists()
    options = [
        "--offset",
        1,
        "--swapped",
        "--activation",
        "relu",
        "--base-model",
        "llava-hf/llava-1.5-7b-hf",
        "--force",
    ]
    printed, _ = convert(folder, "--out", out, *options)
    assert "in layers [11]" in printed and str(out) in printed
    lsg = LSG.from_pretrained(out)
    assert lsg.config.base_model == "llava-hf/llava-1.5-7b-hf"
    assert same(lsg, 11, {**parts, "up": parts["up"].flip(0)}, activation=F.relu)
    content = json.loads(convert(folder, "--out", out, "--json", "--force")[0])
    assert content["layers"] == [10] and content["leftovers"] == ["prior = 1.25"] and not content["doubts"]
    printed, error = convert(put(bare(parts)), "--out", tmp_path / "other", "--json", code=2)
    assert (
        json.loads(printed)["layers"] == [] and "give them as layers" in error and not Path(tmp_path / "other").exists()
    )
    convert(put(bare(parts)), "--out", tmp_path / "other", "--layer", 7)
    assert LSG.from_pretrained(tmp_path / "other").config.layers == (7,)


def test_converted_gates_run_on_a_model(put, demo):
    from tiny import noise_image

    width = demo.model.config.get_text_config().hidden_size
    lsg = import_gates(
        put(named("sequential", {2: gate(width=width, norm=True, bias=("up_bias",))})), base_model="demo"
    ).to_lsg()
    lsg.check_fits(demo)
    prompt = demo.prompt(noise_image(3), "How many objects are there?")
    scales = lsg.read(demo, prompt).scales
    assert scales[2, 0] + scales[2, 1] == pytest.approx(1) and scales[2, 1] == scales[2, 2]
    assert (scales[[0, 1, 3]] == 1).all()
