"""A warm prompt against a cold one: resumed equals full, batched equals single, for every layer and random gates."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import noise_image, some_sinks, tiny_llava
from transformers import AttentionInterface
from zoo import ZOO

import sinkgate as sg
from sinkgate.analysis.sweep import CONTROLS, LINE, choose_by_generation
from sinkgate.models.session import Session
from sinkgate.models.session_cache import SessionCache

QUESTION = "What color is the circle?"


@pytest.fixture(scope="module")
def cold(demo):
    prompt = demo.prompt(noise_image(3, (64, 64)), "How many objects are there?")
    return demo, prompt, some_sinks(demo, prompt)


def same(first, second):
    return (
        torch.equal(first.probabilities, second.probabilities)
        and torch.equal(first.attention, second.attention)
        and first.ids == second.ids
    )


tables = st.lists(
    st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.0])] * 3), min_size=8, max_size=8),
    min_size=1,
    max_size=4,
)


@settings(max_examples=10, deadline=None)
@given(tables)
def test_resumed_equals_full_bit_by_bit(cold, scales):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    assert warm.resumes
    for table in scales:
        gates = sg.Gates(torch.tensor(table), vlm.name)
        resumed = warm.predict(gates)
        fresh = Session(vlm, prompt, sinks).predict(gates)
        assert same(resumed, fresh)
        assert torch.allclose(resumed.probabilities, vlm.predict(prompt, gates, sinks).probabilities, atol=1e-6)


def test_every_layer_resumes_and_costs_only_what_lies_above(cold):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    warm.predict()
    for layer in range(vlm.num_layers):
        gates = sg.Gates.ones(vlm).set("rest", 0.4, layer)
        warm.predict()
        before = warm.layers_run
        assert same(warm.predict(gates), Session(vlm, prompt, sinks).predict(gates))
        assert warm.layers_run - before == vlm.num_layers - layer
        before = warm.layers_run
        warm.predict(gates)
        assert warm.layers_run == before, "the same again costs nothing"


def test_answers_of_a_warm_prompt_are_those_of_a_cold_one(cold):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    for layer, scale in ((5, 0.2), (2, 0.0), (7, 3.0), (0, 0.5)):
        gates = sg.Gates.ones(vlm).set("v_sink", scale, layer).set("ordinary", 1.4, layer)
        expected, got = vlm.answer(prompt, gates, sinks), warm.answer(gates)
        assert got.ids == expected.ids and got.text == expected.text
        assert torch.allclose(got.attention, expected.attention, atol=1e-6)
        assert same(got, warm.answer(gates)), "decoding does not touch what is held"
        pieces = []
        stream = warm.stream(gates)
        try:
            while True:
                pieces.append(next(stream))
        except StopIteration as stopped:
            assert pieces[-1] == stopped.value.text == expected.text


def test_many_settings_side_by_side(cold):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    generator = torch.Generator().manual_seed(0)
    gates = [sg.Gates.ones(vlm)] + [
        sg.Gates.ones(vlm).set("v_sink", float(torch.rand(1, generator=generator)) * 2, layer).set("rest", 0.7, layer)
        for layer in (0, 3, 3, 7, 3, 5)
    ]
    expected = torch.stack([vlm.predict(prompt, table, sinks).probabilities for table in gates])
    for batch_size in (1, 2, 32):
        assert torch.allclose(warm.predict_all(gates, batch_size).softmax(-1), expected, atol=1e-5)
    assert warm.predict_all([]).shape[0] == 0


def test_a_batch_too_large_for_the_memory_is_halved(cold, monkeypatch):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    real, sizes = Session._logits, []

    def tight(self, base, scales, start):
        sizes.append(len(scales))
        if len(scales) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, base, scales, start)

    gates = [sg.Gates.ones(vlm).set("rest", 0.1 * i, 4) for i in range(7)]
    expected = warm.predict_all(gates)
    monkeypatch.setattr(Session, "_logits", tight)
    assert torch.allclose(warm.predict_all(gates, 8), expected, atol=1e-5)
    assert sizes[0] == 7 and max(sizes[-3:]) <= 2


def test_memory_is_counted_and_given_back(cold):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    assert warm.nbytes == 0
    warm.predict()
    text = vlm.model.config.text_config
    hidden = prompt.length * text.hidden_size * 4
    keys = 2 * prompt.length * text.num_key_value_heads * text.head_dim * 4
    assert warm.nbytes == pytest.approx(vlm.num_layers * (hidden + keys), rel=0.05)
    warm.drop()
    assert warm.nbytes == 0
    assert same(warm.predict(), Session(vlm, prompt, sinks).predict())


def test_the_shelf_drops_what_was_used_longest_ago(cold):
    vlm, prompt, sinks = cold
    sessions = [Session(vlm, prompt, sinks) for _ in range(4)]
    sessions[0].predict()
    one = sessions[0].nbytes
    shelf = SessionCache(budget=int(2.5 * one))
    for session in sessions:
        session.predict()
        shelf.use(session)
        assert shelf.nbytes <= shelf.budget
    assert [session.nbytes > 0 for session in sessions] == [False, False, True, True]
    sessions[0].predict()
    shelf.use(sessions[0])
    assert [session.nbytes > 0 for session in sessions] == [True, False, False, True]
    del session
    sessions.clear()
    assert shelf.nbytes == 0


def test_rows_are_kept_up_to_a_bound(cold):
    vlm, prompt, sinks = cold
    gates = sg.Gates.ones(vlm).set("rest", 0.4, 6)
    whole = vlm.answer(prompt, gates, sinks, min_new_tokens=6, max_new_tokens=6)
    assert whole.attention.shape[2] == len(whole.tokens) > 3
    for trace in (
        vlm.answer(prompt, gates, sinks, min_new_tokens=6, max_new_tokens=6, max_rows=3),
        Session(vlm, prompt, sinks).answer(gates, min_new_tokens=6, max_new_tokens=6, max_rows=3),
    ):
        assert trace.ids == whole.ids and trace.attention.shape[2] == 3
        keys = trace.attention.shape[3]
        assert torch.allclose(trace.attention, whole.attention[:, :, :3, :keys], atol=1e-6)


def test_models_that_cannot_resume_run_in_full(cold, monkeypatch):
    vlm, prompt, sinks = cold
    monkeypatch.setattr(vlm.adapter, "resumes", False)
    warm = Session(vlm, prompt, sinks)
    gates = sg.Gates.ones(vlm).set("rest", 0.4, 6)
    assert not warm.resumes and warm.nbytes == 0
    assert same(warm.predict(gates), vlm.predict(prompt, gates, sinks))
    assert warm.answer(gates).ids == vlm.answer(prompt, gates, sinks).ids
    logits = warm.predict_all([gates, sg.Gates.ones(vlm)])
    assert torch.allclose(logits.softmax(-1)[0], vlm.predict(prompt, gates, sinks).probabilities, atol=1e-6)
    monkeypatch.setattr(vlm.adapter, "resumes", True)
    other = Session(vlm, prompt, sinks).predict_all([gates, sg.Gates.ones(vlm)])
    assert torch.allclose(logits, other, atol=1e-4), "logits, as of models that resume"
    monkeypatch.setattr(vlm.adapter, "resumes", False)
    assert warm.predict_all([]).shape == (0, other.shape[1])


def test_nothing_is_left_on_the_model(cold):
    vlm, prompt, sinks = cold

    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
        forwards = [name for name, m in vlm.model.named_modules() if "forward" in m.__dict__]
        return hooks, forwards, dict(AttentionInterface._global_mapping)

    plain, before = vlm.predict(prompt), state()
    warm = Session(vlm, prompt, sinks)
    warm.answer(sg.Gates.ones(vlm).set("rest", 0.5, 3))
    with pytest.raises(ZeroDivisionError):
        warm.answer(sg.Gates.ones(vlm).set("rest", 0.6, 3), stop=lambda: 1 // 0)
    with pytest.raises(sg.GateError, match="have 2 layers"):
        warm.predict(sg.Gates.ones(2).set("rest", 0.5))
    assert state() == before
    assert same(vlm.predict(prompt), plain)


def test_two_sessions_on_one_model_do_not_meet(cold):
    vlm, prompt, sinks = cold
    other = vlm.prompt(Image.new("RGB", (64, 64), "white"), "What color is the background?")
    gates = [sg.Gates.ones(vlm).set("rest", 0.1 * i, i % 8) for i in range(8)]
    expected = [[vlm.answer(p, table, sinks).ids for table in gates] for p in (prompt, other)]
    got = [[], []]

    def work(index, prompt):
        warm = Session(vlm, prompt, sinks)
        got[index] = [warm.answer(table).ids for table in gates]

    threads = [threading.Thread(target=work, args=(i, p)) for i, p in enumerate((prompt, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_gated_and_half_precision_models_resume(attn):
    model, processor = tiny_llava("clip", dtype=torch.bfloat16, attn=attn)
    vlm = sg.load((model, processor))
    prompt = vlm.prompt(noise_image(1), QUESTION)
    sinks = some_sinks(vlm, prompt)
    warm = Session(vlm, prompt, sinks)
    gates = sg.Gates.ones(vlm).set("rest", 0.3, 2)
    warm.predict()
    assert warm.resumes and same(warm.predict(gates), Session(vlm, prompt, sinks).predict(gates))


# --- the sweep


def test_the_oracle_sweep_is_the_papers_line_with_its_controls(demo):
    points = sg.oracle(demo)
    assert len(points) == 8 * 13 and LINE[0] == (0, 1) and LINE[-1] == (1, 0)
    assert all(v + rest == pytest.approx(1) for v, rest in LINE) and (1, 1) in CONTROLS
    gates = sg.Setting(3, 0.2, 0.8).gates(demo)
    assert gates.scales[3].tolist() == pytest.approx([0.2, 0.8, 0.8]) and (gates.scales[[0, 7]] == 1).all()
    assert len(sg.oracle(demo, layers=[1, 2], points=LINE)) == 22


@pytest.mark.parametrize("options", [["1", "2", "3"], ["red", "blue", "green", "yellow"], ["yes", "no"]])
def test_one_forward_and_spelling_out_choose_the_same(cold, options):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    gates = [point.gates(vlm) for point in sg.oracle(vlm, [0, 2, 5, 7], ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)))]
    quick = sg.choose(warm, gates, options)
    assert quick == [choose_by_generation(warm, table, options) for table in gates]


def test_options_that_begin_alike_are_spelled_out(cold):
    vlm, prompt, sinks = cold
    warm = Session(vlm, prompt, sinks)
    options = ["red circle", "red square", "red"]
    gates = sg.Gates.ones(vlm)
    (chosen,) = sg.choose(warm, [gates], options)
    ids = [vlm.tokenizer(option, add_special_tokens=False).input_ids for option in options]
    first = warm.predict_all([gates])[0]
    follow = vlm.read(
        {
            **prompt.inputs,
            "input_ids": torch.cat([prompt.inputs["input_ids"], torch.tensor([[ids[0][0]]])], 1),
            "attention_mask": torch.ones(1, prompt.length + 1, dtype=torch.long),
        }
    )
    next_ = vlm.predict(follow).probabilities
    best = max((next_[ids[0][1]], 0), (next_[ids[1][1]], 1), (next_[vlm.tokenizer.eos_token_id], 2))[1]
    assert chosen == best and first.isfinite().all()


@pytest.mark.parametrize("options", [["yes"], ["yes", "yes"], ["yes", ""]])
def test_options_that_are_none(cold, options):
    vlm, prompt, sinks = cold
    with pytest.raises(sg.PromptError, match="at least two"):
        sg.choose(Session(vlm, prompt, sinks), [sg.Gates.ones(vlm)], options)


def test_a_compiled_model_is_gated_and_recorded(tiny):
    """Through dynamo, whose guards see that the attention function changes; code generation is left out to save time."""
    prompt = tiny.prompt(noise_image(1), QUESTION)
    sinks = some_sinks(tiny, prompt)
    inputs = {**tiny.warm_inputs(prompt), "use_cache": False, "logits_to_keep": 1}
    compiled = torch.compile(tiny.model, backend="eager")
    try:
        with torch.no_grad():
            for gates in (
                None,
                sg.Gates.ones(tiny).set("rest", 0.3, 1),
                sg.Gates.ones(tiny).set("v_sink", 2.0, 2),
                None,
            ):
                recorder = sg.Recorder("last")
                with tiny.gated(prompt, sinks, gates or sg.Gates.ones(tiny), recorder):
                    logits = compiled(**inputs).logits[0, -1]
                expected = tiny.predict(prompt, gates, sinks)
                assert torch.allclose(logits.softmax(-1), expected.probabilities, atol=1e-5)
                assert torch.allclose(recorder.attention[2][0], expected.attention[2:3], atol=1e-5)
    finally:
        torch.compiler.reset()


# --- rows of any queries


class KeptWeights:
    """Attention that writes its probabilities down, of scores that are scaled one by one; shares no code with the package."""

    def __init__(self, model, scales):
        self.model, self.scales, self.weights = model, scales, {}

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = (query @ key.transpose(-1, -2)) * scaling * self.scales[module.layer_idx]
        behind = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(behind, -torch.inf).softmax(-1)
        self.weights[module.layer_idx] = weights[0]
        return (weights @ value).transpose(1, 2).contiguous(), None

    def of(self, vlm, prompt):
        AttentionInterface.register("kept_weights", self)
        before = self.model.config.text_config._attn_implementation
        self.model.set_attn_implementation({"text_config": "kept_weights"})
        try:
            with torch.no_grad():
                vlm.model(**prompt.inputs)
        finally:
            self.model.set_attn_implementation({"text_config": before})
            del AttentionInterface._global_mapping["kept_weights"]
        return torch.stack([self.weights[layer] for layer in sorted(self.weights)])


@pytest.fixture(params=["demo", "tiny"])
def subject(request, demo):
    vlm = demo if request.param == "demo" else sg.load(tiny_llava("siglip"))
    prompt = vlm.prompt(noise_image(3, (64, 64)), "How many objects are there?")
    return vlm, prompt, some_sinks(vlm, prompt)


def some_gates(vlm):
    return sg.Gates.ones(vlm).set("v_sink", 0.2, layers=[1]).set("rest", 1.5, layers=[2])


@pytest.mark.parametrize("gated", [False, True])
def test_rows_of_any_queries_are_those_of_attention_written_from_scratch(subject, gated):
    vlm, prompt, sinks = subject
    gates = some_gates(vlm) if gated else None
    scales = torch.ones(vlm.num_layers, prompt.num_keys)
    if gates is not None:
        scales = gates.key_scales(sinks, prompt.visual, prompt.num_keys)[:, 0]
    expected = KeptWeights(vlm.model, scales).of(vlm, prompt)
    session = Session(vlm, prompt, sinks)
    rows = session.rows(range(prompt.length), gates)
    assert rows.shape == (vlm.num_layers, vlm.num_heads, prompt.length, prompt.num_keys)
    assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5)
    assert torch.allclose(rows, expected, atol=1e-5)
    queries, keys = [3, prompt.length - 2], [0, 5, int(prompt.visual[-1])]
    assert torch.allclose(
        session.rows(queries, gates, layers=[2], keys=keys), expected[2:3, :, queries][..., keys], atol=1e-5
    )
    behind = expected[:, :, int(prompt.visual[-1]) + 1 :]
    assert torch.allclose(session.received(gates), behind.mean(2), atol=1e-5)


def test_rows_are_those_of_output_attentions():
    model, processor = tiny_llava("clip", attn="eager")
    vlm = sg.load((model, processor))
    prompt = vlm.prompt(noise_image(1), "count")
    with torch.no_grad():
        expected = torch.cat(model(**prompt.inputs, output_attentions=True).attentions)
    assert torch.allclose(Session(vlm, prompt).rows(range(prompt.length)), expected, atol=1e-6)


def test_rows_of_a_layer_cost_a_layer_and_leave_the_session_as_it_is(cold):
    vlm, prompt, sinks = cold
    gates = some_gates(vlm)
    warm = Session(vlm, prompt, sinks)
    trace = warm.predict(gates)
    before = warm.layers_run
    gated = warm.rows([4], gates, layers=[5])
    assert warm.layers_run - before == 1
    original = warm.rows([4], layers=[5])  # from the lowest layer that the gates change
    assert warm.layers_run - before == 1 + 5
    assert not torch.allclose(gated, original, atol=1e-4)
    assert torch.equal(original, Session(vlm, prompt, sinks).rows([4])[5:6])
    assert warm.layers_run - before == 6
    assert same(warm.predict(gates), trace) and warm.layers_run - before == 6


def test_a_query_is_followed_through_predictions(cold):
    vlm, prompt, sinks = cold
    query, warm = prompt.length - 3, Session(vlm, prompt, sinks)
    warm.predict()
    warm.follow(query)
    warm.rows([query])  # once a run of its own
    for layer, scale in ((4, 0.3), (2, 0.0), (4, 1.7)):
        gates = sg.Gates.ones(vlm).set("v_sink", scale, layers=[layer])
        plain = Session(vlm, prompt, sinks)
        assert same(warm.predict(gates), plain.predict(gates))  # nothing else changes
        before = warm.layers_run
        assert torch.allclose(warm.rows([query], gates), plain.rows([query], gates), atol=1e-6)
        assert warm.layers_run == before
    warm.follow(query - 1)
    assert torch.allclose(warm.rows([query - 1], gates), plain.rows([query - 1], gates), atol=1e-6)


def test_states_are_the_inputs_of_layers(cold):
    vlm, prompt, sinks = cold
    states = Session(vlm, prompt, sinks).states()
    expected = vlm.each_layer(prompt, lambda state: state.clone())
    assert len(states) == vlm.num_layers
    assert all(torch.allclose(state[0], other, atol=1e-5) for state, other in zip(states, expected, strict=True))


def test_rows_take_numbers_of_any_kind(cold):
    vlm, prompt, sinks = cold
    session = Session(vlm, prompt, sinks)
    places = prompt.visual[:2]
    expected = session.rows(places.tolist(), layers=[1], keys=places.tolist())
    for of in (lambda numbers: numbers, lambda numbers: numbers.numpy(), lambda numbers: list(numbers)):
        assert torch.equal(session.rows(of(places), layers=of(torch.tensor([1])), keys=of(places)), expected)
    assert torch.equal(session.rows(int(places[0]), layers=1, keys=places), expected[:, :, :1])
    session.drop()
    session.follow(places[0])
    session.predict()
    before = session.layers_run
    session.rows(places[:1])
    assert session.layers_run == before or not session.resumes


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": []},
        {"queries": [-1]},
        {"queries": [10_000]},
        {"queries": [1.0]},
        {"layers": [99]},
        {"keys": [-2]},
        {"queries": None},
    ],
)
def test_rows_that_are_not_there_are_refused(cold, wrong):
    vlm, prompt, sinks = cold
    with pytest.raises(sg.SinkgateError, match="expected whole numbers from 0 to"):
        Session(vlm, prompt, sinks).rows(**{"queries": [0], **wrong})


@pytest.mark.parametrize("name", ["gemma3", "instructblip", "llama4", "mllama", "qwen2_5_vl"])
def test_rows_are_those_of_a_whole_run_on_every_kind_of_model(name):
    """Windows, cross-attention, layers of two kinds, merged patches, and a model that cannot start in the middle."""
    vlm = sg.VLM(ZOO[name].model(), None, name)
    prompt = vlm.read(ZOO[name].sample())
    queries, recorder = [prompt.length - 3, prompt.length - 1], sg.Recorder("all")
    with torch.no_grad(), vlm.attached(None, recorder):
        vlm.model(**vlm.warm_inputs(prompt), use_cache=False)
    expected = torch.stack([recorder.attention[layer][0][0, :, queries].float() for layer in range(vlm.num_layers)])
    session = Session(vlm, prompt)
    last = vlm.num_layers - 1
    assert torch.allclose(session.rows(queries), expected, atol=1e-5)
    assert torch.allclose(session.rows(queries, layers=[last], keys=[1, 0]), expected[last:][..., [1, 0]], atol=1e-5)


def test_rows_of_a_model_that_cannot_start_in_the_middle(cold, monkeypatch):
    vlm, prompt, sinks = cold
    expected = Session(vlm, prompt, sinks).rows([2, 7], some_gates(vlm), layers=[3])
    monkeypatch.setattr(vlm.adapter, "resumes", False)
    session = Session(vlm, prompt, sinks)
    assert torch.allclose(session.rows([2, 7], some_gates(vlm), layers=[3]), expected, atol=1e-6)
    session.follow(7)
    assert torch.allclose(session.rows([7], some_gates(vlm), layers=[3]), expected[:, :, 1:], atol=1e-6)
    with pytest.raises(sg.SinkgateError, match="cannot start in the middle"):
        session.states()
