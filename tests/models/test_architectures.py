"""Every architecture of the zoo through the same tests: gates, rows, patch maps, sinks."""

import copy
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from zoo import IMAGE, ZOO, Family, together

import sinkgate as sg
import sinkgate.attention.patch as attention_module
import sinkgate.attention.recorder as recorder_module
from sinkgate.attention.patch import attached
from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import LogitScales
from sinkgate.models.token_map import measure_tokens
from sinkgate.sinks.fine_gates import FineGates

MAPPED = [name for name, family in ZOO.items() if family.rule in ("blocks", "runs")]


@pytest.fixture(params=ZOO)
def family(request) -> Family:
    return ZOO[request.param]


def cast(inputs, dtype):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def random_scales(vlm, inputs, samples, seed=0):
    keys = vlm.adapter.num_keys({name: value[: len(value) // samples] for name, value in inputs.items()})
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(vlm.num_layers, samples, max(keys, inputs["input_ids"].shape[1]), generator=generator) * 2


def attached_to(vlm, scales=None, recorder=None, own_cache=False):
    options = {"cross": vlm.adapter.cross_attention, "own_cache": own_cache and not vlm.adapter.shares_keys}
    return attached(vlm.attention, decoder=vlm.decoder, key_scales=scales, recorder=recorder, **options)


def generated(vlm, inputs, **options):
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    settings["suppress_tokens"] = [IMAGE]  # a random model may well say it
    with torch.no_grad():
        return torch.stack(vlm.model.generate(**inputs, **(settings | options)).logits, 1)


class FromScratch:
    """Attention that scales scores, not Keys, under the name that every family falls back on; shares no code with the package."""

    def __init__(self, vlm, scales):
        self.vlm, self.scales = vlm, scales
        self.layer = {module: index for index, module in enumerate(vlm.attention)}
        self.length = 0  # positions so far; the first layer always gets all of them
        self.last_rows = {index: [] for index in range(len(vlm.attention))}

    def __call__(self, module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
        samples, heads, queries, _ = query.shape
        self.length += queries if self.layer[module] == 0 else 0
        keys = key.shape[2]
        first = 0 if self.vlm.adapter.cross_attention else max(0, self.length - keys)
        repeat = heads // key.shape[1]
        out = torch.zeros(samples, queries, heads, value.shape[-1], dtype=query.dtype)
        last = torch.zeros(samples, heads, keys, dtype=query.dtype)
        for sample in range(samples):
            for head in range(heads):
                scores = query[sample, head] @ key[sample, head // repeat].T * scaling
                scores = self.scaled(scores, self.layer[module], sample, head, first)
                if softcap:
                    scores = softcap * (scores / softcap).tanh()
                if attention_mask is not None:
                    mask = attention_mask[sample, min(head, attention_mask.shape[1] - 1), :, :keys]
                    scores = torch.where(mask < -1e9, -1e9, scores)  # finite: padded queries see no key
                weights = (scores - scores.max(1, keepdim=True).values).exp()
                weights = weights / weights.sum(1, keepdim=True)
                out[sample, :, head] = weights @ value[sample, head // repeat]
                last[sample, head] = weights[-1]
        self.last_rows[self.layer[module]].append(last)
        return out, None

    def scaled(self, scores, layer, sample, head, first):
        known = self.scales[layer][sample, first : first + scores.shape[1]]
        return torch.cat([scores[:, : len(known)] * known, scores[:, len(known) :]], 1)

    def __enter__(self):
        self.before = self.vlm.model.config.get_text_config()._attn_implementation
        self.vlm.model.set_attn_implementation({"text_config": "eager"})
        AttentionInterface.register("eager", self._attend)
        return self

    def _attend(self, module, *args, **kwargs):
        if module in self.layer:
            return self(module, *args, **kwargs)
        return AttentionInterface._global_mapping["sdpa"](module, *args, **kwargs)

    def __exit__(self, *_):
        del AttentionInterface._global_mapping["eager"]
        self.vlm.model.set_attn_implementation({"text_config": self.before})


class LimitedFromScratch(FromScratch):
    """The same with scales by head (L, B, H, P) for some rows; a sample's rule may be the monotone one."""

    def __init__(self, vlm, limits):
        super().__init__(vlm, limits.scales.double())
        self.limits = limits

    def scaled(self, scores, layer, sample, head, first):
        scales = self.scales[layer][sample, min(head, self.scales.shape[2] - 1)]
        scales = scales[first : first + scores.shape[1]]
        rows, later = self.limits.rows[sample], self.limits.later[sample]
        rows = torch.cat([rows, later.expand(max(0, self.length - len(rows)))])[self.length - len(scores) : self.length]
        z = scores[:, : len(scales)]
        scaled = z + (scales - 1) * abs(z) if self.limits.monotone[sample] else scales * z
        return torch.cat([torch.where(rows[:, None], scaled, z), scores[:, len(scales) :]], 1)


def random_limits(vlm, inputs, samples, heads, seed=0):
    """Random scales in some heads and rows, each sample under its own rule; the last sample's decode steps are left alone."""
    scales = random_scales(vlm, inputs, samples, seed)
    generator = torch.Generator().manual_seed(seed)
    by_head = scales[:, :, None].repeat(1, 1, heads, 1) * torch.linspace(0.5, 1.5, heads)[:, None]
    by_head[:, :, 1:2] = 1  # of more heads than one, this one stays
    rows = torch.rand(samples, inputs["input_ids"].shape[1], generator=generator) < 0.4
    rows[:, -1] = True
    later = torch.tensor([True, False][:samples])
    return LogitScales(by_head, rows, later, torch.tensor([False, True][:samples]))


@pytest.mark.parametrize("samples", [1, 2])
def test_limited_logits_and_rows_equal_attention_written_from_scratch(family, samples):
    """Query rows and rules of each sample's own, left padding, prefill and decode steps, fp64; some heads of one sample, or all."""
    vlm = family.vlm(torch.float64)
    inputs = cast(together([family.sample(0, words=5), family.sample(1, words=3)][:samples]), torch.float64)
    limits, recorder = random_limits(vlm, inputs, samples, vlm.num_heads if samples == 1 else 1), Recorder("last")
    with attached_to(vlm, limits, recorder, own_cache=True):
        limited = generated(vlm, inputs)
    with LimitedFromScratch(vlm, limits) as reference:
        expected = generated(vlm, inputs)
    plain = generated(vlm, inputs, max_new_tokens=1)
    assert (limited - expected).abs().max() < 1e-6
    assert (limited[:, :1] - plain).abs().max() > 1e-3, "the scales must matter, or the test shows nothing"
    for layer in range(vlm.num_layers):
        for rows, weights in zip(recorder.attention[layer], reference.last_rows[layer], strict=True):
            assert (rows[:, :, 0] - weights).abs().max() < 1e-6


@pytest.mark.parametrize("samples", [1, 2])
def test_gated_logits_and_rows_equal_attention_written_from_scratch(family, samples):
    """Prefill and two decode steps, samples with left padding, every sample its own scales, fp64; in a cache of its own or not."""
    vlm = family.vlm(torch.float64)
    inputs = cast(together([family.sample(0, words=5), family.sample(1, words=3)][:samples]), torch.float64)
    scales = random_scales(vlm, inputs, samples)
    with FromScratch(vlm, scales.double()) as reference:
        expected = generated(vlm, inputs)
    plain = generated(vlm, inputs, max_new_tokens=1)
    for own_cache in (False, True):
        recorder = Recorder("last")
        with attached_to(vlm, scales, recorder, own_cache):
            gated = generated(vlm, inputs)
        assert (gated - expected).abs().max() < 1e-6
        assert (gated[:, :1] - plain).abs().max() > 1e-3, "the scales must matter, or the test shows nothing"
        for layer in range(vlm.num_layers):
            for rows, weights in zip(recorder.attention[layer], reference.last_rows[layer], strict=True):
                assert (rows[:, :, 0] - weights).abs().max() < 1e-6
                assert torch.allclose(rows.sum(-1), torch.ones((), dtype=rows.dtype))


def test_scale_one_and_recording_are_bit_identical(family):
    vlm, inputs = family.vlm(), together([family.sample(0, words=5), family.sample(1)])
    plain, before = generated(vlm, inputs), dict(AttentionInterface._global_mapping)
    with attached_to(vlm, torch.ones_like(random_scales(vlm, inputs, 2))):
        assert AttentionInterface._global_mapping == before, "ones attach nothing"
        assert torch.equal(generated(vlm, inputs), plain)
    with attached_to(vlm, recorder=Recorder("last")):
        assert torch.equal(generated(vlm, inputs), plain)
    assert AttentionInterface._global_mapping == before


def test_gated_eager_equals_gated_sdpa(family):
    results = []
    for eager in (False, True):
        vlm, inputs = family.own_vlm(), family.sample(3)
        if eager:
            vlm.model.set_attn_implementation({"text_config": "eager"})
        with attached_to(vlm, random_scales(vlm, inputs, 1)):
            results.append(generated(vlm, inputs))
    assert torch.allclose(*results, atol=2e-4)


def test_cached_equals_uncached(family):
    vlm = family.vlm(torch.float64)
    inputs = cast(family.sample(4), torch.float64)
    scales = random_scales(vlm, inputs, 1)
    with attached_to(vlm, scales):
        cached, uncached = generated(vlm, inputs), generated(vlm, inputs, use_cache=False)
    assert (cached - uncached).abs().max() < 1e-6


def test_batched_equals_single(family):
    """The scales of a shorter sample sit behind its padding."""
    vlm = family.vlm(torch.float64)
    samples = [cast(family.sample(seed, words=words), torch.float64) for seed, words in ((0, 5), (1, 3))]
    inputs = together(samples)
    scales = random_scales(vlm, inputs, 2)
    with attached_to(vlm, scales):
        both = generated(vlm, inputs)
    for index, sample in enumerate(samples):
        keys = scales.shape[2] if vlm.adapter.cross_attention else sample["input_ids"].shape[1]
        with attached_to(vlm, scales[:, index : index + 1, -keys:]):
            assert (generated(vlm, sample)[0] - both[index]).abs().max() < 1e-6


def test_a_prompt_knows_its_visual_tokens(family):
    vlm, sample = family.vlm(), family.sample()
    prompt = vlm.read(sample)
    rule = vlm.prompter.rule or "none"
    assert rule == family.rule
    assert bool(prompt.note) == (family.rule in ("mixed", "none"))
    assert (prompt.token_of_patch is None) == bool(prompt.note)
    if not vlm.adapter.cross_attention:
        ids = sample["input_ids"][0]
        assert (ids[prompt.visual] == IMAGE).all() and (ids[prompt.separators] == IMAGE).all()
        assert sorted([*prompt.visual.tolist(), *prompt.separators.tolist()]) == (ids == IMAGE).nonzero()[:, 0].tolist()
    if prompt.token_of_patch is not None:
        fed = prompt.token_of_patch[prompt.token_of_patch >= 0]
        assert fed.unique().tolist() == list(range(len(prompt.visual))), "every visual token comes from some patch"


def test_an_image_encoded_once_serves_every_call(family):
    vlm, sample = family.vlm(), family.sample()
    prompt = vlm.read(sample)
    with torch.no_grad():
        cold = vlm.model(**sample, use_cache=False, logits_to_keep=1).logits[0, -1].softmax(-1)
    assert torch.equal(vlm.predict(prompt).probabilities, cold)
    assert (prompt.encoded is None) == (vlm.adapter.takes_encoded is None)
    assert torch.equal(vlm.predict(prompt).probabilities, cold), "and again, warm"


def test_gates_by_group_move_the_answer_and_leave_nothing(family):
    vlm = family.vlm()
    prompt = vlm.read(family.sample())
    observation = vlm.observe(prompt)  # transformers installs its own capture hooks at the first use and keeps them
    sinks = sg.sinks.classify.classify(observation, prompt.sheets, v_sink="attention", l_sink="attention")
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    plain = vlm.predict(prompt, None, sinks)
    halved = vlm.predict(prompt, sg.Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5), sinks)
    assert not torch.allclose(plain.probabilities, halved.probabilities, atol=1e-5)
    assert plain.attention.shape[:2] == (vlm.num_layers, vlm.num_heads)
    shares = plain.shares(sinks)
    assert torch.allclose(sum(shares.values(), torch.zeros(())), torch.ones(vlm.num_layers), atol=1e-4)
    assert torch.equal(vlm.predict(prompt).probabilities, plain.probabilities)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())
    assert observation.hidden.shape[0] == observation.attention.shape[0] == vlm.num_layers
    assert sg.discover_dimensions(observation.hidden) == (), "random weights have no sink dimensions"
    assert observation.features is None or sg.discover_dimensions(observation.features[None]) == ()


def test_prompts_side_by_side_equal_prompts_one_by_one(family):
    """Other images, other lengths, other gates, one of them none."""
    vlm = family.vlm(torch.float64)
    prompts = [vlm.read(cast(family.sample(seed, words=2 + seed), torch.float64)) for seed in range(3)]
    sinks = [
        sg.sinks.classify.classify(vlm.observe(prompt), prompt.sheets, v_sink="attention", l_sink="attention")
        for prompt in prompts
    ]
    gates = [sg.Gates.ones(vlm).set("rest", 0.3), None, sg.Gates.ones(vlm).set("rest", 1.8, layers=1)]
    last = FineGates.ones(vlm, rows="last").set("visual", 0.2, heads=0)
    generated_rows = FineGates.ones(vlm, rows="text, generated", rule="monotone").set("rest", 1.8)
    for tables in (gates, [last, gates[0], generated_rows]):
        together_ = vlm.predict_all(prompts, tables, sinks)
        for prompt, table, sink_map, trace in zip(prompts, tables, sinks, together_, strict=True):
            alone = vlm.predict(prompt, table, sink_map)
            assert torch.allclose(trace.probabilities, alone.probabilities, atol=1e-6)
            assert torch.allclose(trace.attention, alone.attention, atol=1e-6)


@contextmanager
def encoder_runs(vlm: sg.VLM) -> Generator[list[nn.Module]]:
    """Collect the layers of the encoder that run inside; hooks on the layers themselves would count as another encoder."""
    runs: list[nn.Module] = []
    layers = set(vlm.adapter.encoder_layers)
    hook = register_module_forward_hook(lambda module, *_: runs.append(module) if module in layers else None)
    try:
        yield runs
    finally:
        hook.remove()


def test_a_session_resumes_bit_by_bit_or_runs_in_full(family):
    vlm = family.vlm()
    prompt = vlm.read(family.sample())
    sinks = sg.sinks.classify.classify(vlm.observe(prompt), prompt.sheets, v_sink="attention", l_sink="attention")
    warm = sg.Session(vlm, prompt, sinks)
    options = {"max_new_tokens": 3, "suppress_tokens": [IMAGE]}
    high = sg.Gates.ones(vlm).set("rest", 0.3, layers=vlm.num_layers - 1)
    fine = FineGates.ones(vlm, rows="last, generated", rule="monotone").set("visual", 0.3, -1, heads=[0])
    for gates in (None, high, high.set("rest", 1.7, layers=0), fine, FineGates.of(high, rows="text"), None):
        fresh = sg.Session(vlm, prompt, sinks)
        warm_trace, fresh_trace = warm.predict(gates), fresh.predict(gates)
        assert torch.equal(warm_trace.probabilities, fresh_trace.probabilities)
        assert torch.equal(warm_trace.attention, fresh_trace.attention)
        assert torch.allclose(warm_trace.probabilities, vlm.predict(prompt, gates, sinks).probabilities, atol=1e-6)
        with encoder_runs(vlm) as runs:
            answer = warm.answer(gates, **options)
        assert not runs or vlm.adapter.takes_encoded is None or vlm.adapter.cross_attention
        expected = vlm.answer(prompt, gates, sinks, **options)
        assert answer.ids == expected.ids
        assert torch.allclose(answer.attention, expected.attention, atol=1e-5)
    assert warm.resumes == (vlm.adapter.takes_encoded is not None and not vlm.adapter.shares_keys)
    if warm.resumes:
        before = warm.layers_run
        warm.predict(high)
        assert warm.layers_run - before == len(vlm.adapter.all_layers) - vlm.adapter.layer_numbers[-1]
    tables = [high, sg.Gates.ones(vlm), fine, FineGates.of(high, rows="last")]
    for row, table in zip(warm.predict_all(tables).softmax(-1), tables, strict=True):
        assert torch.allclose(row, vlm.predict(prompt, table, sinks).probabilities, atol=1e-5)


@pytest.mark.parametrize("name", MAPPED)
def test_a_planted_v_sink_is_found_at_its_token(name):
    """A spike written into one row of the encoder must come out as the token that its patch feeds."""
    vlm = ZOO[name].vlm()
    adapter = vlm.adapter
    prompt = vlm.read(ZOO[name].sample())
    assert prompt.token_of_patch is not None
    used = (prompt.token_of_patch >= 0).nonzero()[:, 0]
    patch = int(used[len(used) * 2 // 3])
    planted = []

    def plant(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        number = torch.arange(hidden.shape[:-1].numel()).view(hidden.shape[:-1])
        at = int(adapter.in_patch_order(number[..., None], prompt.inputs)[patch, 0])
        hidden[(*(number == at).nonzero()[0].tolist(), 11)] = 3e5
        planted.append(at)
        return output

    hook = adapter.encoder_layers[adapter.feature_layer].register_forward_hook(plant, prepend=True)
    try:
        sinks = sg.find_sinks(vlm, prompt, v_sink="massive")
    finally:
        hook.remove()
    assert planted
    assert sinks.v_sink.nonzero()[:, 0].tolist() == [int(prompt.token_of_patch[patch])]
    assert sinks.v_verdict is not None and sinks.v_verdict.dimensions == (11,)
    assert "dimension 11" in sinks.explain(int(prompt.token_of_patch[patch]))
    few = sg.find_sinks(vlm, prompt, v_sink="massive", merged="all")
    assert not few.v_sink.any(), "the spike is gone, and nobody remembers it"


@pytest.mark.parametrize("name", [name for name in ZOO if name != "mllama"])
def test_a_planted_l_sink_is_found_at_its_layer(name):
    vlm = ZOO[name].vlm()
    prompt = vlm.read(ZOO[name].sample())
    token = len(prompt.visual) // 2
    at, second = int(prompt.visual[token]), vlm.adapter.layers[1]

    def plant(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden[:, at, 3] = 3e6

    hook = second.register_forward_pre_hook(plant, with_kwargs=True)
    try:
        sinks = sg.find_sinks(vlm, prompt, v_sink="massive", l_sink="massive")
    finally:
        hook.remove()
    assert not sinks.v_sink.any()
    assert sinks.l_sink[1].nonzero()[:, 0].tolist() == [token] and not sinks.l_sink[0].any()


def rows_for(vlm, images):
    """A prompt around these image inputs, with as many places as the encoder makes rows."""
    with torch.no_grad():
        rows = len(vlm.adapter.projected(vlm.adapter.encode(images)))
    ids = torch.cat([torch.tensor([5, 6]), torch.full((rows,), IMAGE), torch.tensor([7, 8])])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}


def flat(*grids, shape=(96,)):
    pixels = torch.randn(sum(h * w for h, w in grids), *shape)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, *grid] for grid in grids])}


def padded_rows(*grids):
    most = max(h * w for h, w in grids)
    mask = torch.stack([(torch.arange(most) < h * w).long() for h, w in grids])
    return {
        "pixel_values": torch.randn(len(grids), most, 48),
        "spatial_shapes": torch.tensor(grids),
        "pixel_attention_mask": mask,
    }


def positions(height, width, padding):
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.cat([torch.stack([column, row], -1).flatten(0, 1), torch.full((padding, 2), -1)])[None]
    return {"pixel_values": torch.rand(1, height * width + padding, 48), "image_position_ids": at}


def pictures(*sizes):
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    return {"pixel_values": torch.randn(len(sizes), 3, height, width), "image_sizes": torch.tensor(sizes)}


def tiled(size, crops):
    return {"pixel_values": torch.randn(1, crops, 3, 28, 28), "image_sizes": torch.tensor([size])}


GRIDS = [((2, 4),), ((6, 4),), ((4, 10), (2, 2)), ((8, 8), (2, 6), (6, 4))]
GEOMETRIES = [
    *[(name, flat(*grids)) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") for grids in GRIDS],
    *[("kimi_k25", flat(*grids, shape=(3, 4, 4))) for grids in GRIDS],
    *[("lfm2_vl", padded_rows(*grids)) for grids in GRIDS],
    *[("gemma4", positions(h, w, (-h * w) % 4 + pad)) for h, w, pad in ((4, 6, 4), (2, 8, 0), (8, 4, 12))],
    *[
        (name, pictures(*sizes))
        for name in ("mistral3", "llava (pixtral)")
        for sizes in ([(28, 14)], [(28, 56), (14, 42)], [(56, 56), (14, 14), (28, 42)])
    ],
    *[
        (name, tiled(size, crops))
        for name in ("llava_next", "llava_next_video", "llava_onevision")
        for size, crops in (((28, 56), 3), ((56, 28), 3), ((50, 50), 5), ((20, 56), 3), ((40, 17), 3), ((56, 41), 5))
    ],
    *[(name, {"pixel_values": torch.randn(2, 3, 28, 28)}) for name in ("internvl", "aya_vision", "gemma3", "llava")],
    *[(name, {"pixel_values": torch.randn(1, 5, 3, 28, 28)}) for name in ("idefics3", "smolvlm")],
    ("idefics3", {"pixel_values": torch.randn(1, 3, 3, 28, 28) * torch.tensor([1, 0, 1]).view(1, 3, 1, 1, 1)}),
]


@pytest.mark.parametrize(("name", "images"), GEOMETRIES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_closed_form_equals_the_gradient_probe(name, images):
    """Several images in a prompt, other grids, padded pictures, crops left out."""
    vlm = ZOO[name].vlm()
    inputs = rows_for(vlm, images)
    closed = vlm.adapter.token_of_patch(inputs, ZOO[name].rule)
    assert closed is not None
    assert torch.equal(closed, measure_tokens(vlm.adapter, inputs))


def test_a_large_picture_of_onevision_is_mapped_to_the_nearest_token():
    """Its tiles are resized after the encoder: the probe finds several tokens a patch, and the nearest is among them."""
    family = ZOO["llava_onevision"]
    vlm = family.own_vlm()
    vlm.model.config.vision_aspect_ratio = "anyres_max_2"
    inputs = rows_for(vlm, tiled((56, 56), 5))
    measured = measure_tokens(vlm.adapter, inputs)
    assert (measured == -2).any()
    prompt = vlm.read(inputs)
    assert "resized" in prompt.note and prompt.token_of_patch is not None
    overview = measured[:16]
    assert torch.equal(prompt.token_of_patch[:16], overview)
    assert sorted(prompt.token_of_patch.unique().tolist()) == list(range(len(prompt.visual)))
    rows = len(inputs["input_ids"][0]) - 4 - 16
    side = len(prompt.visual) - 16
    assert rows - side == int(side**0.5), "a newline after each row"


def test_the_probe_leaves_the_model_as_it_was():
    vlm = ZOO["llava"].vlm()
    state = copy.deepcopy(vlm.model.state_dict())
    wanted = [parameter.requires_grad for parameter in vlm.model.parameters()]
    measure_tokens(vlm.adapter, ZOO["llava"].sample())
    assert wanted == [parameter.requires_grad for parameter in vlm.model.parameters()] and any(wanted)
    assert all(parameter.grad is None for parameter in vlm.model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in vlm.model.state_dict().items())


def test_an_unknown_merge_is_measured_prompt_by_prompt():
    """No rule holds where the projector shuffles its tokens; the probe still knows."""
    vlm = ZOO["llava"].own_vlm()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    hook = vlm.model.model.multi_modal_projector.register_forward_hook(lambda m, a, output: output[:, order])
    try:
        prompt = vlm.read(ZOO["llava"].sample())
    finally:
        hook.remove()
    assert vlm.prompter.rule == "measured" and prompt.note == ""
    assert prompt.token_of_patch is not None and torch.equal(prompt.token_of_patch[order], torch.arange(16))


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that is made within the block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for part in output if isinstance(output, tuple | list) else (output,):
            if isinstance(part, torch.Tensor):
                self.elements = max(self.elements, part.numel())
        return output


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_encoders_attention_is_read_in_one_layer_and_never_whole(name, monkeypatch):
    """10,000 patches (two megapixels of Qwen2.5-VL) would be 1.6 billion weights a layer; here 1,600 stand for them."""
    vlm, side = ZOO[name].vlm(), 40
    pixels = torch.randn(side * side, 96, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 102, *[IMAGE] * (side * side // 4), 103, 6, 7]])
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
    prompt = vlm.read({**inputs, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).long()})
    whole = vlm.observe_encoder(prompt).encoder_attention
    shapes, compute = [], attention_module.attention_rows
    monkeypatch.setattr(recorder_module, "CHUNK", 1 << 16)
    monkeypatch.setattr(
        attention_module, "attention_rows", lambda module, *a, **k: (shapes.append(module), compute(module, *a, **k))[1]
    )
    with Largest() as largest:
        part = vlm.observe_encoder(prompt).encoder_attention
    assert torch.allclose(part, whole, atol=1e-5) and part.mean() == pytest.approx(1, abs=1e-4)
    assert set(shapes) == {vlm.adapter.encoder_attention[vlm.adapter.reading_layer]} and len(shapes) > 100
    assert largest.elements < len(pixels) ** 2 / 4, "less than a quarter of one head's attention"
