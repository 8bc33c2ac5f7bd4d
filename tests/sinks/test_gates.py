import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sinkgate as sg
from sinkgate.sinks.gates import GROUPS
from sinkgate.sinks.numbers import MAX_SCALE

scale = st.floats(0, MAX_SCALE, width=32)
tables = st.integers(1, 40).flatmap(lambda n: st.lists(st.tuples(scale, scale, scale), min_size=n, max_size=n))


@given(tables)
def test_json_round_trip_is_exact(rows):
    gates = sg.Gates(torch.tensor(rows), model="some/model")
    assert sg.Gates.from_json(gates.to_json()) == gates


def test_json_reads_like_what_was_set():
    content = json.loads(sg.Gates.ones(3).set("v_sink", 0.2, layers=1).to_json())
    assert content == {
        "format": "sinkgate-gates",
        "version": 1,
        "model": None,
        "layers": 3,
        "scales": {"v_sink": [1.0, 0.2, 1.0], "l_sink": [1.0] * 3, "ordinary": [1.0] * 3},
    }


def test_files_round_trip(tmp_path):
    gates = sg.Gates.ones(4).set("rest", 0.3, layers=[-1])
    gates.save(tmp_path / "new" / "gates.json")
    gates.save(tmp_path / "gates.json")
    assert sg.Gates.load(tmp_path / "gates.json") == gates == sg.Gates.load(tmp_path / "new" / "gates.json")
    with pytest.raises(sg.GateError, match="cannot be written to .*below"):
        gates.save(tmp_path / "gates.json" / "below")


@given(scale, st.sets(st.integers(0, 7)), st.sampled_from([*GROUPS, "rest"]))
def test_set_changes_that_group_in_those_layers_only(value, layers, group):
    ones = sg.Gates.ones(8)
    changed = ones.set(group, value, layers)
    columns = {"rest": [1, 2]}.get(group, [GROUPS.index(group)] if group in GROUPS else [])
    for layer in range(8):
        for column in range(3):
            touched = layer in layers and column in columns
            assert changed.scales[layer, column] == (value if touched else 1)
    assert ones.is_identity, "gates are immutable"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.1, 4.01, 1e30])
def test_scales_out_of_range_are_refused_wherever_they_come_from(bad):
    with pytest.raises(sg.GateError, match="v_sink scale of layer 1 .*0 to 4"):
        sg.Gates.ones(2).set("v_sink", bad, layers=1)
    with pytest.raises(sg.GateError, match="0 to 4"):
        sg.Gates.from_lists(v_sink=[bad, 1], rest=[1, 1])
    with pytest.raises(sg.GateError, match="0 to 4"):
        sg.Gates(torch.tensor([[1.0, bad, 1.0]]))


BROKEN = {
    "": "no valid JSON",
    "[" * 100_000: "no valid JSON",
    "3": "JSON object",
    '{"scales": [1, 1]}': "JSON object",
    '{"format": "other", "scales": {}}': "format is 'other'",
    '{"version": 2, "scales": {}}': "version 2",
    '{"scales": {"v_sink": [1]}}': "missing l_sink",
    '{"scales": {"v_sink": [1], "rest": [1], "moon": [1]}}': "unknown moon",
    '{"scales": {"v_sink": [1, 1], "rest": [1]}}': "lists of 2, 1, 1",
    '{"layers": 3, "scales": {"v_sink": [1], "rest": [1]}}': "needs 3 scales",
    '{"scales": {"v_sink": ["1"], "rest": [1]}}': "list of numbers",
    '{"scales": {"v_sink": [true], "rest": [1]}}': "list of numbers",
    '{"scales": {"v_sink": [], "rest": []}}': "list of numbers",
    '{"scales": {"v_sink": [NaN], "rest": [1]}}': "is nan",
    '{"scales": {"v_sink": [1e999], "rest": [1]}}': "is inf",
    '{"scales": {"v_sink": [1' + "0" * 400 + '], "rest": [1]}}': "is inf",
    '{"model": 7, "scales": {"v_sink": [1], "rest": [1]}}': '"model" is a name',
}


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:40])
def test_broken_files_get_one_clear_sentence(text):
    with pytest.raises(sg.GateError, match=BROKEN[text]) as error:
        sg.Gates.from_json(text)
    assert "\n" not in str(error.value)


def test_gates_of_another_model_or_length_are_refused(demo):
    with pytest.raises(sg.GateError, match="have 3 layers, demo has 8"):
        sg.Gates.ones(3).for_model(demo)
    with pytest.raises(sg.GateError, match="made for other/model, this is demo"):
        sg.Gates(torch.ones(8, 3), model="other/model").for_model(demo)
    assert sg.Gates.ones(demo).for_model(demo).model == "demo"


def test_unknown_names_are_refused():
    with pytest.raises(sg.GateError, match="no group"):
        sg.Gates.ones(2).set("text", 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sg.GateError, match="layers 0 to 1"):
        sg.Gates.ones(2).set("rest", 0.5, layers=2)
    with pytest.raises(sg.GateError, match="no preset"):
        sg.Gates.preset("Louder", 2)
    assert all(sg.Gates.preset(name, 2).scales.shape == (2, 3) for name in sg.PRESETS)
    assert sg.Gates.preset("Unchanged", 2).is_identity


def numbers(values):
    """The same numbers as a user may have them."""
    yield list(values)
    yield tuple(values)
    yield np.array(values)
    yield np.array(values, np.float32)
    yield torch.tensor(values)
    yield torch.tensor(values, requires_grad=True)
    yield [np.float32(value) for value in values]
    yield [torch.tensor(value) for value in values]
    yield (value for value in values)


def test_scales_come_from_numpy_and_torch_too():
    expected = sg.Gates.from_lists(v_sink=[0.5, 1.0, 2.0], rest=[1.0, 0.0, 0.25], model="m")
    for v_sink, rest in zip(numbers([0.5, 1.0, 2.0]), numbers([1.0, 0.0, 0.25]), strict=True):
        assert sg.Gates.from_lists(v_sink=v_sink, rest=rest, model="m") == expected
    for scale in (
        0.5,
        np.float32(0.5),
        np.array(0.5),
        torch.tensor(0.5),
        torch.tensor([0.5]).bfloat16(),
    ):
        for layer in (
            1,
            np.int64(1),
            np.array(1),
            torch.tensor(1),
            [np.int32(1)],
            torch.tensor([1]),
            np.array([1]),
            "1",
        ):
            gates = sg.Gates.ones(np.int64(3)).set("v_sink", scale, layer)
            assert gates.scales[:, 0].tolist() == [1, 0.5, 1]


def test_layers_are_named_as_at_the_command_line():
    gates = sg.Gates.ones(30)
    assert gates.set("rest", 0.5, layers="12-29") == gates.set("rest", 0.5, layers=range(12, 30))
    assert gates.set("rest", 0.5, layers="3,6-8") == gates.set("rest", 0.5, layers=[3, 6, 7, 8])
    assert gates.set("rest", 0.5, layers="all") == gates.set("rest", 0.5)
    with pytest.raises(sg.GateError, match="layers are '12-30'; the model has layers 0 to 29"):
        gates.set("rest", 0.5, layers="12-30")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gates: gates.set("rest", 0.5, "twelve"), "numbers such as 3,6,7"),
        (lambda gates: gates.set("rest", 0.5, 1.0), "a layer is a whole number; got 1.0"),
        (lambda gates: gates.set("rest", 0.5, [True]), "a layer is a whole number; got True"),
        (lambda gates: gates.set("rest", 0.5, torch.tensor([True, False])), "a layer is a whole number"),
        (lambda gates: gates.set("rest", "half"), "a scale is a number from 0 to 4; got 'half'"),
        (lambda gates: gates.set("rest", None), "a scale is a number"),
        (lambda gates: gates.set("rest", torch.ones(2)), "a scale is a number"),
        (lambda gates: sg.Gates.ones("demo"), "the number of layers is a whole number; got 'demo'"),
        (lambda gates: sg.Gates([["a", "b", "c"]]), "a table of numbers"),
        (lambda gates: sg.Gates.from_lists("ab", "cd"), "list of numbers"),
        (lambda gates: sg.Gates.from_lists(0.5, 0.5), "list of numbers"),
        (lambda gates: sg.Gates.from_lists(np.ones((2, 2)), np.ones((2, 2))), "list of numbers"),
        (lambda gates: sg.Gates.from_lists([1, 1], [1]), "lists of 2, 1, 1"),
        (lambda gates: sg.Gates.from_lists([1], [1], model=3), '"model" is a name'),
    ],
)
def test_what_is_no_scale_and_no_layer_gets_a_sentence(change, message):
    with pytest.raises(sg.GateError, match=message):
        change(sg.Gates.ones(2))


@pytest.mark.parametrize(
    "refused",
    [
        lambda: sg.Gates.ones(2).set(["v_sink"], 0.5),
        lambda: sg.Gates.ones(-1),
        lambda: sg.Gates.preset(["V-sinks up"], 2),
        lambda: sg.Gates.from_json(None),
        lambda: sg.Gates.load(None),
        lambda: sg.Gates.load("a\0b"),
        lambda: sg.Gates.ones(2).save(None),
    ],
)
def test_arguments_of_other_types_are_refused_in_words(refused):
    with pytest.raises(sg.GateError):
        refused()


def test_gates_print_short():
    gates = sg.Gates.ones(30)
    assert repr(gates) == "Gates(30 layers of any model, all 1)"
    scaled = gates.set("v_sink", 0.5, "2-4").set("rest", 2, [9])
    assert repr(scaled) == "Gates(30 layers of any model, scaled in layers 2-4, 9)"
