"""Gates limited to rows and heads: the table, its file, the Keys and rows that it reaches, refusals in words."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sinkgate as sg
from sinkgate.sinks.fine_gates import GROUPS, ROWS, FineGates, load_gates
from sinkgate.sinks.numbers import MAX_SCALE

scale = st.floats(0, MAX_SCALE, width=32)
tables = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(scale, min_size=shape[0] * shape[1] * 5, max_size=shape[0] * shape[1] * 5).map(
        lambda values: torch.tensor(values).reshape(*shape, 5)
    )
)
rows_of = st.lists(st.sampled_from([*ROWS, "text", "all"]), min_size=1, max_size=4)


@given(tables, rows_of, st.sampled_from(["scale", "monotone"]))
def test_json_round_trip_is_exact(table, rows, rule):
    gates = FineGates(table, tuple(rows), rule, "some/model")
    assert FineGates.from_json(gates.to_json()) == gates


def test_files_are_read_by_their_version(tmp_path):
    fine = FineGates.ones(3, heads=2, rows="last").set("text", 0.5, layers=1, heads=0)
    fine.save(tmp_path / "fine.json")
    sg.Gates.ones(3).save(tmp_path / "gates.json")
    assert FineGates.load(tmp_path / "fine.json") == load_gates(tmp_path / "fine.json") == fine
    assert load_gates(tmp_path / "gates.json") == sg.Gates.ones(3)


def test_readers_of_one_version_refuse_the_other_in_words():
    """Readers of version 1 look for the format's name and for "scales", and compare the version with theirs."""
    content = json.loads(FineGates.ones(3).to_json())
    assert (content["format"], content["version"]) == ("sinkgate-gates", 2) and isinstance(content["scales"], dict)
    with pytest.raises(sg.GateError, match="version 2 are limited to rows or heads: read them with FineGates"):
        sg.Gates.from_json(FineGates.ones(3).to_json())
    with pytest.raises(sg.GateError, match="version 1 are fixed gates: read them with Gates"):
        FineGates.from_json(sg.Gates.ones(3).to_json())
    content["version"] = 3
    for reader in (sg.Gates, FineGates):
        with pytest.raises(sg.GateError, match="version 3 need another release"):
            reader.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["scales"].pop("after"), "come as v_sink, l_sink, ordinary, before, after"),
        (lambda content: content["scales"].update(v_sink=[1.0, 1.0]), "list of lists of numbers"),
        (lambda content: content["scales"].update(v_sink=[[1.0, True]] * 2), "list of lists of numbers"),
        (lambda content: content["scales"].update(v_sink=[[1.0]] * 2), "no table of 2 layers x 2 heads"),
        (lambda content: content.update(layers=3), "no table of 3 layers x 2 heads"),
        (lambda content: content["scales"].update(v_sink=[[1.0, 9.0]] * 2), "v_sink scale of layer 0, head 1 is 9"),
        (lambda content: content.update(rows=["first"]), "rows are 'first'; expected some of"),
        (lambda content: content.update(rows=[]), "rows are none"),
        (lambda content: content.update(rows=[3]), "list of names"),
        (lambda content: content.update(rule="louder"), "no rule is called 'louder'"),
        (lambda content: content.update(rule=[]), "no rule is called"),
        (lambda content: content.update(model=3), '"model" is a name'),
    ],
)
def test_broken_files_get_one_clear_sentence(change, message):
    content = json.loads(FineGates.ones(2, heads=2).to_json())
    change(content)
    with pytest.raises(sg.GateError, match=message):
        FineGates.from_json(json.dumps(content))


@given(scale, st.sets(st.integers(0, 3)), st.sets(st.integers(0, 2)), st.sampled_from([*GROUPS, "rest", "visual"]))
def test_set_changes_that_group_in_those_layers_and_heads_only(value, layers, heads, group):
    changed = FineGates.ones(4, heads=3).set(group, value, layers, heads)
    groups = {"rest": GROUPS[1:3], "visual": GROUPS[:3]}.get(group, (group,))
    expected = torch.ones(4, 3, 5)
    for layer in layers:
        for head in heads:
            expected[layer, head, [GROUPS.index(name) for name in groups]] = value
    assert torch.equal(changed.scales, expected)


def test_models_that_they_do_not_fit_are_refused(demo):
    with pytest.raises(sg.GateError, match="have 3 layers, demo has 8"):
        FineGates.ones(3).for_model(demo)
    with pytest.raises(sg.GateError, match=r"have 3 heads a layer, demo has \d+; expected that or 1"):
        FineGates.ones(8, heads=3).for_model(demo)
    other = FineGates(torch.ones(8, 1, 5), model="other/model")
    with pytest.raises(sg.GateError, match="made for other/model"):
        other.for_model(demo)
    assert other.for_model(demo, any_model=True).model is None
    assert FineGates.ones(demo).for_model(demo).scales.shape == (8, demo.num_heads, 5)
    with pytest.raises(sg.GateError, match="no head 9"):
        FineGates.ones(demo).set("visual", 0.5, heads=9)
    with pytest.raises(sg.GateError, match="no group is called 'question'"):
        FineGates.ones(demo).set("question", 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sg.GateError, match="no group is called"):
        FineGates.ones(demo).set(["v_sink"], 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sg.GateError, match="numbers such as 3,6,7 or 4-10; got .5-2,7."):
        FineGates.ones(demo).set("visual", 0.5, layers="5-2,7")


def test_what_is_no_table_rows_or_heads_is_refused():
    for rows in (3, None, [1], [["last"]]):
        with pytest.raises(sg.GateError, match="rows are .*; expected names"):
            FineGates.ones(2, rows=rows)  # pyright: ignore[reportArgumentType]
    for heads in (0, -1):
        with pytest.raises(sg.GateError, match=f"heads is {heads}; expected 1 or more"):
            FineGates.ones(2, heads)
    with pytest.raises(sg.GateError, match="got FineGates, expected Gates"):
        FineGates.of(FineGates.ones(2))  # pyright: ignore[reportArgumentType]


def test_keys_and_rows_of_a_prompt():
    """Two images with a separator in one of them, text in front, between and behind."""
    image = torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    visual = torch.tensor([2, 4, 6])  # 3 is a separator
    masks = sg.SinkMasks(torch.tensor([True, False, False]), torch.tensor([[False, True, False]]))
    gates = FineGates.ones(1, heads=2, rows="before,last")
    for value, name in enumerate(GROUPS):
        gates = gates.set(name, 0.25 * (value + 1), heads=1)
    limits = gates.logit_scales(masks, visual, image, 9)
    assert limits.scales[0, 0, 0].tolist() == [1] * 9
    assert limits.scales[0, 0, 1].tolist() == [1, 1, 0.25, 1, 0.5, 1.25, 0.75, 1.25, 1.25]
    assert limits.rows[0].tolist() == [True, True, False, False, False, False, False, False, True]
    assert not limits.later and not limits.monotone
    every = FineGates.ones(1, rule="monotone").logit_scales(masks, visual, image, 9)
    assert every.rows.all() and every.later and every.monotone and every.scales.shape == (1, 1, 1, 9)
    after = FineGates.ones(1, rows=["after", "visual"]).logit_scales(masks, visual, image, 9)
    assert after.rows[0].tolist() == [False, False, *[True] * 7] and not after.later


def test_all_heads_and_rows_equal_the_plain_gate_on_a_model(demo):
    """Bit for bit, answers too; and so does a session."""
    from tiny import noise_image, some_sinks

    prompt = demo.prompt(noise_image(3, (64, 64)), "How many objects are there?")
    sinks = some_sinks(demo, prompt)
    plain = sg.Gates.ones(demo).set("v_sink", 0.2).set("ordinary", 1.7, 4)
    by_head = FineGates.ones(demo).set("v_sink", 0.2).set("ordinary", 1.7, 4)
    expected = demo.answer(prompt, plain, sinks)
    for gates in (by_head, FineGates.of(plain)):
        for answer in (demo.answer(prompt, gates, sinks), sg.Session(demo, prompt, sinks).answer(gates)):
            assert answer.ids == expected.ids and torch.equal(answer.probabilities, expected.probabilities)
            assert torch.equal(answer.attention, expected.attention)
    assert not by_head.is_identity and FineGates.ones(demo).is_identity
    limited = demo.answer(prompt, FineGates.of(plain, rows="last"), sinks)
    assert not torch.equal(limited.probabilities, expected.probabilities)


def test_text_is_no_key_of_cross_attention():
    image, masks = torch.zeros(5, dtype=torch.bool), sg.SinkMasks(torch.ones(2).bool(), torch.zeros(1, 2).bool())
    gates = FineGates.ones(1, rows="text")
    limits = gates.set("visual", 0.5).logit_scales(masks, torch.arange(2), image, 4, apart=True)
    assert limits.scales.flatten().tolist() == [0.5, 0.5, 1, 1] and limits.rows.all()
    with pytest.raises(sg.GateError, match="no Keys of cross-attention"):
        gates.set("after", 0.5).logit_scales(masks, torch.arange(2), image, 4, apart=True)
