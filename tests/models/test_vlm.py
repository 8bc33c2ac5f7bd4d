"""Models from loading to answers: tiny LLaVAs with a CLIP and a SigLIP tower, and the demo model."""

import gc
import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import noise_image, some_sinks, tiny_llava
from transformers import AttentionInterface

import sinkgate as sg
import sinkgate.attention.recorder as recorder_module
from sinkgate.attention import patch
from sinkgate.attention.patch import model_lock
from sinkgate.models.loading import check_model
from sinkgate.models.token_map import measure_tokens

QUESTION = "What color is the circle?"


@pytest.fixture
def prompt(tiny) -> sg.Prompt:
    return tiny.prompt(noise_image(3, (40, 30)), QUESTION)


def test_prompt_knows_where_the_image_is(tiny, prompt):
    assert prompt.grid == (4, 4) and len(prompt.visual) == 16
    assert (prompt.inputs["input_ids"][0, prompt.visual] == tiny.adapter.image_token_id).all()
    if tiny.model.config.vision_config.model_type == "clip_vision_model":
        # resized to 37 x 28, of which columns 4 to 32 are cut out: not quite the middle
        assert prompt.sheets[0].box == pytest.approx((4 / 37 * 40, 0, 32 / 37 * 40, 30), abs=0.3)
    else:
        assert prompt.sheets[0].box == (0, 0, 40, 30)


def test_patch_i_is_token_i_and_the_probe_can_tell_otherwise(tiny, prompt):
    assert torch.equal(prompt.token_of_patch, torch.arange(16))
    assert torch.equal(measure_tokens(tiny.adapter, prompt.inputs), torch.arange(16))
    projector = tiny.model.model.multi_modal_projector
    hook = projector.register_forward_hook(lambda module, args, output: output + output.mean(1, keepdim=True))
    try:
        mixed = sg.VLM(tiny.model, tiny.processor, "mixed").prompt(prompt.image, QUESTION)
    finally:
        hook.remove()
    assert mixed.token_of_patch is None and "gathers from many patches" in mixed.note
    assert mixed.sheets[0].box is None and mixed.view is mixed.image, "a list, and no picture under it"
    sinks = sg.find_sinks(sg.VLM(tiny.model, tiny.processor, "mixed"), mixed)
    assert not sinks.v_sink.any() and "tokens mix patches" in sinks.summary()


def test_ones_are_bit_identical_to_the_plain_model(tiny, prompt):
    plain = tiny.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    trace = tiny.predict(prompt, sg.Gates.ones(tiny), some_sinks(tiny, prompt))
    assert torch.equal(trace.probabilities, plain.float().softmax(-1))
    generated = tiny.model.generate(**prompt.inputs, max_new_tokens=6, do_sample=False)
    assert tiny.answer(prompt, sg.Gates.ones(tiny), max_new_tokens=6).text == tiny.tokenizer.decode(
        generated[0, prompt.length :], skip_special_tokens=True
    ).strip()  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    v=st.floats(0, 4, width=16),
    l=st.floats(0, 4, width=16),
    o=st.floats(0, 4, width=16),
    layer=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_gates_reach_exactly_their_tokens(tiny, v, l, o, layer, seed):  # noqa: E741
    prompt = tiny.prompt(noise_image(3), QUESTION)
    sinks = some_sinks(tiny, prompt, seed)
    gates = sg.Gates.ones(tiny).set("v_sink", v, layer).set("l_sink", l, layer).set("ordinary", o, layer)
    scales = gates.key_scales(sinks, prompt.visual, prompt.length)
    assert scales.shape == (3, 1, prompt.length)
    assert (scales[[i for i in range(3) if i != layer]] == 1).all()
    visual = scales[layer, 0, prompt.visual]
    assert (visual[sinks.v_sink] == v).all()
    assert (visual[sinks.l_sink[layer]] == l).all()
    assert (visual[sinks.ordinary[layer]] == o).all()
    text = torch.ones(prompt.length, dtype=torch.bool)
    text[prompt.visual] = False
    assert (scales[:, 0, text] == 1).all()


def test_gated_context_answer_stream_and_predict_agree(tiny, prompt):
    sinks = some_sinks(tiny, prompt)
    gates = sg.Gates.ones(tiny).set("v_sink", 0.2, layers=[1]).set("rest", 1.6)
    with tiny.gated(prompt, sinks, gates):
        ids = tiny.model.generate(**prompt.inputs, max_new_tokens=5, do_sample=False)[0, prompt.length :]
    answer = tiny.answer(prompt, gates, sinks, max_new_tokens=5)
    assert answer.text == tiny.tokenizer.decode(ids, skip_special_tokens=True).strip()
    stream = tiny.stream(prompt, gates, sinks, max_new_tokens=5)
    texts = []
    try:
        while True:
            texts.append(next(stream))
    except StopIteration as stopped:
        streamed = stopped.value
    assert texts[-1] == streamed.text == answer.text
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    predicted = tiny.predict(prompt, gates, sinks)
    assert torch.allclose(predicted.probabilities, answer.probabilities, atol=1e-6)
    assert torch.allclose(predicted.attention[:, :, 0], answer.attention[:, :, 0, : prompt.length], atol=1e-5)
    assert not torch.allclose(predicted.probabilities, tiny.predict(prompt).probabilities, atol=1e-3)


def test_trace_attention_is_eagers(prompt, tiny):
    trace = tiny.answer(prompt, max_new_tokens=4)
    tiny.model.set_attn_implementation("eager")
    try:
        output = tiny.model.generate(
            **prompt.inputs, max_new_tokens=4, do_sample=False, output_attentions=True, return_dict_in_generate=True
        )
    finally:
        tiny.model.set_attn_implementation("sdpa")
    rows = len(trace.tokens)
    assert trace.attention.shape[2] == rows
    for row in range(rows):
        for layer in range(3):
            expected = output.attentions[row][layer][0, :, -1]
            assert torch.allclose(trace.attention[layer, :, row, : expected.shape[-1]], expected, atol=1e-5)
            assert trace.attention[layer, :, row, expected.shape[-1] :].abs().sum() == 0


def test_maps_and_shares(tiny, prompt):
    sinks = some_sinks(tiny, prompt)
    trace = tiny.answer(prompt, max_new_tokens=3)
    shares = trace.shares(sinks)
    assert torch.allclose(sum(shares.values(), torch.zeros(3)), torch.ones(3), atol=1e-5)
    whole, hidden = trace.visual(1, head=2), trace.visual(1, head=2, hide=sinks.v_sink)
    assert whole.shape == (4, 4)
    assert hidden.flatten()[sinks.v_sink].abs().sum() == 0
    assert hidden.sum() == pytest.approx(whole.sum().item(), rel=1e-5)
    mean = torch.stack([trace.visual(1, head) for head in range(4)]).mean(0)
    assert torch.allclose(trace.visual(1), mean, atol=1e-7)
    everything = torch.ones(16, dtype=torch.bool)
    assert torch.isfinite(trace.visual(1, hide=everything)).all()


def test_groups_are_disjoint_and_complete(tiny, prompt):
    sinks = sg.find_sinks(tiny, prompt, v_sink="attention", l_sink=sg.CRITERIA["norm"])
    for layer in range(3):
        total = sinks.v_sink.int() + sinks.l_sink[layer].int() + sinks.ordinary[layer].int()
        assert (total == 1).all()
        assert torch.equal(sinks.group("rest", layer), sinks.l_sink[layer] | sinks.ordinary[layer])
    assert "V-sink" in sinks.summary()
    assert all(sinks.explain(token, layer).endswith(".") for token in range(16) for layer in range(3))
    with pytest.raises(ValueError, match="no criterion is called 'magic'.*massive"):
        sg.find_sinks(tiny, prompt, v_sink="magic")


def test_planted_v_sinks_are_found_in_the_tower(tiny):
    """A spike written into a patch by a hook must come out as the V-sink, with its dimension."""

    def plant(module, args, output):
        first = output.shape[1] - 16
        output[:, first + 9, 11] = 3e5
        return output

    vlm = sg.VLM(tiny.model, tiny.processor, "planted")  # a model for which nothing is decided yet
    prompt = vlm.prompt(noise_image(5), QUESTION)
    hook = tiny.adapter.encoder_layers[tiny.adapter.feature_layer].register_forward_hook(plant, prepend=True)
    try:
        sinks = sg.find_sinks(vlm, prompt)
    finally:
        hook.remove()
    assert sinks.v_sink.nonzero()[:, 0].tolist() == [9]
    assert sinks.v_verdict.criterion == "sink dimensions" and sinks.v_verdict.dimensions == (11,)
    assert "dimension 11" in sinks.explain(9)
    assert "(sink dimensions, dimension 11 discovered on 12 prompts)" in sinks.summary()


def test_planted_l_sinks_are_found_by_layer(tiny):
    prompt = tiny.prompt(noise_image(5), QUESTION)
    at = int(prompt.visual[7])

    def plant(module, args, output):
        output[:, at, 3] = 3e6
        return output

    hook = tiny.decoder.layers[0].register_forward_hook(plant)
    try:
        sinks = sg.find_sinks(tiny, prompt, v_sink="massive", l_sink="massive")
    finally:
        hook.remove()
    assert not sinks.v_sink.any()
    assert [layer.nonzero()[:, 0].tolist() for layer in sinks.l_sink] == [[], [7], [7]]
    assert sinks.explain(7, 1).startswith("L-sink (patch row 1, column 3)")
    assert sinks.summary().startswith("No V-sinks")


def test_nothing_is_left_on_the_model(tiny, prompt):
    def state():
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny.model.modules())
        return hooks, dict(AttentionInterface._global_mapping)

    tiny.observe(prompt)  # transformers installs its own capture hooks at the first use and keeps them
    before, plain = state(), tiny.predict(prompt).probabilities
    gates = sg.Gates.preset("V-sinks off", tiny)
    with pytest.raises(KeyboardInterrupt), tiny.gated(prompt, some_sinks(tiny, prompt), gates):
        raise KeyboardInterrupt
    stream = tiny.stream(prompt, gates, max_new_tokens=50)
    next(stream)
    stream.close()
    with pytest.raises(TypeError), tiny.gated(prompt, some_sinks(tiny, prompt), gates):
        tiny.model(input_ids="nonsense")
    sg.find_sinks(tiny, prompt)
    check_model(tiny)
    assert state() == before
    assert torch.equal(tiny.predict(prompt).probabilities, plain)
    assert model_lock(tiny.model).acquire(blocking=False)
    model_lock(tiny.model).release()


def test_visitors_never_see_each_others_gates(tiny):
    """Eight threads, half of them gated: everyone gets what they would get alone."""
    prompt = tiny.prompt(noise_image(3), QUESTION)
    sinks = some_sinks(tiny, prompt)
    settings = [None if i % 2 else sg.Gates.ones(tiny).set("rest", 0.3 * i, layers=i % 3) for i in range(8)]
    alone = [tiny.predict(prompt, gates, sinks).probabilities for gates in settings]
    together: list[list[torch.Tensor]] = [[] for _ in settings]
    threads = [
        threading.Thread(
            target=lambda i=i: together[i].extend(
                tiny.predict(prompt, settings[i], sinks).probabilities for _ in range(5)
            )
        )
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, trace in zip(alone, together, strict=True):
        assert len(trace) == 5 and all(torch.equal(expected, one) for one in trace)


def test_a_stream_stops_when_told(tiny, prompt):
    texts, before = [], set(threading.enumerate())  # other tests may have left threads
    stream = tiny.stream(prompt, max_new_tokens=200, stop=lambda: len(texts) >= 2)
    try:
        while True:
            texts.append(next(stream))
    except StopIteration as stopped:
        assert len(stopped.value.tokens) < 100
    assert set(threading.enumerate()) <= before


def test_errors_inside_a_stream_reach_the_caller(tiny, prompt):
    with pytest.raises(sg.GateError, match="have 2 layers"):
        list(tiny.stream(prompt, sg.Gates.ones(2).set("rest", 0.5)))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("why " * 6000, "23999 characters; at most 20,000"),
        ("a <image> b", "<image>"),
        ("</s> hi", "</s>"),
    ],
)
def test_questions_that_cannot_be_asked(tiny, question, message):
    with pytest.raises(sg.PromptError, match=message):
        tiny.prompt(noise_image(), question)


def test_unknown_words_are_named(tiny):
    assert tiny.unknown_words("What colour is the Giraffe, the circle or the zebra?") == ["Giraffe", "zebra"]


def test_eager_models_work_too():
    vlm = sg.load(tiny_llava("clip", attn="eager"))
    prompt = vlm.prompt(noise_image(3), QUESTION)
    sinks = some_sinks(vlm, prompt)
    gates = sg.Gates.ones(vlm).set("rest", 0.4)
    sdpa = sg.load(tiny_llava("clip"))
    expected = sdpa.predict(sdpa.prompt(noise_image(3), QUESTION), gates, sinks)
    assert torch.allclose(vlm.predict(prompt, gates, sinks).probabilities, expected.probabilities, atol=1e-5)


def test_locks_do_not_keep_models_alive():
    vlm = sg.load(tiny_llava("siglip"), check=False)
    count = sum(1 for _ in vlm.model.modules())
    assert count > 0
    import weakref

    alive = weakref.ref(vlm.model)
    del vlm
    gc.collect()
    assert alive() is None


def test_demo_answers_with_its_gates_moved(demo):
    """The moment that everything serves: the same picture, V-sinks down in one layer, another distribution."""
    image = Image.new("RGB", (100, 100), "white")
    prompt = demo.prompt(image, "What color is the background?")
    sinks = some_sinks(demo, prompt)
    plain = demo.predict(prompt, None, sinks)
    moved = demo.predict(prompt, sg.Gates.ones(demo).set("v_sink", 0.0, layers=5), sinks)
    assert torch.equal(plain.attention[:5], moved.attention[:5]), "layers below the gate are untouched"
    assert not torch.allclose(plain.attention[5], moved.attention[5], atol=1e-4)
    assert (plain.probabilities - moved.probabilities).abs().max() > 0


# --- options of an answer


@pytest.mark.parametrize("resumes", [True, False])
def test_no_rows_are_recorded_where_none_are_wanted(tiny, prompt, resumes, monkeypatch):
    monkeypatch.setattr(tiny.adapter, "resumes", resumes)
    sinks = some_sinks(tiny, prompt)
    gates = sg.Gates.ones(tiny).set("rest", 0.5)
    whole = tiny.answer(prompt, gates, sinks, max_new_tokens=4)

    def refuse(*_, **__):
        raise AssertionError("a row was computed")

    warm = sg.Session(tiny, prompt, sinks)
    warm.predict(gates)  # whose single row was asked for
    monkeypatch.setattr(patch, "attention_rows", refuse)
    monkeypatch.setattr(recorder_module, "attention_rows", refuse)
    cold = tiny.answer(prompt, gates, sinks, max_new_tokens=4, max_rows=0)
    traces = [cold, warm.answer(gates, max_new_tokens=4, max_rows=0)]
    for trace in traces:
        assert trace.ids == whole.ids and trace.attention.shape == (3, 4, 0, prompt.length)
        assert trace.to_frame().empty and "0 rows" in repr(trace)
        with pytest.raises(sg.SinkgateError, match="no attention row 0.*max_rows"):
            trace.shares(sinks)
        with pytest.raises(sg.SinkgateError, match="no attention row 0"):
            trace.visual(0)
    for call in (lambda: tiny.answer(prompt, max_rows=-1), lambda: warm.answer(max_rows=-1)):
        with pytest.raises(sg.SinkgateError, match="max_rows is -1; expected 0"):
            call()


@pytest.mark.parametrize("size", [1, 7, 26, 1000])
def test_a_chunked_prefill_records_the_same_rows(tiny, prompt, size):
    sinks = some_sinks(tiny, prompt)
    gates = sg.Gates.ones(tiny).set("rest", 0.5).set("v_sink", 1.7, [0, 2])
    whole = tiny.answer(prompt, gates, sinks, max_new_tokens=4)
    warm = sg.Session(tiny, prompt, sinks)
    for answer in (
        tiny.answer(prompt, gates, sinks, max_new_tokens=4, prefill_chunk_size=size),
        warm.answer(gates, max_new_tokens=4, prefill_chunk_size=size),
    ):
        assert answer.ids == whole.ids
        assert torch.allclose(answer.probabilities, whole.probabilities, atol=1e-5)
        assert torch.allclose(answer.attention, whole.attention, atol=1e-5)


def test_answers_are_sampled_and_searched_under_gates(tiny, prompt):
    sinks = some_sinks(tiny, prompt)
    gates = sg.Gates.ones(tiny).set("rest", 0.4).set("v_sink", 2)
    warm = sg.Session(tiny, prompt, sinks)
    for options in (
        {"do_sample": True, "temperature": 0.8},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True, "max_rows": 0},
    ):
        generation = {name: value for name, value in options.items() if name != "max_rows"}
        torch.manual_seed(0)
        with tiny.gated(prompt, sinks, gates):
            expected = tiny.model.generate(**prompt.inputs, max_new_tokens=5, **generation)[0, prompt.length :]
        most = 0 if "max_rows" in options else 1 if "num_beams" in options else 5
        for answer in (lambda **o: tiny.answer(prompt, gates, sinks, **o), lambda **o: warm.answer(gates, **o)):
            torch.manual_seed(0)
            trace = answer(max_new_tokens=5, **options)
            assert trace.ids == expected.tolist() and trace.attention.shape[2] == min(most, len(trace.tokens))
            if most:
                first = tiny.predict(prompt, gates, sinks).attention[:, :, 0]
                assert torch.allclose(trace.attention[:, :, 0, : prompt.length], first, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences is 2; a Trace holds one"),
        ({"prompt_lookup_num_tokens": 3}, "several tokens, so attention has no row a token; give max_rows=0"),
        ({"return_dict_in_generate": False}, "return_dict_in_generate is set by sinkgate itself"),
        ({"num_beams": 2, "prefill_chunk_size": 5}, "prefill_chunk_size .* with beams encodes them in the prefill"),
    ],
)
def test_options_that_an_answer_cannot_follow_get_a_sentence(tiny, prompt, options, message):
    for answer in (lambda: tiny.answer(prompt, **options), lambda: sg.Session(tiny, prompt).answer(**options)):
        with pytest.raises(sg.SinkgateError, match=message):
            answer()


def test_own_stopping_criteria_and_ours_both_end_an_answer(tiny, prompt):
    from transformers import StoppingCriteria

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= prompt.length + 3])

    counter = itertools.count(1)
    assert len(tiny.answer(prompt, max_new_tokens=6, stopping_criteria=[After()]).ids) == 3
    both = tiny.answer(prompt, max_new_tokens=6, stopping_criteria=[After()], stop=lambda: next(counter) == 2)
    assert len(both.ids) == 2


# --- one or many, and what is neither


def test_the_same_call_takes_one_prompt_or_many(tiny):
    prompts = [tiny.prompt(noise_image(seed), QUESTION) for seed in (1, 2)]
    sinks = sg.find_sinks(tiny, prompts)
    assert [sink_map.v_sink.tolist() for sink_map in sinks] == [sg.find_sinks(tiny, p).v_sink.tolist() for p in prompts]
    gates = [sg.Gates.ones(tiny).set("rest", 0.5), None]
    for one, both in (
        (tiny.predict, tiny.predict(prompts, gates, sinks)),
        (tiny.answer, tiny.answer(tuple(prompts), gates, sinks, max_new_tokens=3)),
    ):
        options = {"max_new_tokens": 3} if one == tiny.answer else {}
        for prompt, table, sink_map, trace in zip(prompts, gates, sinks, both, strict=True):
            alone = one(prompt, table, sink_map, **options)
            assert trace.ids == alone.ids and torch.allclose(trace.probabilities, alone.probabilities, atol=1e-5)
    assert tiny.answer([]) == tiny.predict([]) == sg.find_sinks(tiny, []) == []
    assert len(tiny.answer(prompts, gates[0], max_new_tokens=1)) == 2
    with pytest.raises(sg.PromptError, match="2 prompts with 1 gates"):
        tiny.answer(prompts, gates[:1])


def test_what_is_no_prompt_gets_a_sentence(tiny, prompt):
    calls = [tiny.answer, tiny.predict, lambda value: sg.find_sinks(tiny, value), lambda value: sg.Session(tiny, value)]
    calls.append(lambda value: next(tiny.stream(value)))
    for call in calls:
        for value, kind in (("hi", "str"), (None, "NoneType"), ([prompt, "hi"], "str"), (noise_image(), "Image")):
            with pytest.raises(sg.PromptError, match=f"got {kind}, expected a Prompt or a list.*vlm.prompt"):
                call(value)
    for call in calls[-2:]:
        with pytest.raises(sg.PromptError, match="takes one prompt, got a list of 2; call it for each"):
            call([prompt, prompt])


def test_swapped_and_missing_arguments_get_a_sentence(tiny, tmp_path):
    noise_image().save(path := tmp_path / "noise.png")
    for image, question in (("What is it?", str(path)), ("What is it?", path), ("What is it?", noise_image())):
        with pytest.raises(sg.SinkgateError, match="the image comes first"):
            tiny.prompt(image, question)
    with pytest.raises(sg.ImageError, match="got NoneType, expected a picture"):
        tiny.prompt(None, "hi")
    with pytest.raises(sg.PromptError, match="the question is a NoneType; expected text"):
        tiny.prompt(noise_image(), None)


def test_what_a_notebook_shows_is_short(tiny, prompt):
    sinks = sg.find_sinks(tiny, prompt)
    trace = tiny.answer(prompt, max_new_tokens=3)
    texts = [repr(tiny), repr(prompt), repr(trace), repr(tiny.predict(prompt))]
    assert "3 layers, float32 on cpu" in texts[0] and "40 x 30, 16 visual tokens in 4 x 4" in texts[1]
    assert (
        f"{len(trace.tokens)} tokens" in texts[2]
        and "no answer yet" in texts[3]
        and all(len(text) < 200 for text in texts)
    )
    plain, grouped = trace.to_frame(), trace.to_frame(sinks)
    assert list(plain) == ["row", "token", "layer", "visual", "separator", "text"] and len(plain) == 3 * len(
        trace.tokens
    )
    assert plain["token"].unique().tolist() == trace.tokens
    assert torch.allclose(
        torch.tensor(plain[["visual", "separator", "text"]].sum(axis=1).to_numpy()).float(), torch.ones(len(plain))
    )
    assert (grouped[["v_sink", "l_sink", "ordinary"]].sum(axis=1) - plain["visual"]).abs().max() < 1e-6


# --- a kept prompt on a model that has changed


CHANGES = {
    "weights": lambda model: model.model.vision_tower.get_parameter(
        next(name for name, value in model.model.vision_tower.named_parameters() if value.dim() == 2)
    ).mul_(1.5),
    "projector": lambda model: model.model.multi_modal_projector.linear_1.bias.add_(1),
    "a hook": lambda model: model.model.multi_modal_projector.register_forward_hook(lambda m, a, output: 2 * output),
    "a forward": lambda model: setattr(
        model.model.multi_modal_projector,
        "forward",
        lambda x, run=model.model.multi_modal_projector.forward: 2 * run(x),
    ),
    "the llm": lambda model: model.model.language_model.layers[1].mlp.down_proj.weight.mul_(1.5),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_kept_prompt_follows_the_model(what):
    """A prompt and a session compute anew what they hold of an earlier model."""
    vlm = sg.load(tiny_llava("clip"), check=False)
    held = vlm.prompt(noise_image(1), QUESTION)
    gates = sg.Gates.ones(vlm).set("v_sink", 0.2).set("rest", 1.5)
    warm = sg.Session(vlm, held)
    before, sinks = warm.predict(gates), sg.find_sinks(vlm, held)
    encoded = held.encoded
    assert vlm.predict(held).ids == [] and held.encoded is encoded and sg.find_sinks(vlm, held) is sinks
    with torch.no_grad():
        CHANGES[what](vlm.model)
    vlm.predict(held)
    assert (held.encoded is encoded) == (what == "the llm"), "images are encoded again where their encoder has changed"
    fresh = vlm.prompt(noise_image(1), QUESTION)
    expected = vlm.predict(fresh, gates)
    assert not torch.allclose(expected.probabilities, before.probabilities, atol=1e-4)
    assert torch.equal(vlm.predict(held, gates).probabilities, expected.probabilities)
    assert torch.equal(warm.predict(gates).probabilities, expected.probabilities)
    assert torch.equal(sg.find_sinks(vlm, held).norm_ratio, sg.find_sinks(vlm, fresh).norm_ratio)
    assert torch.equal(
        vlm.predict_all([held, held], gates)[1].probabilities, vlm.predict_all([fresh, fresh], gates)[1].probabilities
    )


def test_a_kept_prompt_follows_adapters_that_are_switched():
    peft = pytest.importorskip("peft")
    vlm = sg.load(tiny_llava("clip"), check=False)
    config = peft.LoraConfig(r=2, target_modules=["linear_1", "q_proj"], init_lora_weights=False)
    vlm.model.add_adapter(config)
    held = vlm.prompt(noise_image(1), QUESTION)
    adapted = vlm.predict(held).probabilities
    vlm.model.disable_adapters()
    plain = vlm.predict(vlm.prompt(noise_image(1), QUESTION)).probabilities
    assert not torch.allclose(plain, adapted, atol=1e-4)
    assert torch.equal(vlm.predict(held).probabilities, plain)
    vlm.model.enable_adapters()
    assert torch.equal(vlm.predict(held).probabilities, adapted)


def test_a_prompt_without_pixels_on_a_changed_encoder_is_refused():
    vlm = sg.load(tiny_llava("clip"), check=False)
    prompt = vlm.prompt(noise_image(1), QUESTION)
    vlm.warm_inputs(prompt)
    del prompt.inputs["pixel_values"]
    vlm.predict(prompt)
    with torch.no_grad():
        vlm.model.model.multi_modal_projector.linear_1.bias.add_(1)
    with pytest.raises(sg.PromptError, match="encoder has changed.*make the prompt again"):
        vlm.predict(prompt)


def test_iterators_of_prompts_are_read_whole(tiny, prompt):
    assert len(sg.find_sinks(tiny, iter([prompt, prompt]))) == 2
    assert len(sg.report(tiny, iter([prompt]))) == 1
    with pytest.raises(sg.PromptError, match="got list_iterator, expected a Prompt or a list"):
        tiny.predict(iter([prompt]))


@pytest.mark.parametrize("gates", ["V-sinks up", 0.5, {"v_sink": 0.5}])
def test_other_things_than_gates_are_refused(tiny, prompt, gates):
    with pytest.raises(sg.GateError, match=f"got {type(gates).__name__}, expected Gates"):
        tiny.predict(prompt, gates)


def test_gates_and_sinks_in_the_wrong_order_are_refused(tiny, prompt):
    gates, sinks = sg.Gates.preset("V-sinks up", tiny), some_sinks(tiny, prompt)
    with pytest.raises(sg.GateError, match="gates come before sinks"):
        sg.Session(tiny, prompt, sinks).predict(sinks)
    with pytest.raises(sg.GateError, match="gates come before sinks"):
        tiny.predict(prompt, sinks, gates)
    with pytest.raises(sg.SinkgateError, match="got Gates as sinks"):
        tiny.predict(prompt, gates, gates)


def test_texts_that_are_none_are_refused(tiny, prompt):
    for refused in (
        lambda: tiny.prompt(prompt.image, QUESTION, system=None),
        lambda: tiny.encode_answer(prompt, 2),
        lambda: tiny.encode_options(prompt, [1, 2]),
    ):
        with pytest.raises(sg.PromptError, match="expected text"):
            refused()


@pytest.mark.parametrize("source", [None, 5, ("model",), ("processor", "model")])
def test_sources_that_are_no_model_are_refused(source):
    with pytest.raises(sg.UnsupportedModelError, match="expected a name, a folder or"):
        sg.load(source)


def test_settings_of_an_oracle_take_layers_as_typed_and_refuse_missing_ones(tiny):
    assert sg.oracle(tiny, "0-1") == sg.oracle(tiny, [0, 1])
    assert sg.oracle(tiny, -1) == sg.oracle(tiny, [tiny.num_layers - 1])
    with pytest.raises(sg.GateError, match="no layer 99"):
        sg.oracle(tiny, [99])


@pytest.mark.parametrize("wanted", [0, -1, "8", None, 2.5, True])
def test_a_wrong_number_of_tokens_is_named(demo, wanted):
    prompt = demo.prompt(Image.new("RGB", (64, 64)), "What is there?")
    session = sg.Session(demo, prompt)
    for answer in (lambda **options: demo.answer(prompt, **options), session.answer):
        with pytest.raises(sg.SinkgateError, match=f"max_new_tokens is {wanted!r}; expected a whole number from 1"):
            answer(max_new_tokens=wanted)


def test_an_unknown_option_of_generate_is_named(demo):
    prompt = demo.prompt(Image.new("RGB", (64, 64)), "What is there?")
    with pytest.raises(sg.SinkgateError, match="'heat' is no option of transformers' generate"):
        demo.answer(prompt, do_sample=True, heat=0.5)
    assert demo.answer(prompt, do_sample=True, top_p=0.9, repetition_penalty=1.1, max_new_tokens=2).text is not None


def test_prompts_with_other_text_inputs_are_no_batch():
    vlm = sg.load(tiny_llava())
    prompts = [
        vlm.prompt(noise_image(seed), question) for seed, question in ((1, "Is it red?"), (2, "Is it red or blue?"))
    ]
    together = vlm.predict_all(prompts)
    bare = vlm.read(
        {name: value for name, value in prompts[0].inputs.items() if name != "attention_mask"}, noise_image(1)
    )
    for one, many in zip(vlm.predict_all([bare, prompts[1]]), together, strict=True):
        assert torch.allclose(one.probabilities, many.probabilities, atol=1e-6), "padding is hidden all the same"
    typed = vlm.read({**prompts[0].inputs, "token_type_ids": torch.zeros_like(prompts[0].inputs["input_ids"])})
    with pytest.raises(sg.PromptError, match="1 of 2 prompts have token_type_ids, the others have none"):
        vlm.batch([typed, prompts[1]])
    for options, message in (
        (([],), "there is no prompt"),
        ((prompts, [some_sinks(vlm, prompts[0])]), "2 prompts with 1 sinks"),
        ((prompts, (), [[5]]), "2 prompts with 1 answers"),
    ):
        with pytest.raises(sg.PromptError, match=message):
            vlm.batch(*options)
