"""FastV against a model whose tokens are really dropped, and its choice of tokens against a ranking by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import noise_image, tiny_llava

import sinkgate as sg
from sinkgate.methods import FastV
from sinkgate.sinks.sink_map import SinkMasks


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def tiny(request):
    # transformers' eager attention gives NaN with padding in float64
    dtype = torch.float64 if request.param == "sdpa" else torch.float32
    model, processor = tiny_llava("clip", dtype=dtype, layers=4, attn=request.param)
    return sg.VLM(model, processor, "tiny")


def masks(vlm, prompt):
    v_sink = torch.arange(len(prompt.visual)) % 5 == 1
    return SinkMasks(v_sink, torch.zeros(vlm.num_layers, len(v_sink), dtype=torch.bool))


def really_dropped(vlm, prompt, layer, drop):
    """Logits of the last position with tokens taken out of the sequence before a layer: layers run by hand, places kept."""
    decoder = vlm.decoder
    hidden = vlm.model(**prompt.inputs, output_hidden_states=True).hidden_states[layer]
    keep = torch.ones(prompt.length, dtype=torch.bool)
    keep[prompt.visual[drop]] = False
    hidden, position = hidden[:, keep], torch.arange(prompt.length)[None, keep]
    turned = decoder.rotary_emb(hidden, position)
    hidden_from_later = torch.full((len(position[0]),) * 2, torch.finfo(hidden.dtype).min, dtype=hidden.dtype).triu(1)
    for module in decoder.layers[layer:]:
        hidden = module(
            hidden, attention_mask=hidden_from_later[None, None], position_ids=position, position_embeddings=turned
        )
    return vlm.model.lm_head(decoder.norm(hidden))[0, -1]


@pytest.mark.parametrize("rule", ["ranked", "kept", "first", "dropped"])
@pytest.mark.parametrize("layer", [1, 3])
def test_hidden_tokens_are_as_good_as_dropped(tiny, rule, layer):
    """One prompt, a batch with padding, and the attention row of layer K - 1 as transformers computes it."""
    prompts = [tiny.prompt(noise_image(seed), text) for seed, text in enumerate(("what color is the circle", "count"))]
    sinks = [masks(tiny, prompt) for prompt in prompts]
    method, batch = FastV(layer, 0.5, rule), tiny.batch(prompts, sinks)
    with torch.no_grad():
        with method.applied(tiny, batch):
            together = tiny.model(**batch.inputs, logits_to_keep=1).logits[:, -1]
        for prompt, mask, row in zip(prompts, sinks, together, strict=True):
            before = tiny.model.config.text_config._attn_implementation
            tiny.model.set_attn_implementation({"text_config": "eager"})
            attention = tiny.model(**prompt.inputs, output_attentions=True).attentions[layer - 1][0, :, -1].mean(0)
            expected = really_dropped(tiny, prompt, layer, method.dropped(attention[prompt.visual], mask.v_sink))
            plain = tiny.model(**prompt.inputs, logits_to_keep=1).logits[0, -1]
            tiny.model.set_attn_implementation({"text_config": before})
            single = tiny.batch([prompt], [mask])
            with method.applied(tiny, single):
                alone = tiny.model(**single.inputs, logits_to_keep=1).logits[0, -1]
            tolerance = 1e-6 if expected.dtype == torch.float64 else 1e-4
            assert torch.allclose(alone, expected, atol=tolerance) and torch.allclose(row, expected, atol=tolerance)
            assert (alone - plain).abs().max() > 1e-3, "it must act, or the test shows nothing"


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30),
    st.floats(0, 1),
    st.sampled_from(["ranked", "kept", "first", "dropped"]),
)
def test_the_least_attended_tokens_are_dropped(tokens, share, rule):
    attention, v_sink = torch.tensor([a for a, _ in tokens]), torch.tensor([s for _, s in tokens])
    dropped, count = FastV(1, share, rule).dropped(attention, v_sink), round(share * len(tokens))
    if rule == "kept":
        assert not (dropped & v_sink).any() and dropped.sum() == min(count, int((~v_sink).sum()))
    if rule == "first":
        assert dropped.sum() == count and (dropped[v_sink].all() or not dropped[~v_sink].any())
    if rule == "ranked":
        assert dropped.sum() == count
    if rule == "dropped":
        assert dropped[v_sink].all() and torch.equal(dropped, v_sink | FastV(1, share).dropped(attention, v_sink))
    # within the tokens that are treated alike nothing kept received less than something dropped
    for group in (v_sink, ~v_sink) if rule != "dropped" else ():
        least, most = attention[group & ~dropped], attention[group & dropped]
        assert not len(least) or not len(most) or least.min() >= most.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.2}, "share is 1.2"),
        ({"share": float("nan")}, "share is nan"),
        ({"layer": 0}, "layer is 0; expected 1 or more"),
        ({"sinks": "loud"}, "sinks is 'loud'; expected one of ranked, kept, first, dropped"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(sg.SinkgateError, match=message):
        FastV(**options)


def test_a_layer_that_the_model_lacks_is_refused(tiny):
    with pytest.raises(sg.SinkgateError, match="no layer 4: tiny has layers 0 to 3"):
        FastV(4).first_layer(tiny)
