"""The wrapper against an attention written from scratch, against eager, and against misuse."""

import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import noise_image, rename_cache, tiny_llava
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import sinkgate.attention.patch as attention_module
import sinkgate.attention.recorder as recorder_module
from sinkgate.attention.cache import CACHE_NAME, CACHE_NAMES, cache_in
from sinkgate.attention.patch import attached, model_lock, scale_keys
from sinkgate.attention.recorder import Recorder, attention_rows
from sinkgate.errors import UnsupportedModelError

TEXTS = ("<image><|user|>what color is the circle<|assistant|>", "<image><|user|>count<|assistant|>")


def batch(processor, dtype=torch.float32):
    images = [noise_image(1), noise_image(2)]
    return processor(images=images, text=list(TEXTS), return_tensors="pt", padding=True).to("cpu", dtype)


def parts(model):
    decoder = model.get_decoder()
    return [layer.self_attn for layer in decoder.layers], decoder


def random_scales(layers, samples, length, seed=0):
    return torch.rand(layers, samples, length, generator=torch.Generator().manual_seed(seed)) * 2


class FromScratch:
    """Attention that scales scores, not keys; shares no code with the package."""

    def __init__(self, model, scales):
        self.model, self.scales = model, scales

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **_):
        samples, heads = query.shape[:2]
        repeat = heads // key.shape[1]
        out = torch.zeros_like(query)
        scales = self.scales[module.layer_idx]
        beams = samples // scales.shape[0]
        for sample in range(samples):
            for head in range(heads):
                scores = query[sample, head] @ key[sample, head // repeat].T * scaling
                for position in range(min(scores.shape[1], scales.shape[1])):
                    scores[:, position] *= scales[sample // beams, position]
                if attention_mask is not None:
                    scores[
                        attention_mask[sample, 0, :, : scores.shape[1]] < 0
                    ] = -1e9  # finite: padded queries see no key
                weights = (scores - scores.max(1, keepdim=True).values).exp()
                out[sample, head] = weights / weights.sum(1, keepdim=True) @ value[sample, head // repeat]
        return out.transpose(1, 2).contiguous(), None

    def __enter__(self):
        AttentionInterface.register("from_scratch", self)
        AttentionMaskInterface.register("from_scratch", eager_mask)
        self.before = self.model.config.text_config._attn_implementation
        self.model.set_attn_implementation({"text_config": "from_scratch"})

    def __exit__(self, *_):
        self.model.set_attn_implementation({"text_config": self.before})
        del AttentionInterface._global_mapping["from_scratch"], AttentionMaskInterface._global_mapping["from_scratch"]


def generated_logits(model, inputs, **options):
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return torch.stack(model.generate(**inputs, **(settings | options)).logits, 1)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("seed", range(3))
def test_gated_logits_equal_attention_written_from_scratch(tower, seed):
    """Prefill and three decode steps, batch of two with left padding, every sample its own scales, fp64."""
    model, processor = tiny_llava(tower, dtype=torch.float64)
    inputs = batch(processor, torch.float64)
    modules, decoder = parts(model)
    scales = random_scales(3, 2, inputs["input_ids"].shape[1], seed)
    with attached(modules, decoder=decoder, key_scales=scales):
        gated = generated_logits(model, inputs)
    with FromScratch(model, scales):
        expected = generated_logits(model, inputs)
    plain = generated_logits(model, inputs)
    assert (gated - expected).abs().max() < 1e-6
    assert (gated[:, 0] - plain[:, 0]).abs().max() > 1e-2, "the scales must matter, or the test shows nothing"


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
)
def test_gates_follow_beams_static_cache_and_no_cache(options):
    model, processor = tiny_llava("clip", dtype=torch.float64)
    inputs = batch(processor, torch.float64)
    modules, decoder = parts(model)
    scales = random_scales(3, 2, inputs["input_ids"].shape[1])
    with attached(modules, decoder=decoder, key_scales=scales):
        gated = generated_logits(model, inputs, **options)
    with FromScratch(model, scales):
        expected = generated_logits(model, inputs, **options)
    assert (gated - expected).abs().max() < 1e-6


def test_eager_and_sdpa_agree_when_gated():
    results = []
    for attn in ("sdpa", "eager"):
        model, processor = tiny_llava("clip", attn=attn)
        inputs = batch(processor)
        modules, decoder = parts(model)
        with attached(modules, decoder=decoder, key_scales=random_scales(3, 2, inputs["input_ids"].shape[1])):
            results.append(generated_logits(model, inputs))
    assert torch.allclose(*results, atol=1e-4)


def test_batched_equals_single():
    model, processor = tiny_llava("siglip", dtype=torch.float64)
    modules, decoder = parts(model)
    images = [noise_image(1), noise_image(2)]
    together = processor(images=images, text=list(TEXTS), return_tensors="pt", padding=True).to("cpu", torch.float64)
    scales = random_scales(3, 2, together["input_ids"].shape[1])
    with attached(modules, decoder=decoder, key_scales=scales):
        both = generated_logits(model, together)
    for sample in range(2):
        alone = processor(images=images[sample], text=TEXTS[sample], return_tensors="pt").to("cpu", torch.float64)
        length = alone["input_ids"].shape[1]
        with attached(modules, decoder=decoder, key_scales=scales[:, sample : sample + 1, -length:]):
            single = generated_logits(model, alone)
        assert torch.allclose(single[0], both[sample], atol=1e-9)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_ones_attach_nothing_and_are_bit_identical(attn):
    model, processor = tiny_llava("clip", attn=attn)
    inputs = batch(processor)
    modules, decoder = parts(model)
    plain = model(**inputs).logits
    before = dict(AttentionInterface._global_mapping)
    with attached(modules, decoder=decoder, key_scales=torch.ones(3, 2, inputs["input_ids"].shape[1])):
        assert AttentionInterface._global_mapping == before
        assert not decoder._forward_pre_hooks
        assert torch.equal(model(**inputs).logits, plain)


def test_a_layer_of_ones_beside_gated_layers_stays_bit_identical():
    model, processor = tiny_llava("clip")
    inputs = batch(processor)
    modules, decoder = parts(model)
    plain = model(**inputs, output_hidden_states=True).hidden_states
    scales = torch.ones(3, 2, inputs["input_ids"].shape[1])
    scales[2] = 0.5
    with attached(modules, decoder=decoder, key_scales=scales):
        gated = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(gated[1], plain[1]) and torch.equal(gated[2], plain[2])
    assert not torch.equal(gated[3], plain[3])


@pytest.mark.parametrize("gated", [False, True])
def test_recorded_rows_equal_eager_attention(gated):
    """Recorded while the model runs sdpa; compared with what eager returns, with and without gates."""
    model, processor = tiny_llava("clip")
    inputs = batch(processor)
    modules, decoder = parts(model)
    length = inputs["input_ids"].shape[1]
    scales = random_scales(3, 2, length) if gated else None
    recorder = Recorder("last", values=True)
    with attached(modules, decoder=decoder, key_scales=scales, recorder=recorder):
        generated_logits(model, inputs)
    model.set_attn_implementation("eager")
    with attached(modules, decoder=decoder, key_scales=scales):
        expected = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_attentions=True
        ).attentions
    for step in range(4):
        for layer in range(3):
            rows = recorder.attention[layer][step]
            assert rows.shape == (2, 4, 1, length + step)
            assert (rows[:, :, 0] - expected[step][layer][:, :, -1]).abs().max() < 1e-5
            assert torch.allclose(rows.sum(-1), torch.ones(()), atol=1e-5)
            assert recorder.value_norms[layer][step].shape == (2, length + step)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_rows_by_position_in_prefill_and_decode(name):
    model, processor = tiny_llava("siglip")
    inputs = {k: v[:1] for k, v in batch(processor).items()}
    modules, decoder = parts(model)
    length = inputs["input_ids"].shape[1]
    recorder = Recorder([3, length - 1, length + 1])
    rename_cache(decoder, name)
    with attached(modules, decoder=decoder, recorder=recorder):
        rename_cache(decoder, CACHE_NAME)
        generated_logits(model, inputs)
    shapes = [tuple(rows.shape) for rows in recorder.attention[0]]
    assert shapes == [(1, 4, 2, length), (1, 4, 1, length + 2)]
    assert recorder.attention[0][0][0, :, 0, 4:].abs().max() == 0, "row 3 sees keys 0 to 3"


def test_encoder_rows_are_not_causal():
    model, processor = tiny_llava("clip")
    inputs = batch(processor)
    modules = [layer.self_attn for layer in model.model.vision_tower.encoder.layers]
    recorder = Recorder("all")
    with attached(modules, recorder=recorder):
        model.model.get_image_features(inputs["pixel_values"])
    model.set_attn_implementation("eager")
    expected = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    for layer in range(3):
        assert torch.allclose(recorder.attention[layer][0], expected[layer], atol=1e-5)


@pytest.mark.parametrize("mean", [True, "rows"])
@pytest.mark.parametrize("wanted", ["all", [0, 3, 4, 9, 11, 17]])
def test_means_of_many_rows_are_taken_in_chunks(mean, wanted, monkeypatch):
    model, processor = tiny_llava("siglip")
    inputs = batch(processor)
    modules, decoder = parts(model)
    keys, rows = inputs["input_ids"].shape[1], []
    compute = attention_module.attention_rows
    monkeypatch.setattr(
        attention_module, "attention_rows", lambda *a, **k: (weights := compute(*a, **k), rows.append(weights.shape))[0]
    )

    def recorded(chunk, **options):
        monkeypatch.setattr(recorder_module, "CHUNK", chunk)
        rows.clear()
        recorder = Recorder(wanted, **options)
        with attached(modules, decoder=decoder, recorder=recorder), torch.no_grad():
            model(**inputs)
        return [recorder.attention[layer][0] for layer in range(3)], [shape[2] for shape in rows]

    whole, sizes = recorded(1 << 24)
    count = sizes[0]
    assert sizes == [count] * 3
    for most in (1, 5, count):  # rows at once
        means, sizes = recorded(2 * 4 * keys * most, mean=mean)
        assert max(sizes) == most and sum(sizes) == 3 * count
        for all_rows, mean_row in zip(whole, means, strict=True):
            assert torch.allclose(mean_row, all_rows.mean((1, 2) if mean is True else 2), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 2), (6, 3), (4, 1)]),
    queries=st.integers(1, 9),
    extra=st.integers(0, 7),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_rows_sum_to_one_and_match_sdpa(heads, queries, extra, masked, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = queries + extra
    query = torch.randn(2, heads[0], queries, 8, generator=generator).to(dtype)
    key, value = (torch.randn(2, heads[1], keys, 8, generator=generator).to(dtype) for _ in range(2))
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(extra)[None, None].expand(2, 1, -1, -1) if masked else None
    rows = attention_rows(torch.nn.Identity(), query, key, mask, is_causal=False)
    assert rows.shape == (2, heads[0], queries, keys)
    assert torch.allclose(rows.sum(-1), torch.ones((), dtype=rows.dtype), atol=1e-5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    repeated = value.repeat_interleave(heads[0] // heads[1], 1)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose((rows.to(dtype) @ repeated), expected, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 3),
    beams=st.integers(1, 3),
    keys=st.integers(1, 12),
    known=st.integers(1, 12),
    first=st.integers(0, 6),
    seed=st.integers(0, 10**6),
)
def test_scale_keys_places_every_scale(samples, beams, keys, known, first, seed):
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(samples * beams, 2, keys, 4, generator=generator)
    scales = torch.rand(samples, known, generator=generator)
    scaled = scale_keys(key, scales, first)
    for row in range(samples * beams):
        for position in range(keys):
            s = scales[row // beams, first + position] if first + position < known else 1.0
            assert torch.equal(scaled[row, :, position], key[row, :, position] * s)
    assert torch.equal(scale_keys(key, torch.ones_like(scales), first), key), "one is the identity, bit by bit"


def test_bfloat16_keys_are_scaled_in_float32():
    key = torch.randn(1, 1, 50, 8).bfloat16()
    scales = torch.rand(1, 50)
    exact = (key.double() * scales.double()[:, None, :, None]).bfloat16()
    assert (scale_keys(key, scales) == exact).float().mean() > 0.999
    assert scale_keys(key, scales).dtype == torch.bfloat16


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_nothing_stays_behind_after_an_exception(attn):
    model, processor = tiny_llava("clip", attn=attn)
    inputs = batch(processor)
    modules, decoder = parts(model)
    before, plain = dict(AttentionInterface._global_mapping), model(**inputs).logits
    with (
        pytest.raises(ZeroDivisionError),
        attached(modules, decoder=decoder, key_scales=random_scales(3, 2, 30), recorder=Recorder()),
    ):
        assert not torch.equal(model(**inputs).logits, plain)
        raise ZeroDivisionError
    assert AttentionInterface._global_mapping == before
    assert not decoder._forward_pre_hooks
    assert torch.equal(model(**inputs).logits, plain)


def test_the_cache_keeps_unscaled_keys():
    model, processor = tiny_llava("clip")
    inputs = batch(processor)
    modules, decoder = parts(model)
    plain = cache_in(model(**inputs, use_cache=True))
    scales = torch.ones(3, 2, inputs["input_ids"].shape[1])
    scales[0] = 0.3
    with attached(modules, decoder=decoder, key_scales=scales):
        gated = cache_in(model(**inputs, use_cache=True))
    assert torch.equal(plain.layers[0].keys, gated.layers[0].keys)
    assert not torch.equal(plain.layers[1].keys, gated.layers[1].keys)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_keys_scaled_in_the_cache_give_the_same_bits(dtype, options):
    """Once where they are stored, or in every step beside it: float32 arithmetic both times."""
    model, processor = tiny_llava("clip", dtype=dtype)
    inputs = batch(processor, dtype)
    modules, decoder = parts(model)
    scales = random_scales(3, 2, inputs["input_ids"].shape[1])
    results = []
    for own_cache in (False, True):
        recorder = Recorder("last")
        with attached(modules, decoder=decoder, key_scales=scales, recorder=recorder, own_cache=own_cache):
            results.append(generated_logits(model, inputs, **options))
        assert [len(recorder.attention[layer]) for layer in range(3)] == [4, 4, 4]
    assert torch.equal(*results)


def test_two_blocks_on_one_model_are_refused_and_the_first_survives():
    model, processor = tiny_llava("clip")
    modules, decoder = parts(model)
    recorder = Recorder()
    with attached(modules, decoder=decoder, recorder=recorder):
        with (
            pytest.raises(RuntimeError, match="already running"),
            attached(modules, decoder=decoder, recorder=Recorder()),
        ):
            pass
        model(**batch(processor))
    assert len(recorder.attention) == 3


def test_two_models_are_gated_side_by_side():
    (first, processor), (second, _) = tiny_llava("clip", seed=1), tiny_llava("clip", seed=2)
    inputs = batch(processor)
    plain = second(**inputs).logits
    modules, decoder = parts(first)
    other_modules, other_decoder = parts(second)
    before = AttentionInterface._global_mapping["sdpa"]  # exported gates may have wrapped it
    with attached(modules, decoder=decoder, key_scales=random_scales(3, 2, 30)):
        assert torch.equal(second(**inputs).logits, plain)
        with attached(other_modules, decoder=other_decoder, key_scales=random_scales(3, 2, 30)):
            assert not torch.equal(second(**inputs).logits, plain)
        assert torch.equal(second(**inputs).logits, plain)
    assert AttentionInterface._global_mapping["sdpa"] is before


def test_one_lock_for_everyone_who_holds_a_model():
    model, _ = tiny_llava("clip")
    taken = []
    with model_lock(model):
        thread = threading.Thread(target=lambda: taken.append(model_lock(model).acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]


@pytest.mark.parametrize("name", ["no_such_attention", "paged|eager"])
def test_attention_implementations_that_transformers_does_not_dispatch_are_refused(name):
    model, _ = tiny_llava("clip")
    modules, decoder = parts(model)
    model.config.text_config._attn_implementation_internal = name
    with (
        pytest.raises(UnsupportedModelError, match=f"{re.escape(name)}.*sdpa"),
        attached(modules, decoder=decoder, recorder=Recorder()),
    ):
        pass


def test_gradients_flow_through_scales():
    """Gradients through the scales, as a learned gate needs them."""
    model, processor = tiny_llava("clip")
    inputs = batch(processor)
    modules, decoder = parts(model)
    scales = random_scales(3, 2, inputs["input_ids"].shape[1]).requires_grad_()
    with attached(modules, decoder=decoder, key_scales=scales):
        model(**inputs).logits.logsumexp(-1).sum().backward()
    assert scales.grad is not None and (scales.grad.abs().sum((1, 2)) > 0).all()
