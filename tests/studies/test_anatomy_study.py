"""The anatomy study against numbers computed another way: eager attention, singular values, hidden states of transformers."""

import json
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import noise_image, tiny_llava
from zoo import ZOO

import sinkgate as sg
from sinkgate.attention.patch import attached
from sinkgate.attention.recorder import Recorder, stable_rank
from sinkgate.data import scene_samples
from sinkgate.data.identity import picture_of
from sinkgate.errors import SinkgateError
from sinkgate.models.vlm import VLM
from sinkgate.sinks.criteria import NormOutliers, SinkDimensions, tau_for
from sinkgate.studies import anatomy
from sinkgate.studies.anatomy import (
    GROUPS,
    NAMED,
    TABLES,
    Anatomy,
    by_layer,
    dissect,
    flattening,
    jaccard,
    means_by_layer,
    over_pictures,
    sinks_per_image,
    strongest_heads,
)
from sinkgate.studies.runner import run

LOOSE = {"v_sink": NormOutliers(1.05), "l_sink": NormOutliers(1.1)}  # finds sinks among random tokens
DIMS = {"vision": (5,), "llm": (3, 7)}
#: Layers shared, cross-attention, closed and mixing encoders, hybrids, separators, windows, merged and several crops.
FAMILIES = (
    "blip-2",
    "gemma4",
    "got_ocr2",
    "idefics3",
    "kimi_k25",
    "llama4",
    "llava_onevision",
    "mllama",
    "qwen2_5_vl",
    "qwen3_5",
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- stable rank


def test_stable_rank_of_known_outputs():
    """As many as orthonormal rows; 1 where every query gets the same; NaN where no query gets anything."""
    queries, width = 12, 8
    rows = torch.linalg.qr(random(width, width))[0]
    outputs = torch.zeros(1, queries, 4, width, dtype=torch.float64)
    outputs[0, :5, 0] = rows[:5]
    outputs[0, :, 1] = random(queries, 1) * rows[0]
    outputs[0, :2, 2] = rows[:2] * torch.tensor([[2.0], [1.0]])
    ranks = stable_rank(outputs)[0]
    assert ranks[:3].tolist() == pytest.approx([5, 1, (4 + 1) / 4])
    assert ranks[3].isnan()


@given(st.integers(0, 1000), st.floats(-30, 30))
def test_stable_rank_is_that_of_the_singular_values_at_any_scale(seed, log_scale):
    outputs = random(2, 9, 3, 6, seed=seed)
    singular = torch.linalg.svdvals(outputs.transpose(1, 2))
    expected = singular.square().sum(-1) / singular[..., 0].square()
    assert torch.allclose(stable_rank(outputs * 10**log_scale), expected)
    padded = torch.nn.functional.pad(outputs, (0, 0, 0, 0, 4, 0))
    assert torch.allclose(stable_rank(padded), expected), "rows of zeros change nothing"
    assert (expected >= 1 - 1e-9).all() and (expected <= 6 + 1e-9).all()


def test_half_precision_neither_overflows_nor_vanishes():
    outputs = random(1, 9, 2, 6) * torch.tensor([1e-6, 1e4]).view(1, 1, 2, 1)
    half = outputs.half()
    assert torch.allclose(stable_rank(half), stable_rank(half.double()).float(), rtol=1e-5)


def of_projection(vlm, inputs):
    """Return the inputs of each layer's output projection: (B, Q, H, d) by layer, seen from outside of the package."""
    outputs, hooks = [], []
    for module in vlm.attention:
        hooks.append(module.o_proj.register_forward_pre_hook(lambda m, args: outputs.append(args[0])))
    with torch.no_grad():
        vlm.model(**inputs)
    for hook in hooks:
        hook.remove()
    return [output.unflatten(-1, (vlm.num_heads, -1)) for output in outputs]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])  # eager gives padding an output
def test_recorded_ranks_leave_padding_out_and_the_logits_as_they_were(attn):
    model, processor = tiny_llava("clip", attn=attn)
    vlm = VLM(model, processor, "tiny")
    texts = ["<image><|user|>what color is the circle<|assistant|>", "<image><|user|>count<|assistant|>"]
    inputs = processor(images=[noise_image(1), noise_image(2)], text=texts, return_tensors="pt", padding=True)
    counts = inputs["attention_mask"].bool()
    assert not counts.all()
    recorder = Recorder("last", outputs=counts)
    with torch.no_grad():
        plain = model(**inputs).logits
        with attached(vlm.attention, decoder=vlm.decoder, recorder=recorder):
            assert torch.equal(model(**inputs).logits, plain)
    for layer, outputs in enumerate(of_projection(vlm, inputs)):
        (ranks,) = recorder.stable_ranks[layer]
        for sample, real in enumerate(counts):
            singular = torch.linalg.svdvals(outputs[sample, real].transpose(0, 1))
            assert torch.allclose(ranks[sample], singular.square().sum(-1) / singular[:, 0].square(), rtol=1e-4)


def test_what_is_left_out_may_be_anything():
    outputs = random(1, 6, 2, 4)
    recorder = Recorder(outputs=torch.tensor([[False, False, True, True, True, True]]))
    recorder.add_output(0, torch.cat([torch.full((1, 2, 2, 4), torch.nan), outputs[:, 2:]], 1), 0)
    assert torch.allclose(recorder.stable_ranks[0][0], stable_rank(outputs[:, 2:]))


def test_decode_steps_have_no_rank():
    model, processor = tiny_llava("siglip")
    vlm = VLM(model, processor, "tiny")
    prompt = vlm.prompt(noise_image(), "count")
    recorder = Recorder("last", outputs=torch.ones_like(prompt.inputs["input_ids"], dtype=torch.bool))
    with vlm.attached(None, recorder):
        model.generate(**prompt.inputs, max_new_tokens=4, do_sample=False)
    assert len(recorder.attention[0]) == 4 and len(recorder.stable_ranks[0]) == 1


# --- the tables, against eager attention and transformers' own hidden states


@pytest.fixture(scope="module", params=["clip", "siglip"])
def case(request):
    """A tiny model in float64, a prompt, its groups by the loose criteria, its tables."""
    model, processor = tiny_llava(request.param, dtype=torch.float64)
    vlm = VLM(model, processor, "tiny")
    prompt = vlm.prompt(noise_image(3), "what color is the circle")
    sinks = sg.find_sinks(vlm, prompt, **LOOSE)
    assert sinks.v_sink.any() and sinks.l_sink.any() and sinks.ordinary.any()
    return vlm, prompt, sinks, dissect(vlm, prompt, DIMS, **LOOSE, sample=4)


def keys_of(prompt, sinks, layer, group):
    visual = prompt.visual.tolist()
    if group in ("text", "first"):
        return [key for key in range(prompt.length) if key not in visual and (key == 0) == (group == "first")]
    if group == "separator":
        return prompt.separators.tolist()
    return [key for key, chosen in zip(visual, sinks.group(group, layer).tolist(), strict=True) if chosen]


def outputs_of(vlm, prompt):
    vlm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return vlm.model(**prompt.inputs, output_attentions=True, output_hidden_states=True)
    finally:
        vlm.model.set_attn_implementation("sdpa")


def test_shares_are_those_of_eager_attention(case):
    vlm, prompt, sinks, tables = case
    attentions = outputs_of(vlm, prompt).attentions
    tokens = tables["tokens"].set_index(["layer", "group"])
    heads = tables["heads"].set_index(["layer", "head"])
    after = int(prompt.visual[-1]) + 1
    for layer, weights in enumerate(attentions):
        mean = weights[0, :, after:].mean(1)  # heads, keys
        assert heads.loc[layer, "top"].to_numpy() == pytest.approx(mean.amax(-1).numpy(), abs=1e-6)
        for group in GROUPS:
            keys = keys_of(prompt, sinks, layer, group)
            expected = mean[:, keys].sum(-1)
            assert heads.loc[layer, group].to_numpy() == pytest.approx(expected.numpy(), abs=1e-6)
            assert ((layer, group) in tokens.index) == bool(keys), "no row for a group without tokens"
            if keys:
                row = tokens.loc[layer, group]
                assert row["tokens"] == len(keys)
                assert row["share"] == pytest.approx(float(expected.mean()), abs=1e-6)
                assert row["per_token"] == pytest.approx(float(mean[:, keys].mean()), abs=1e-6)


def test_norms_spikes_and_peaks_are_those_of_the_hidden_states(case):
    vlm, prompt, sinks, tables = case
    hidden = outputs_of(vlm, prompt).hidden_states
    for row in tables["tokens"].itertuples():
        states = hidden[row.layer][0, keys_of(prompt, sinks, row.layer, row.group)]
        peaks = [max(abs(each)) / sorted(abs(each))[len(each) // 2 - 1] for each in states]
        spikes = [max(abs(each[3]), abs(each[7])) for each in states]
        assert row.norm == pytest.approx(float(states.norm(dim=-1).mean()), rel=1e-5)
        assert row.peak == pytest.approx(float(sum(peaks)) / len(peaks), rel=1e-5)
        assert row.spike == pytest.approx(float(sum(spikes)) / len(spikes), rel=1e-5)


def test_value_ratios_and_ranks_are_those_of_the_projections(case):
    vlm, prompt, sinks, tables = case
    values, hooks = [], []
    for module in vlm.attention:
        hooks.append(module.v_proj.register_forward_hook(lambda m, a, output: values.append(output[0])))
    outputs = of_projection(vlm, prompt.inputs)
    for hook in hooks:
        hook.remove()
    lengths = [value.unflatten(-1, (2, -1)).norm(dim=-1).mean(-1) for value in values]
    for row in tables["tokens"].itertuples():
        length = lengths[row.layer]
        mine = length[keys_of(prompt, sinks, row.layer, row.group)]
        assert row.value_ratio == pytest.approx(float(mine.mean() / length.mean()), rel=1e-5)
    ranks = tables["heads"].set_index(["layer", "head"])["stable_rank"]
    for layer, output in enumerate(outputs):
        singular = torch.linalg.svdvals(output[0].transpose(0, 1))
        expected = singular.square().sum(-1) / singular[:, 0].square()
        assert ranks.loc[layer].to_numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_the_projector_is_measured_on_both_of_its_sides(case):
    """One patch a token, so that row i of the projector's input is token i; its input is taken by a hook."""
    vlm, prompt, sinks, tables = case
    sides, projector = [], vlm.model.model.multi_modal_projector
    hook = projector.register_forward_hook(lambda m, args, output: sides.extend([args[0], output]))
    with torch.no_grad():
        vlm.encode(prompt)
    hook.remove()
    before, after = (side.reshape(16, -1) for side in sides)
    assert set(tables["projector"]["group"]) == {"v_sink", "ordinary"}
    for row in tables["projector"].itertuples():
        mask = sinks.v_sink if row.group == "v_sink" else ~sinks.v_sink
        assert row.tokens == int(mask.sum())
        for states, norm, peak in ((before, row.norm_before, row.peak_before), (after, row.norm_after, row.peak_after)):
            norms, size = states.norm(dim=-1), states.abs()
            assert norm == pytest.approx(float((norms / norms.median())[mask].mean()), rel=1e-5)
            peaks = size.amax(-1) / size.sort(-1).values[:, states.shape[-1] // 2 - 1]
            assert peak == pytest.approx(float(peaks[mask].mean()), rel=1e-5)


@contextmanager
def planted(vlm, prompt, patch, token):
    """A spike in one patch as it leaves the encoder, and in another visual token at the input of layer 1."""

    def in_encoder(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[:, patch - 16, 5] = 3e5  # patches come last, behind a CLS token or none

    def in_llm(_module, args, kwargs):
        (args[0] if args else kwargs["hidden_states"])[:, int(prompt.visual[token]), 3] = 3e6

    encoder = vlm.adapter.encoder_layers[vlm.adapter.feature_layer]
    hooks = [
        encoder.register_forward_hook(in_encoder, prepend=True),
        vlm.adapter.layers[1].register_forward_pre_hook(in_llm, with_kwargs=True),
    ]
    yield
    for hook in hooks:
        hook.remove()


def test_criteria_are_counted_and_compared(case):
    vlm, prompt, *_ = case
    config = vlm.model.config
    widths = config.vision_config.hidden_size, config.get_text_config().hidden_size
    paper = [SinkDimensions(dims, tau_for(w)) for dims, w in zip(((5,), (3, 7)), widths, strict=True)]
    with planted(vlm, prompt, patch=9, token=4):
        tables = dissect(vlm, prompt, DIMS)
        maps = {name: sg.find_sinks(vlm, prompt, v_sink=name, l_sink=name) for name in NAMED if name != "dimensions"}
        maps["dimensions"] = sg.find_sinks(vlm, prompt, v_sink=paper[0], l_sink=paper[1])
    images = tables["images"].set_index("criterion")
    agreement = tables["agreement"].set_index(["place", "first", "second"])
    assert list(images.index) == list(NAMED) and len(agreement) == 2 * 6
    for name, sink_map in maps.items():
        row = images.loc[name]
        assert (row["tokens"], row["v_sinks"], row["v_patches"]) == (16, sink_map.v_sink.sum(), sink_map.v_sink.sum())
        assert row["l_sinks"] == sink_map.l_sink.any(0).sum() and row["l_sinks_most"] == sink_map.l_sink.sum(1).max()
    for (side, first, second), row in agreement.iterrows():
        one, other = ((m.v_verdict if side == "encoder" else m.l_verdict).mask for m in (maps[first], maps[second]))
        assert (row["both"], row["either"]) == ((one & other).sum(), (one | other).sum())
    assert images.loc["massive", ["v_sinks", "l_sinks_most"]].tolist() == [1, 1]
    assert agreement.loc["encoder", "massive", "norm"].tolist()[1:] == [1, 1]
    assert agreement.loc["llm", "massive", "norm"]["both"] >= 1
    (row,) = tables["projector"].query("group == 'v_sink'").itertuples()
    assert row.tokens == 1 and row.peak_before > 1e3 > 100 > row.peak_after, "the projector has spread the spike"


def test_one_run_of_encoder_and_model(case):
    vlm, _, _, tables = case
    calls = []
    parts = {"encoder": vlm.model.model.vision_tower, "llm": vlm.decoder}
    hooks = [part.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, part in parts.items()]
    again = dissect(vlm, vlm.prompt(noise_image(3), "what color is the circle"), DIMS, **LOOSE, sample=4)
    for hook in hooks:
        hook.remove()
    assert calls == ["encoder", "llm"]
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_heads_make_up_what_is_observed_without_them(demo):
    prompt = demo.prompt(noise_image(1, (64, 64)), "How many objects are there?")
    plain, apart = demo.observe(prompt), demo.observe_heads(prompt)
    assert torch.equal(plain.hidden, apart.hidden) and torch.equal(plain.value_norms, apart.value_norms)
    assert torch.allclose(plain.attention, apart.attention, atol=1e-7)
    assert apart.head_attention.shape == (demo.num_layers, demo.num_heads, prompt.num_keys)


def test_states_that_are_no_numbers_are_refused():
    model, processor = tiny_llava("clip")
    vlm = VLM(model, processor, "tiny")
    prompt = vlm.prompt(noise_image(), "count")
    with torch.no_grad():
        vlm.decoder.layers[0].mlp.down_proj.weight[0] = float("inf")
    with pytest.raises(SinkgateError, match="not finite in torch.float32"):
        dissect(vlm, prompt, {})


# --- other architectures


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_model_gives_its_tables(name):
    family = ZOO[name]
    model = family.model()
    vlm = VLM(model, None, model.config.model_type)
    prompt = vlm.read(family.sample())
    tables = dissect(vlm, prompt, DIMS, **LOOSE, sample=2)
    for table, types in TABLES.items():
        assert {column: str(kind) for column, kind in tables[table].dtypes.items()} == types
        assert (tables[table]["sample"] == 2).all()
    tokens, heads, images = tables["tokens"], tables["heads"], tables["images"]
    assert tokens["layer"].unique().tolist() == list(range(vlm.num_layers))
    by = tokens.groupby("layer")
    assert by["share"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
    assert (by["tokens"].sum() == prompt.num_keys).all()
    assert (tokens["per_token"] * tokens["tokens"]).to_numpy() == pytest.approx(tokens["share"].to_numpy(), abs=1e-6)
    lengths = (tokens["value_ratio"] * tokens["tokens"]).groupby(tokens["layer"]).sum() / prompt.num_keys
    assert lengths.to_numpy() == pytest.approx(1, abs=1e-5)
    assert len(heads) == vlm.num_layers * vlm.num_heads
    assert heads[list(GROUPS)].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (heads["top"] <= heads[list(GROUPS)].max(axis=1) + 1e-6).all()
    assert (heads["stable_rank"] >= 1 - 1e-5).all()
    assert not tokens.drop(columns="group").isna().any(axis=None) and (tokens["peak"] >= 1).all()
    groups, mixed, closed = set(tokens["group"]), family.rule == "mixed", family.rule == "none"
    assert ("separator" in groups) == bool(len(prompt.separators))
    assert ({"text", "first"} <= groups) == (not vlm.adapter.cross_attention)
    assert images["v_patches"].isna().all() == closed and images["v_sinks"].isna().all() == (closed or mixed)
    assert (tables["agreement"]["place"] == "llm").all() == closed
    assert tables["projector"].empty == (closed or mixed)
    if mixed or closed:
        assert "v_sink" not in groups


# --- the study


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(6, size=128))


def test_numbers_do_not_depend_on_the_parts(demo, samples, tmp_path):
    results = [
        run(Anatomy(demo, samples, DIMS, chunk=chunk), tmp_path / str(chunk), progress=False) for chunk in (1, 4)
    ]
    assert [len(each.parts) for each in results] == [6, 2]
    for name, types in TABLES.items():
        one, four = (each.table(name) for each in results)
        pd.testing.assert_frame_equal(one, four)
        assert list(one) == list(types) and set(one["sample"]) == set(range(6))
    alone = dissect(
        demo, demo.prompt(samples[5].images, samples[5].question), DIMS, sample=5, picture=picture_of(samples[5])
    )
    for name, table in alone.items():
        whole = results[1].table(name)
        pd.testing.assert_frame_equal(whole[whole["sample"] == 5].reset_index(drop=True), table)


def test_dimensions_are_looked_for_once_and_told(demo, samples, monkeypatch):
    calls = []

    class Found:
        def dimensions(self, side):
            return {"vision": (5,), "llm": (3, 7)}[side]

    monkeypatch.setattr(anatomy, "held_discovery", lambda vlm: calls.append(vlm) or Found())
    study = Anatomy(demo, samples[:2], v_sink=NormOutliers(3.0), chunk=1, about={"note": "x"})
    settings = json.loads(json.dumps(study.settings))
    assert settings == {
        "v_sink": "NormOutliers(times=3.0, threshold=None)",
        "l_sink": sg.sink_criteria(demo).settings["l_sink"],
        "merged": "any",
        "layers": "all",
        "dimensions": {"vision": [5], "llm": [3, 7]},
        "chunk": 1,
    }
    assert study.work(0)["tokens"]["spike"].notna().all() and study.work(1)["tokens"]["spike"].notna().all()
    assert calls == [demo, demo], "once for each side whose criterion has no dimensions"
    none = Anatomy(demo, samples[:1], dims={})
    assert none.work(0)["tokens"]["spike"].isna().all(), "a model without sink dimensions has no spike in them"
    assert none.data != study.data and study.data["samples"] == 2


def test_the_criterion_called_dimensions_looks_at_the_studys(demo, samples):
    by_dimensions = Anatomy(demo, samples[:1], dims={"llm": (3,)}, v_sink="dimensions", l_sink="dimensions")
    assert by_dimensions.criteria.l_sink.dims == (3,) and not by_dimensions.criteria.v_sink.dims
    own = Anatomy(demo, samples[:1], v_sink="dimensions 4", l_sink="dimensions 3 tau 5")
    assert own.dimensions == {"vision": (4,), "llm": (3,)} and "tau=5.0" in own.settings["l_sink"]
    study = Anatomy(demo, samples[:1], dims={"llm": (9999,)})
    with pytest.raises(SinkgateError, match="no dimension 9999"):
        study.work(0)


# --- reading


def test_means_are_over_the_samples_that_have_the_group():
    rows = [
        (0, 0, "v_sink", 2, 4.0, 0.2),
        (1, 0, "v_sink", 4, 8.0, 0.4),
        (0, 0, "text", 5, 1.0, 0.8),
    ]
    tokens = pd.DataFrame(rows, columns=["sample", "layer", "group", "tokens", "norm", "share"]).assign(
        spike=float("nan")
    )
    table = by_layer(tokens).set_index(["layer", "group", "measure"])
    row = table.loc[0, "v_sink", "norm"]
    assert (row["mean"], row["std"], row["samples"]) == (6, pytest.approx(8**0.5), 2)
    assert table.loc[0, "text", "share"]["samples"] == 1
    later = by_layer(pd.concat([tokens.assign(layer=1), tokens.assign(layer=0)], ignore_index=True))
    assert later["layer"].is_monotonic_increasing
    assert "spike" not in table.index.get_level_values("measure")


def test_flattening_is_the_mean_ratio_of_peaks():
    projector = pd.DataFrame(
        {
            "sample": [0, 1, 0],
            "group": ["v_sink", "v_sink", "ordinary"],
            "peak_before": [40, 20, 4],
            "peak_after": [4, 5, 4],
        }
    )
    table = flattening(projector).set_index(["group", "measure"])["mean"]
    assert table["v_sink", "flattening"] == 7 and table["ordinary", "flattening"] == 1


def test_images_without_sinks_count_and_unknown_ones_do_not():
    images = pd.DataFrame(
        {"sample": [0, 1, 2], "criterion": "norm", "l_sinks": [0.0, 3.0, 3.0], "v_sinks": float("nan")}
    )
    table = sinks_per_image(images).set_index("measure")
    assert table.loc["l_sinks", ["mean", "samples", "some"]].tolist() == [2, 3, pytest.approx(2 / 3)]
    assert "v_sinks" not in table.index


def test_an_image_of_several_questions_counts_once():
    pictures, counts = ["a", "a", "a", "b"], [4.0, 0.0, 2.0, 0.0]
    images = pd.DataFrame({"sample": range(4), "criterion": "norm", "v_sinks": counts, "picture": pictures})
    table = sinks_per_image(images).set_index("measure")
    assert table.loc["v_sinks", ["mean", "samples", "some"]].tolist() == [1, 2, 0.5]
    heads = pd.DataFrame({"sample": range(4), "layer": 0, "head": 1, "first": [0.0, 1, 2, 5]})
    assert over_pictures(heads, images).to_numpy().tolist() == [[0, 0, 1, 1], [3, 0, 1, 5]]
    assert over_pictures(heads, images.drop(columns="picture")).equals(heads)


def test_finding_nothing_twice_is_no_agreement():
    pairs = {"place": "llm", "first": "norm", "second": "massive"}
    agreement = pd.DataFrame(
        [{**pairs, "sample": n, "both": b, "either": e} for n, b, e in ((0, 1, 2), (1, 0, 0), (2, 3, 3))]
    )
    (row,) = jaccard(agreement).itertuples()
    assert (row.jaccard, row.samples, row.both_none) == (0.75, 2, 1)


def test_heads_are_ordered_by_what_they_give_a_group():
    rows = [
        {"sample": s, "layer": 0, "head": h, "v_sink": v}
        for s, h, v in ((0, 0, 0.1), (1, 0, 0.3), (0, 1, 0.5), (1, 1, 0.4))
    ]
    heads = pd.DataFrame(rows).assign(**dict.fromkeys((*GROUPS[1:], "top", "stable_rank"), 1.0))
    table = strongest_heads(heads)
    assert table["head"].tolist() == [1, 0] and table["v_sink"].tolist() == pytest.approx([0.45, 0.2])
    assert table["samples"].tolist() == [2, 2]


def test_layers_that_were_not_asked_for_are_left_out(demo):
    samples = list(scene_samples(2, split="test", size=64))
    whole = Anatomy(demo, samples, dims={}).work(0)
    some = Anatomy(demo, samples, dims={}, layers=[2, 5]).work(0)
    assert set(some["tokens"]["layer"]) == set(some["heads"]["layer"]) == {2, 5}
    expected = whole["tokens"][whole["tokens"]["layer"].isin([2, 5])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some["tokens"], expected)
    pd.testing.assert_frame_equal(some["images"], whole["images"])


def test_means_by_layer_have_a_row_for_each_layer_and_group():
    rows = [
        {"sample": sample, "layer": layer, "group": group, "tokens": 1 + sample, "norm": norm, "spike": np.nan}
        for sample, layer, group, norm in [
            (0, 10, "text", 3.0),
            (1, 10, "text", 5.0),
            (0, 2, "ordinary", 1.0),
            (1, 2, "v_sink", 8.0),
            (0, 10, "v_sink", 7.0),
        ]
    ]
    table = means_by_layer(pd.DataFrame(rows))
    assert table.to_dict("split")["data"] == [
        [2, "v_sink", 2.0, 8.0, 1],
        [2, "ordinary", 1.0, 1.0, 1],
        [10, "v_sink", 1.0, 7.0, 1],
        [10, "text", 1.5, 4.0, 2],
    ]
    assert list(table) == ["layer", "group", "tokens", "norm", "samples"], "spike was never measured"
