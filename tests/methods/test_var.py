"""VAR against the published rule, written again from its formulas: on tensors, and inside a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import greedy_steps, logits, no_sinks, prompts_of, some_sinks, vlm_of
from transformers import AttentionInterface

import sinkgate as sg
from sinkgate.attention.recorder import Recorder
from sinkgate.methods import VAR
from sinkgate.methods.decoder_inputs import beams


def published(row, sinks, visual, *, most_sink_share, keep_share, least_image):
    """One row of one head, in the released code's letters: rho is ``most_sink_share``, p is ``keep_share``, summ ``least_image``."""
    sinks, visual = set(sinks), set(visual)
    image = sum(row[k] for k in visual)
    on_visual_sinks = sum(row[k] for k in sinks & visual)
    if not sinks & visual or image < least_image or on_visual_sinks / image > most_sink_share:
        return list(row)
    others = visual - sinks
    budget = sum(row[k] * (1 - keep_share) for k in sinks)
    total = sum(row[k] for k in others)
    new = [value * keep_share if k in sinks else value for k, value in enumerate(row)]
    for k in others:
        new[k] += budget * row[k] / total
    return new


def in_the_papers_words(row, sinks, visual, *, rho, p, least_image):
    """The same with the paper's rho, a least share of non-sinks, and p, the share that is moved."""
    return published(row, sinks, visual, most_sink_share=1 - rho, keep_share=1 - p, least_image=least_image)


@st.composite
def attention(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    keys = draw(st.integers(4, 12))
    rows = (3 * torch.randn(2, 3, 4, keys, generator=generator, dtype=torch.float64)).softmax(-1)
    visual = torch.zeros(2, keys, dtype=torch.bool)
    visual[:, 1:-1] = True
    return rows, torch.rand(2, keys, generator=generator) < draw(st.floats(0, 1)), visual


def indices(mask):
    return mask.nonzero()[:, 0].tolist()


@given(attention(), st.floats(0.05, 0.95), st.floats(0, 1), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_equals_the_published_rule_in_both_readings_of_its_letters(case, rho, p, least_image):
    rows, sinks, visual = case
    ours = VAR(min_image_attention=least_image, min_non_sink_share=rho, moved=p).redistributed(rows, sinks, visual)
    for sample, head, row in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        given_row, where = rows[sample, head, row].tolist(), (indices(sinks[sample]), indices(visual[sample]))
        share = sum(given_row[k] for k in set(where[0]) & set(where[1])) / sum(given_row[k] for k in where[1])
        if share == 1.0 or abs(1 - share - rho) < 1e-12:
            continue  # no visual token left to receive anything; or a tie that rounding decides
        paper = in_the_papers_words(given_row, *where, rho=rho, p=p, least_image=least_image)
        code = published(given_row, *where, most_sink_share=1 - rho, keep_share=1 - p, least_image=least_image)
        assert ours[sample, head, row].tolist() == pytest.approx(paper, abs=1e-12)
        assert paper == pytest.approx(code, abs=1e-12)


@given(attention(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_rows_stay_distributions_and_nothing_changes_without_visual_sinks(case, rho, p, least_image):
    rows, sinks, visual = case
    var = VAR(min_image_attention=least_image, min_non_sink_share=rho, moved=p)
    new = var.redistributed(rows, sinks, visual)
    assert torch.allclose(new.sum(-1), torch.ones((), dtype=rows.dtype)) and (new >= 0).all()
    assert torch.equal(var.redistributed(rows, sinks & ~visual, visual), rows), "text sinks alone change nothing"
    assert torch.equal(var.redistributed(rows, torch.ones_like(sinks), visual), rows), "nobody is left to receive"
    changed = (new != rows).any(-1)
    assert (
        (new * (visual & ~sinks)[:, None, None])
        .sum(-1)[changed]
        .ge((rows * (visual & ~sinks)[:, None, None]).sum(-1)[changed] - 1e-12)
        .all()
    )


class Reference:
    """Eager attention with the published rule in it, for one prompt without padding; shares no code with the package."""

    def __init__(self, vlm, prompt, sinks_of, layers, **letters):
        self.vlm, self.layers, self.sinks_of, self.letters = vlm, layers, sinks_of, letters
        self.visual = prompt.visual.tolist()
        self.index = {module: layer for layer, module in enumerate(vlm.attention)}
        self.rows = {layer: [] for layer in range(vlm.num_layers)}

    def attend(self, module, query, key, value, mask, scaling=None, **_):
        layer = self.index[module]
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = query @ key.transpose(2, 3) * scaling
        queries, keys = scores.shape[2:]
        position = torch.arange(keys - queries, keys)
        scores = scores.masked_fill(torch.arange(keys) > position[:, None], -torch.inf)
        weights = scores.softmax(-1)
        if layer in self.layers:
            for head in range(weights.shape[1]):
                for row in range(queries):
                    if position[row] > self.visual[-1]:
                        new = published(
                            weights[0, head, row].tolist(), self.sinks_of(layer), self.visual, **self.letters
                        )
                        weights[0, head, row] = torch.tensor(new)
        self.rows[layer].append(weights[:, :, -1:])
        return (weights @ value).transpose(1, 2), None

    def __enter__(self):
        self.before = AttentionInterface._global_mapping["sdpa"]
        others = self.before

        def either(module, *args, **kwargs):
            return (self.attend if module in self.index else others)(module, *args, **kwargs)

        AttentionInterface.register("sdpa", either)
        return self

    def __exit__(self, *_):
        AttentionInterface.register("sdpa", self.before)


@pytest.mark.parametrize("by_dimensions", [False, True])
def test_inside_a_model_it_is_the_published_algorithm(by_dimensions):
    """Prefill and decode steps, grouped KV heads, fp64; the sinks of both sources; which rows are recorded."""
    vlm = vlm_of("llava", torch.float64)
    (prompt,) = prompts_of("llava", vlm)
    masks, layers, dims, tau = some_sinks(vlm, prompt), (0, 2), (3, 5), 1.4
    batch, letters = vlm.batch([prompt], [masks]), {"most_sink_share": 0.6, "keep_share": 1 - 0.7, "least_image": 0.2}
    var = VAR(0.2, 0.4, 0.7, layers, dims if by_dimensions else None, tau)

    def loud(layer, *below):
        """Sinks by the published threshold at a layer's input, with the reference at work in the layers below."""
        states = []
        hook = vlm.adapter.layers[layer].register_forward_pre_hook(
            lambda _m, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with Reference(vlm, prompt, sinks.get, below, **letters), torch.no_grad():
            vlm.model(**batch.inputs, use_cache=False)
        hook.remove()
        state = states[0][0]
        return indices(state[:, dims].abs().amax(-1) / state.square().mean(-1).sqrt() > tau)

    sinks = {layer: prompt.visual[masks.v_sink | masks.l_sink[layer]].tolist() for layer in layers}
    if by_dimensions:
        sinks[0] = loud(0)
        sinks[2] = loud(2, 0)
        assert all(
            set(row) & set(prompt.visual.tolist()) and set(row) - set(prompt.visual.tolist()) for row in sinks.values()
        )
    recorder = Recorder("last")
    with torch.no_grad(), var.applied(vlm, batch, recorder):
        inside = vlm.model(**batch.inputs, use_cache=False).logits
    with Reference(vlm, prompt, sinks.get, layers, **letters) as reference, torch.no_grad():
        expected = vlm.model(**batch.inputs, use_cache=False).logits
    assert torch.allclose(inside, expected, atol=1e-6)
    assert (inside - logits(vlm, batch)).abs().max() > 1e-3
    for layer in range(vlm.num_layers):
        assert torch.allclose(recorder.attention[layer][0], reference.rows[layer][0], atol=1e-6)
    ids, stepwise = greedy_steps(vlm, var, batch)
    with Reference(vlm, prompt, sinks.get, layers, **letters):
        again = greedy_steps(vlm, sg.methods.Fixed(sg.Gates.ones(vlm)), batch)
    assert torch.equal(ids, again[0]) and torch.allclose(stepwise, again[1], atol=1e-6)


def test_an_answer_behind_the_prompt_makes_no_sinks():
    """Dimensions so loud that every token is a sink: only the prompt's count."""
    vlm = vlm_of("llava")
    (prompt,) = prompts_of("llava", vlm)
    var = VAR(0.0, 0.0, 0.5, (1,), (3,), 0.0)
    batch = vlm.batch([prompt], [no_sinks(vlm, prompt)], [[7, 8, 9]])
    with torch.no_grad():
        assert torch.equal(logits(vlm, batch, var), logits(vlm, batch)), "all are sinks, so none can receive"


def test_default_layers_are_the_papers_and_wrong_ones_are_refused(demo):
    last = len(demo.adapter.all_layers) - 1
    assert VAR().first_layer(demo) == 2 and VAR(layers=(last,)).first_layer(demo) == last
    tiny = vlm_of("llava")
    assert VAR().first_layer(tiny) == 3, "of three layers none is neither among the first two nor the last"
    prompts = prompts_of("llava", tiny)
    batch = tiny.batch(prompts, [some_sinks(tiny, prompts[0])])
    with pytest.raises(sg.SinkgateError, match="no layer 7.*0 to 2"):
        logits(tiny, batch, VAR(layers=(7,)))
    with pytest.raises(sg.SinkgateError, match="no dimension 99.*32 wide"):
        logits(tiny, batch, VAR(layers=(1,), dimensions=(99,)))
    with pytest.raises(sg.SinkgateError, match="moved is 1.5.*0 to 1"):
        VAR(moved=1.5)


@pytest.mark.parametrize("eager", [False, True])
def test_beams_and_eager_attention(eager):
    """The score of a beam is the sum of its tokens' log probabilities, taught in one forward."""
    vlm = vlm_of("llava", torch.float64)
    if eager:
        vlm.model.set_attn_implementation({"text_config": "eager"})
    (prompt,) = prompts_of("llava", vlm)
    sinks, var = some_sinks(vlm, prompt), VAR(0.0, 0.0, 0.7, (0, 1))
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "length_penalty": 0.0, "output_scores": True}
    options["suppress_tokens"] = [vlm.adapter.image_token_id]
    with torch.no_grad(), var.applied(vlm, vlm.batch([prompt], [sinks])):
        output = vlm.model.generate(**prompt.inputs, **options, return_dict_in_generate=True)
    ids = output.sequences[:, -4:]
    batch = vlm.batch([prompt], [sinks], ids.tolist())
    with torch.no_grad():
        scores = logits(vlm, batch, var)[0, batch.length - 1 : -1].double().log_softmax(-1)
    assert scores[torch.arange(4), ids[0]].sum().item() == pytest.approx(output.sequences_scores.item(), abs=1e-5)


def test_rewritten_rows_of_decode_steps_are_not_put_off():
    """Rows of steps wait for the end if the caller owns the cache, but not those that are rewritten."""
    vlm = vlm_of("llava")
    (prompt,) = prompts_of("llava", vlm)
    recorder = Recorder("last")
    with torch.no_grad(), vlm.attached(None, recorder, own_cache=True, live=(1,)) as block:
        block.set_rewrite(
            1, 0, lambda rows, position, first: torch.zeros_like(rows).index_fill_(-1, torch.tensor(0), 1.0)
        )
        vlm.model.generate(**prompt.inputs, max_new_tokens=3, do_sample=False)
    assert len(recorder.attention[1]) == 3 and all((rows[..., 0] == 1).all() for rows in recorder.attention[1])
    assert all((rows[..., 0] < 1).any() for rows in recorder.attention[0])


def test_each_prompts_row_is_repeated_for_its_own_beams():
    assert beams(torch.tensor([1, 2]), torch.zeros(6, 4)).tolist() == [1, 1, 1, 2, 2, 2]
