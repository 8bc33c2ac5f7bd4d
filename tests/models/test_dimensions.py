"""Sink dimensions of whole models: planted in tiny ones, kept on disk, written as JSON, known beforehand."""

import json
import os
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import bare_prompt, noise_image, tiny_llava

import sinkgate as sg
from sinkgate.models.dimensions import cache_file, default_prompts, discover, sink_criteria
from sinkgate.sinks.classify import Observation
from sinkgate.sinks.criteria import Choice, Signals, SinkDimensions, tau_for
from sinkgate.sinks.discovery import Discovery
from sinkgate.sinks.evidence import combine, gather_evidence
from sinkgate.sinks.known_dimensions import known
from sinkgate.sinks.states import HiddenStates

LAYERS, TOKENS, WIDTH = 3, 40, 64


class Counted:
    """Stands for a model: made-up hidden states with a spike at the text sink, in the prompts asked for; counts its runs."""

    def __init__(self, spike=range(100), name="org/model", revision="abc", vision=True):
        self.name, self.spike, self.vision, self.runs, self.alive = name, spike, vision, 0, []
        self.model = SimpleNamespace(
            config=SimpleNamespace(_name_or_path=name, _commit_hash=revision), dtype=torch.float32
        )

    def prompt(self, image, question):
        return bare_prompt(question, [image])

    def observe(self, prompt, reduction=None):
        assert not any(ref() is not None for ref in self.alive), "the last prompt's tensors are still held"
        hidden = torch.randn(LAYERS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(self.runs))
        if self.runs in self.spike:
            hidden[1:, 0, 5] = 3000
        self.alive, self.runs = [weakref.ref(hidden)], self.runs + 1
        features = hidden[0] if self.vision else None
        even = torch.ones(TOKENS)
        return Observation(
            features,
            None if features is None else even,
            torch.arange(TOKENS),
            HiddenStates.of(hidden),
            torch.arange(TOKENS),
            even.expand(LAYERS, -1),
            even.expand(LAYERS, -1),
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- what is found


def test_a_dimension_that_every_prompt_shows_is_sure():
    discovery = discover(Counted())
    (evidence,) = discovery.llm.dimensions
    assert (evidence.dimension, evidence.layers, evidence.prompts, discovery.prompts) == (5, (1, 2), 12, 12)
    assert evidence.confidence > 0.8 and evidence.share == pytest.approx(1 / TOKENS)
    assert discovery.dimensions("llm") == (5,) and discovery.dimensions("vision") == ()
    text = discovery.summary()
    assert (
        "The LLM spikes in dimension 5, confidence 0.92 (high)" in text and "12 of 12 prompts" in text and "1-2" in text
    )
    assert "The vision encoder has no sink dimensions: the loudest channel" in text and "100 x would be needed" in text


def test_a_spike_in_one_prompt_only_is_not():
    discovery = discover(Counted(spike=[3]))
    (evidence,) = discovery.llm.dimensions
    assert evidence.prompts == 1 and evidence.confidence < 0.08 and discovery.dimensions("llm") == ()
    assert discovery.dimensions("llm", at_least=0.05) == (5,) and "(low)" in discovery.summary()


def test_none_is_an_answer_and_so_is_an_encoder_that_cannot_be_looked_into():
    discovery = discover(Counted(spike=(), vision=False))
    assert discovery.vision is None and discovery.llm.dimensions == ()
    assert "cannot be looked into" in discovery.summary() and "The LLM has no sink dimensions" in discovery.summary()


def test_why_there_is_none():
    hidden = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    content, loud, signed, riding = hidden.clone(), hidden.clone(), hidden.clone(), hidden.clone()
    content[:, :20, 9] = 900
    loud[:, 4] *= 100
    signed[:, :20, 9] = 900
    signed[:, :10, 9] = -900
    riding[:, 4, 10:40] = 900
    discovery = discover(Counted(spike=()))
    text = replace(discovery, vision=gather_evidence(content), llm=gather_evidence(loud)).summary()
    assert "channel (9) reaches" in text and "50% of the tokens are about as loud in it: it carries content" in text
    assert "loud in every channel" in text
    text = replace(discovery, vision=gather_evidence(signed), llm=gather_evidence(riding)).summary()
    assert "tokens loud in it have both signs (50% agree): it carries content" in text
    assert "but holds 3.3% of its token's squared norm: it rides along with others" in text


def test_the_surest_comes_first_with_medians_over_its_prompts():
    quiet = torch.randn(LAYERS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    evidence = []
    for size in (2000, 3000, 9000):
        hidden = quiet.clone()
        hidden[1, 0, 5] = size
        hidden[(2 if size > 2000 else 0), 0, 6] = 150
        evidence.append(gather_evidence(hidden))
    first, second = combine(evidence).dimensions
    assert (first.dimension, second.dimension) == (5, 6) and first.confidence > second.confidence
    assert first.ratio == pytest.approx(3000 / float(quiet[1].abs().median()), rel=0.01)
    assert second.layers == (2,), "a layer that less than half of the prompts show is left out"


def test_no_prompts_and_overflow_are_said():
    with pytest.raises(sg.SinkgateError, match="no prompts"):
        discover(Counted(), [])
    vlm = Counted()
    infinite = HiddenStates.of(torch.full((1, 2, 3), torch.inf))
    vlm.observe = lambda prompt, reduction: SimpleNamespace(states=infinite)
    with pytest.raises(sg.SinkgateError, match="not finite in torch.float32"):
        discover(vlm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planted_in_a_real_model(dtype):
    """A spike at a text token names the LLM's dimension and makes no L-sink; one at a patch names the encoder's."""
    vlm = sg.load(tiny_llava("clip", dtype=dtype), check=False)

    def plant(token, dimension, size):
        def hook(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, token, dimension] = size

        return hook

    language, vision = vlm.model.get_decoder().layers, vlm.model.model.vision_tower.encoder.layers
    quiet = discover(vlm, cache=False)
    assert quiet.llm.dimensions == () and quiet.vision is not None and quiet.vision.dimensions == ()
    hooks = [
        language[0].register_forward_hook(plant(-1, 11, 1e6)),
        vision[0].register_forward_hook(plant(1 + 4, 20, -1e6)),  # after CLS: patch 4
    ]
    discovery = discover(vlm, cache=False)
    prompt = vlm.prompt(noise_image(), "How many objects are there?")
    sinks = sg.find_sinks(
        vlm, prompt, v_sink=SinkDimensions(discovery.dimensions("vision"), tau=5), l_sink=SinkDimensions((11,), tau=5)
    )
    for hook in hooks:
        hook.remove()
    assert discovery.dimensions("llm") == (11,) and discovery.llm.dimensions[0].layers == (1, 2)
    assert discovery.dimensions("vision") == (20,) and discovery.vision.dimensions[0].prompts == 12
    assert sinks.v_sink.nonzero()[:, 0].tolist() == [4] and not sinks.l_sink.any()


# --- the cache


def test_the_second_call_runs_no_model(cache):
    vlm = Counted()
    first = discover(vlm)
    assert vlm.runs == 12 and discover(vlm) == first and vlm.runs == 12
    (file,) = cache.iterdir()
    assert file.name.startswith("org-model-") and Discovery.from_json(file.read_text()) == first


def test_another_revision_is_measured_again(cache):
    discover(Counted())
    other = Counted(revision="def")
    assert discover(other).revision == "def" and other.runs == 12 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "sinkgate-dimensions", "version": 0}', b"\xff\xfe"])
def test_a_broken_file_is_measured_again_and_replaced(cache, content):
    vlm = Counted()
    file = cache_file(vlm)
    file.parent.mkdir(parents=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    discovery = discover(vlm)
    assert vlm.runs == 12 and Discovery.from_json(file.read_text()) == discovery


def test_what_is_never_kept(cache):
    vlm = Counted()
    discover(vlm, cache=False)
    discover(vlm, list(default_prompts(vlm))[:2])
    for nameless in (Counted(name="", revision=None), Counted(name="", revision="abc"), Counted(revision=None)):
        assert cache_file(nameless) is None
        discover(nameless)
    assert not cache.exists()


def test_a_folder_is_known_by_its_weights(tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    vlm = Counted(name=str(weights.parent), revision=None)
    assert cache_file(vlm) is None, "no weights there"
    weights.write_bytes(b"1")
    first = cache_file(vlm)
    assert first == cache_file(vlm)
    weights.write_bytes(b"12")
    second = cache_file(vlm)
    os.utime(weights, ns=(1, 1))
    assert len({first, second, cache_file(vlm)}) == 3


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_file(Counted()).parent == tmp_path / "cache"
    monkeypatch.delenv("SINKGATE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file(Counted()).parent == tmp_path / "xdg" / "sinkgate"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_file(Counted()).parent == Path.home() / ".cache" / "sinkgate"


def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINKGATE_CACHE", str(tmp_path / "file" / "below"))
    assert discover(Counted()).dimensions("llm") == (5,)
    monkeypatch.setenv("SINKGATE_CACHE", str(cache))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert discover(Counted()).dimensions("llm") == (5,)
    assert list(cache.iterdir()) == [], "nothing half written stays behind"


def test_default_prompts_are_the_same_each_time():
    first, second = list(default_prompts(Counted())), list(default_prompts(Counted()))
    assert len(first) == 12 and len({prompt.image.tobytes() for prompt in first}) == 12
    assert [(p.image.tobytes(), p.question) for p in first] == [(p.image.tobytes(), p.question) for p in second]


# --- JSON


@pytest.mark.parametrize("vlm", [Counted(), Counted(vision=False, revision=None), Counted(spike=())])
def test_json_round_trip(vlm):
    vlm.runs = 0
    discovery = discover(vlm, cache=False)
    assert Discovery.from_json(discovery.to_json()) == discovery


def test_files_written_before_a_measure_was_added_are_read():
    discovery = discover(Counted(), cache=False)
    content = json.loads(discovery.to_json())
    for evidence in (content["llm"]["loudest"], *content["llm"]["dimensions"]):
        for measure in ("dominance", "agreement", "first"):
            del evidence[measure]
    read = Discovery.from_json(json.dumps(content))
    assert read.dimensions("llm") == discovery.dimensions("llm") and read.llm.dimensions[0].dominance is None
    assert Discovery.from_json(read.to_json()) == read and "dimension 5" in read.summary()


def refusals():
    yield "no JSON", "{"
    yield '"format": "sinkgate-dimensions"', "[1]"
    yield '"format": "sinkgate-dimensions"', '{"format": "sinkgate-gates", "version": 1}'
    whole = json.loads(discover(Counted(), cache=False).to_json())
    for message, path, value in [
        ("version 2, expected 1; measure again", ["version"], 2),
        ("missing field 'llm'", ["llm"], None),
        ("prompts is '6'; expected int", ["prompts"], "6"),
        ("prompts is True; expected int", ["prompts"], True),
        ("unknown field 'extra'", ["extra"], 1),
        ("revision is 3", ["revision"], 3),
        ("llm: got 7, expected an object", ["llm"], 7),
        ("llm: dimensions is 1", ["llm", "dimensions"], 1),
        ("llm: loudest: got None", ["llm", "loudest"], "null"),
        ("llm: dimensions: dimension is -5", ["llm", "dimensions", 0, "dimension"], -5),
        ("llm: finds is", ["llm", "finds"], {"norm": -1}),
        ("dominance is 2", ["llm", "dimensions", 0, "dominance"], 2.0),
        ("ratio is nan", ["llm", "dimensions", 0, "ratio"], float("nan")),
        ("layers is .1, 'x'.", ["llm", "dimensions", 0, "layers"], [1, "x"]),
        ("confidence is 1.5; expected a number from 0 to 1", ["llm", "dimensions", 0, "confidence"], 1.5),
    ]:
        content = json.loads(json.dumps(whole))
        *above, last = path
        inner = content
        for step in above:
            inner = inner[step]
        inner[last] = None if value == "null" else value
        if value is None:
            del inner[last]
        yield message, json.dumps(content)


@pytest.mark.parametrize(("message", "text"), list(refusals()))
def test_json_that_is_refused(message, text):
    with pytest.raises(sg.SinkgateError, match=message):
        Discovery.from_json(text)


# --- known dimensions


def test_known_dimensions_in_any_spelling():
    assert known("llama-2-7b", "llm") == (1415, 2533) == known("meta-llama/Llama-2-7b-hf", "llm")
    assert known("CLIP ViT-L/14-336", "vision") == (650,)
    hidden = torch.zeros(1, 2, 4096)
    hidden[0, 1, 2533] = 100
    verdict = SinkDimensions(known("llava-hf/llava-1.5-7b-hf", "llm"))(
        Signals(hidden, torch.arange(2), torch.ones(1, 2))
    )
    assert verdict.mask.tolist() == [[False, True]]


def test_unknown_dimensions_name_what_is_near():
    with pytest.raises(sg.SinkgateError, match="the LLM of 'llama-4-7b'; near it: .*llama-2-7b"):
        known("llama-4-7b", "llm")
    with pytest.raises(sg.SinkgateError, match="known are: .*dinov2"):
        known("?", "vision")
    with pytest.raises(sg.SinkgateError, match="no side 'text'; expected one of 'vision', 'llm'"):
        known("llama-2-7b", "text")


def test_every_known_entry_says_where_it_is_from():
    entries = json.loads((Path(sg.__file__).parent / "sinks" / "known_dimensions.json").read_text())
    assert len({(entry["model"], entry["side"]) for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.keys() == {"model", "side", "dimensions", "source", "note"} and entry["source"]
        assert known(entry["model"], entry["side"]) == tuple(entry["dimensions"]) and all(
            type(d) is int and d >= 0 for d in entry["dimensions"]
        )


# --- one criterion for a model


class Recognised(Counted):
    """A model with states of a width, under a name; it must not run."""

    lock = threading.RLock()
    processor = None

    def __init__(self, name, width, **options):
        super().__init__(name=name, **options)
        text = SimpleNamespace(hidden_size=width)
        self.model.config.get_text_config = lambda: text
        self.model.config.vision_config = SimpleNamespace(hidden_size=width // 4)
        self.discovery = self.criteria = None


def test_known_dimensions_of_the_model_come_first_and_nothing_runs():
    vlm = Recognised("llava-hf/llava-1.5-7b-hf", 4096)
    criteria = sink_criteria(vlm)
    assert criteria.l_sink.criterion == SinkDimensions((1415, 2533)) and criteria.v_sink.criterion == SinkDimensions(
        (650,)
    )
    assert criteria.l_sink.reason == "known for llava-hf/llava-1.5-7b-hf" and vlm.runs == 0
    assert sink_criteria(vlm, l_sink="dimensions").l_sink == criteria.l_sink and vlm.runs == 0


def test_a_name_alone_is_not_believed():
    """A small model in a folder of that name has no channel 1415."""
    vlm = Recognised("llava-1.5-7b-hf", WIDTH)
    criteria = sink_criteria(vlm, prompt=bare_prompt())
    assert criteria.l_sink.criterion.dims == (5,) and criteria.l_sink.reason == "discovered on 1 prompt"
    assert vlm.runs == 1 and vlm.discovery is not None


def test_discovered_dimensions_with_a_tau_that_they_can_reach():
    discovery = discover(Counted())
    assert discovery.criterion("llm") == Choice(SinkDimensions((5,), tau_for(WIDTH)), "discovered on 12 prompts")
    assert tau_for(WIDTH) == pytest.approx((0.7 * WIDTH) ** 0.5) and tau_for(4096) == 20
    weak = replace(discovery.llm.dimensions[0], dominance=0.1)
    unreached = replace(discovery, llm=replace(discovery.llm, dimensions=(weak,))).criterion("llm")
    assert unreached.tried[0] == "sink dimensions" and not isinstance(unreached.criterion, SinkDimensions)


@pytest.mark.parametrize(
    ("finds", "name"),
    [
        ({"massive": 6, "norm": 12, "attention": 12}, "massive"),
        ({"massive": 5, "norm": 6, "attention": 12}, "norm"),
        ({"massive": 0, "norm": 5, "attention": 12}, "attention"),
        ({"massive": 0, "norm": 0, "attention": 0}, "attention"),
        (None, "attention"),
    ],
)
def test_the_order_of_auto_without_sink_dimensions(finds, name):
    discovery = discover(Counted(spike=()))
    choice = replace(discovery, llm=replace(discovery.llm, finds=finds)).criterion("llm")
    assert choice.criterion == sg.CRITERIA[name]
    expected = ["sink dimensions", "massive activations", "norm outliers", "attention share"]
    assert choice.tried == tuple(expected[: expected.index(choice.criterion.name)])


def test_discovery_counts_the_prompts_in_which_a_criterion_finds_sinks():
    discovery = discover(Counted(spike=[1, 4]))
    assert discovery.llm.finds == {"massive": 2, "norm": 2, "attention": 0} and discovery.vision.finds["norm"] == 0
    assert Discovery.from_json(discovery.to_json()) == discovery


def test_one_criterion_for_every_image_and_none_is_an_answer():
    """Images used to get the first criterion that found anything in them."""
    model, processor = tiny_llava("siglip")
    vlm = sg.VLM(model, processor, "planted")
    spike = {"token": 7}

    def plant(_module, _args, output):
        if output.shape[1] > 16 and spike["token"] is not None:
            output[:, spike["token"], 3] = 3e6
        return output

    first, second = (vlm.prompt(noise_image(seed), "What is there?") for seed in (1, 2))
    vlm.decoder.layers[0].register_forward_hook(plant)
    sinks = sg.find_sinks(vlm, first)
    assert sinks.l_verdict.criterion == "sink dimensions" and sinks.l_sink[1].nonzero()[:, 0].tolist() == [7]
    held = vlm.criteria
    spike["token"] = None
    none, again = sg.find_sinks(vlm, [second, first])
    assert none.l_verdict.criterion == again.l_verdict.criterion == "sink dimensions" and vlm.criteria is held
    assert (
        not none.l_sink.any() and "No L-sinks (sink dimensions, dimension 3 discovered on 12 prompts)" in none.summary()
    )
    assert vlm.criteria.settings["l_sink"].startswith("SinkDimensions(dims=(3,), tau=")
    vlm.criteria = sg.sink_criteria(vlm, v_sink="norm", l_sink="attention")
    other = sg.find_sinks(vlm, second)
    assert (other.v_verdict.criterion, other.l_verdict.criterion) == ("norm outliers", "attention share")
    assert sg.find_sinks(vlm, second) is other, "kept with the prompt"


def test_dimensions_by_name_are_those_of_the_model():
    vlm = sg.VLM(*tiny_llava("siglip"), "quiet")
    vlm.discovery = discover(Counted())
    assert sg.sink_criteria(vlm, l_sink="dimensions").l_sink.criterion == SinkDimensions((5,), tau_for(32))
    chosen = SinkDimensions(None, tau=3.0, normalize=False)
    assert sg.sink_criteria(vlm, l_sink=chosen).l_sink.criterion == replace(chosen, dims=(5,))
    assert sg.sink_criteria(vlm, v_sink="dimensions").v_sink.criterion.dims == (), "none, and not looked for again"


def test_what_is_no_prompt_is_refused():
    for wrong in ("hello", ["hello"], 7, [None]):
        with pytest.raises(sg.SinkgateError, match="expected a Prompt"):
            discover(Counted(), wrong)
    one = discover(Counted(), bare_prompt())
    assert one == discover(Counted(), [bare_prompt()]) and one.prompts == 1
