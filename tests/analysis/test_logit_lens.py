"""The logit lens is the model's own way from a state to words, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from tiny import noise_image
from zoo import ZOO

import sinkgate as sg
from sinkgate.analysis import logit_lens as module
from sinkgate.models.vlm import VLM


@pytest.fixture(scope="module")
def prompt(demo: sg.VLM) -> sg.Prompt:
    return demo.prompt(noise_image(0), "How many objects are there?")


def logits_of(vlm: VLM, prompt: sg.Prompt) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**prompt.inputs).logits[0, prompt.visual].float().softmax(-1)


def test_the_last_row_is_the_models_own_distribution(demo, prompt, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 24)  # more than one chunk
    before = logits_of(demo, prompt)
    lens = sg.logit_lens(demo, prompt, top=7)
    rows, tokens = demo.num_layers + 1, len(prompt.visual)
    assert lens.ids.shape == lens.probabilities.shape == (rows, tokens, 7)
    expected = before.topk(7)
    torch.testing.assert_close(lens.probabilities[-1], expected.values, atol=1e-5, rtol=1e-4)
    assert (lens.ids[-1, :, 0] == expected.indices[:, 0]).all()
    assert (lens.probabilities.diff(dim=-1) <= 0).all() and (lens.probabilities.sum(-1) <= 1 + 1e-5).all()
    assert torch.equal(logits_of(demo, prompt), before)  # no hook stays behind


def test_a_layer_is_decoded_by_norm_and_vocabulary(demo, prompt):
    states = []
    hook = demo.adapter.layers[3].register_forward_pre_hook(
        lambda _m, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    logits_of(demo, prompt)
    hook.remove()
    with torch.no_grad():
        normed = demo.decoder.norm(states[0][0, prompt.visual])
        expected = demo.model.get_output_embeddings()(normed).float().softmax(-1)
    lens = sg.logit_lens(demo, prompt, layers=[3], top=1)
    torch.testing.assert_close(lens.norms[0], states[0][0, prompt.visual].norm(dim=-1))
    torch.testing.assert_close(lens.probabilities[0, :, 0], expected.amax(-1), atol=1e-5, rtol=1e-4)
    assert torch.equal(lens.ids[0, :, 0], expected.argmax(-1))
    word, share = lens.words(5, 3)[0]
    assert word == demo.token_name(int(expected[5].argmax())) and share == pytest.approx(
        float(expected[5].max()), rel=1e-4
    )


def test_gates_change_the_layers_above_them_alone(demo, prompt):
    sinks = sg.find_sinks(demo, prompt)
    plain = sg.logit_lens(demo, prompt)
    gated = sg.logit_lens(demo, prompt, gates=sg.Gates.ones(demo).set("rest", 0.2, 4), sinks=sinks)
    assert torch.equal(plain.probabilities[:5], gated.probabilities[:5])
    assert not torch.equal(plain.probabilities[5:], gated.probabilities[5:])
    same = sg.logit_lens(demo, prompt, gates=sg.Gates.ones(demo), sinks=sinks)
    assert torch.equal(plain.ids, same.ids) and torch.equal(plain.probabilities, same.probabilities)


def test_tables_name_groups_as_the_sinks_do(demo, prompt):
    sinks = sg.find_sinks(demo, prompt, v_sink="attention")
    lens = sg.logit_lens(demo, prompt, layers=[2, demo.num_layers], top=3)
    table = lens.to_frame(sinks)
    assert list(table.columns) == ["layer", "token", "rank", "word", "probability", "group"]
    assert len(table) == 2 * len(prompt.visual) * 3
    tokens = table[(table["layer"] == 2) & (table["rank"] == 0) & (table["group"] == "v_sink")]["token"]
    assert tokens.tolist() == sinks.v_sink.nonzero()[:, 0].tolist()
    row = table[(table["layer"] == 2) & (table["token"] == 9) & (table["rank"] == 1)].iloc[0]
    assert lens.words(9, 2)[1] == (row["word"], pytest.approx(row["probability"]))
    groups = lens.by_group(sinks, most=1000)
    assert groups.groupby("layer")["tokens"].sum().tolist() == [len(prompt.visual)] * 2
    assert (groups["share"] == 1).all() and set(lens.by_group(sinks)["group"]) <= {"v_sink", "l_sink", "ordinary"}


def test_wrong_arguments_are_named(demo, prompt):
    for options in ({"layers": [9]}, {"layers": []}, {"top": 0}, {"top": 2.5}, {"layers": [1.5]}, {"layers": "1-2"}):
        with pytest.raises(sg.SinkgateError, match="expected layers from 0 to 8, at least one, and at least 1 word"):
            sg.logit_lens(demo, prompt, **options)
    assert sg.logit_lens(demo, prompt, layers=np.array([1, 2]), top=1).layers == (1, 2)
    with pytest.raises(
        sg.SinkgateError, match=r"token 64 at layer 2 was not decoded; expected tokens 0 to 63.*layers 2"
    ):
        sg.logit_lens(demo, prompt, layers=[2]).words(64, 2)
    with pytest.raises(sg.PromptError):
        sg.logit_lens(demo, [prompt])
    lens = sg.logit_lens(demo, prompt, layers=[2])
    assert lens.words(np.int64(3), torch.tensor(2)) == lens.words(3, 2)
    for token, layer, words in (
        (None, 2, "a token is a whole number; got None"),
        (3, 2.0, "a layer is a whole number"),
    ):
        with pytest.raises(sg.SinkgateError, match=words):
            lens.words(token, layer)
    states = {2: torch.zeros(1, prompt.length, 4)}
    for options, words in (
        ({"tokens": [64]}, r"token \[64\]; expected whole numbers from 0 to 63"),
        ({"tokens": [2.5]}, r"token \[2.5\]"),
        ({"top": 0}, "top is 0"),
        ({"top": None}, "the number of words is a whole number"),
        ({"states": {}}, "states are of 0 layers"),
    ):
        with pytest.raises(sg.SinkgateError, match=words):
            module.decode(demo, prompt, **{"states": states, **options})


@pytest.mark.parametrize("name", ZOO)
def test_every_architecture(name):
    family = ZOO[name]
    model = family.model()
    vlm = VLM(model, None, model.config.model_type)
    prompt = vlm.read(family.sample())
    if vlm.adapter.cross_attention:
        with pytest.raises(sg.UnsupportedModelError, match="cross-attention"):
            sg.logit_lens(vlm, prompt)
        return
    lens = sg.logit_lens(vlm, prompt, top=2)
    torch.testing.assert_close(lens.probabilities[-1], logits_of(vlm, prompt).topk(2).values, atol=1e-5, rtol=1e-3)


def test_states_of_a_session_decode_to_the_same_words(demo):
    prompt = demo.prompt(noise_image(), "What color is the circle?")
    whole = sg.logit_lens(demo, prompt, layers=[2, 6], top=3)
    states = sg.Session(demo, prompt).states()
    some = module.decode(demo, prompt, {layer: states[layer] for layer in (2, 6)}, tokens=[9, 4], top=3)
    assert some.ids.shape == (2, 2, 3)
    for token, layer in ((9, 2), (4, 6)):
        assert dict(some.words(token, layer)) == pytest.approx(dict(whole.words(token, layer)), abs=1e-5)
    assert set(some.to_frame()["token"]) == {4, 9}
    with pytest.raises(sg.SinkgateError, match="one of the tokens"):
        some.words(5, 2)
