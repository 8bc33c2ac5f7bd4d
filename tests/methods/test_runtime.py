"""Gates exported as a module without sinkgate give sinkgate's tokens and logits, or are refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny import rename_cache, shaken
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo import ZOO, together

import sinkgate as sg
from sinkgate.attention.cache import CACHE_NAME, CACHE_NAMES, cache_in
from sinkgate.methods.runtime import export_runtime, load_runtime
from sinkgate.models.vlm import VLM
from sinkgate.scenes import Scene
from sinkgate.sinks.criteria import AttentionShare, MassiveActivations, NormOutliers, SinkDimensions

SERVER = Path(__file__).with_name("runtime_server.py")
FAMILIES = ("llava", "internvl", "idefics3", "gemma3", "qwen2_vl")
LOUD: dict[str, Any] = {"v_sink": AttentionShare(1.1), "l_sink": AttentionShare(1.1)}
STEPS = 6


@dataclass
class Case:
    vlm: VLM
    prompts: list[sg.Prompt]
    inputs: dict[str, torch.Tensor]
    gates: sg.Gates | sg.LSG
    criteria: dict[str, Any]

    def sinks(self, prompt):
        own = self.gates.config.criterion if isinstance(self.gates, sg.LSG) else "auto"
        return sg.find_sinks(self.vlm, prompt, **{"v_sink": own, "l_sink": own, **self.criteria})

    def answer(self, prompt, **options) -> sg.Trace:
        sinks = self.sinks(prompt)
        table = self.gates.read(self.vlm, prompt, sinks) if isinstance(self.gates, sg.LSG) else self.gates
        return self.vlm.answer(prompt, table, sinks, max_new_tokens=STEPS, **options)


def three_groups(vlm: VLM) -> sg.Gates:
    return sg.Gates.ones(vlm).set("v_sink", 0.2).set("l_sink", 2.0).set("ordinary", 0.6)


def serve(folder: Path, cases: list[Case]) -> None:
    """Export each case, run all in one process without sinkgate, and compare what it writes."""
    folders = []
    for number, case in enumerate(cases):
        at = folder / str(number)
        export_runtime(case.vlm, case.gates, at, prompt=case.prompts[0], **case.criteria)
        model = case.vlm.model.config._name_or_path
        if not model:
            model = str(folder / f"{case.vlm.name}-model")
            case.vlm.model.save_pretrained(model)
        (at / "model.txt").write_text(model)
        torch.save(case.inputs, at / "inputs.pt")
        folders.append(at)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(SERVER), *map(str, folders)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, at in zip(cases, folders, strict=True):
        outputs = torch.load(at / "outputs.pt")
        assert torch.equal(outputs["plain"], outputs["again"])  # nothing stays
        assert (outputs["plain"][:, 0] - outputs["logits"][:, 0]).abs().max() > 0.02  # and something was done
        for row, prompt in enumerate(case.prompts):
            trace = case.answer(prompt)
            end = len(trace.ids)
            assert outputs["tokens"][row, :end].tolist() == trace.ids, case.vlm.name
            beams = case.answer(prompt, num_beams=2).ids
            assert outputs["beams"][row, : len(beams)].tolist() == beams, case.vlm.name
            sinks = case.sinks(prompt)
            table = case.gates.read(case.vlm, prompt, sinks) if isinstance(case.gates, sg.LSG) else case.gates
            torch.testing.assert_close(
                outputs["logits"][row, 0].float(),
                case.vlm.next_logits(prompt, table, sinks).float(),
                atol=2e-3,
                rtol=1e-3,
            )


def scene_prompts(vlm: VLM, *questions: str) -> list[sg.Prompt]:
    return [vlm.prompt(Scene.random(Random(70 + n)).render(), question) for n, question in enumerate(questions)]


def batch_of(vlm: VLM, prompts: list[sg.Prompt]) -> dict[str, torch.Tensor]:
    pad = vlm.pad_token
    longest = max(prompt.length for prompt in prompts)
    ids = torch.stack(
        [torch.nn.functional.pad(p.inputs["input_ids"][0], (longest - p.length, 0), value=pad) for p in prompts]
    )
    mask = torch.stack(
        [torch.nn.functional.pad(torch.ones(p.length, dtype=torch.long), (longest - p.length, 0)) for p in prompts]
    )
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.cat([p.inputs["pixel_values"] for p in prompts]),
    }


def scene_case(vlm: VLM, gates, **criteria) -> Case:
    prompts = scene_prompts(vlm, "How many objects are there?", "What color is the large circle?")
    return Case(vlm, prompts, batch_of(vlm, prompts), gates, criteria)


def zoo_case(name: str, **criteria) -> Case:
    family = ZOO[name]
    vlm = VLM(family.model(), None, name)
    samples = [family.sample(0, words=5), family.sample(1)]
    return Case(vlm, [vlm.read(sample) for sample in samples], together(samples), three_groups(vlm), criteria)


def have_sinks(cases: list[Case]) -> list[Case]:
    for case in cases:
        maps = [case.sinks(prompt) for prompt in case.prompts]
        assert any(sinks.v_sink.any() and not sinks.v_sink.all() for sinks in maps), case.vlm.name
        assert any(sinks.l_sink.any() for sinks in maps), case.vlm.name
    return cases


def test_shipped_gates_and_other_criteria_are_served_without_sinkgate(demo, tmp_path):
    stack = sg.LSG.from_pretrained(Path(sg.__file__).parent / "demo" / "gates" / "stack")
    cases = [
        zoo_case("qwen3_vl", **LOUD),
        zoo_case("llava", v_sink=NormOutliers(1.02), l_sink=SinkDimensions((3, 5), tau=1.0)),
        zoo_case("qwen3_vl", v_sink=SinkDimensions((1,), 1.0), l_sink=MassiveActivations(1.5, 0.0, (2, 4))),
    ]
    serve(tmp_path, [scene_case(demo, stack), scene_case(demo, three_groups(demo)), *have_sinks(cases)])


def test_other_models_are_served_without_sinkgate(tmp_path):
    large = sg.load("demo-large")
    learned = shaken(sg.LSG.for_vlm(large, [1, 3], grouping="three", signal="mean", bias=True, norm_weights=True))
    scenes = [scene_case(large, gates) for gates in (learned, three_groups(large))]
    serve(tmp_path, [*scenes, *have_sinks([zoo_case(name, **LOUD) for name in FAMILIES])])


def tiny_case(name: str = "llava") -> tuple[VLM, sg.Prompt]:
    vlm = VLM(ZOO[name].model(), None, name)
    return vlm, vlm.read(ZOO[name].sample())


@pytest.mark.parametrize(
    ("name", "words"),
    [("mllama", "an adapter of their own"), ("idefics2", "one by one or in squares"), ("lfm2_vl", "several sizes")],
)
def test_an_architecture_that_the_module_cannot_serve_is_refused(name, words, tmp_path):
    vlm, prompt = tiny_case(name)
    with pytest.raises(sg.GateError, match=words):
        export_runtime(vlm, three_groups(vlm), tmp_path, v_sink="norm", l_sink="norm", prompt=prompt)
    assert not list(tmp_path.iterdir())


def test_criteria_and_gates_that_the_module_does_not_know_are_refused(tmp_path):
    vlm, prompt = tiny_case()
    for criteria, words in (
        ({"v_sink": "norm", "l_sink": "massive"}, "from each prompt"),
        ({"v_sink": lambda signals: signals, "l_sink": "norm"}, "the module has"),
    ):
        with pytest.raises(sg.GateError, match=words):
            export_runtime(vlm, three_groups(vlm), tmp_path, prompt=prompt, **criteria)
    with pytest.raises(sg.GateError, match="single rows or heads"):
        export_runtime(vlm, sg.FineGates.of(sg.Gates.ones(vlm)), tmp_path, prompt=prompt)
    with pytest.raises(sg.GateError, match="5 layers, llava has 3"):
        export_runtime(vlm, sg.Gates.ones(5), tmp_path, prompt=prompt)


def test_gates_that_treat_all_visual_tokens_alike_need_no_sinks(tmp_path):
    vlm, prompt = tiny_case("idefics2")  # whose patches have no tokens of their own
    gates = sg.Gates.ones(vlm).set("v_sink", 0.5, 1).set("rest", 0.5, 1)
    before = dict(ALL_ATTENTION_FUNCTIONS._global_mapping)
    export_runtime(vlm, gates, tmp_path, v_sink="norm", l_sink="norm", prompt=prompt)
    assert dict(ALL_ATTENTION_FUNCTIONS._global_mapping) == before, "the check leaves nothing"
    settings = json.loads((tmp_path / "sink_gates.json").read_text())
    assert settings["vision"] is settings["v_sink"] is settings["l_sink"] is None and settings["gated_layers"] == [1]


def test_logits_that_differ_from_sinkgates_are_refused(tmp_path, monkeypatch):
    vlm, prompt = tiny_case()
    before = vlm.next_logits(prompt)
    wrong = vlm.next_logits(prompt) + 1
    monkeypatch.setattr(vlm, "next_logits", lambda *_: wrong)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as where users run it: no bytecode stays either
    with pytest.raises(sg.GateError, match="logits differ"):
        export_runtime(vlm, three_groups(vlm), tmp_path, v_sink="norm", l_sink="norm", prompt=prompt)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir()) and torch.equal(vlm.next_logits(prompt), before)


def test_the_module_refuses_another_model_attention_and_prompt_in_words(tmp_path):
    vlm, prompt = tiny_case()
    export_runtime(vlm, three_groups(vlm), tmp_path, prompt=prompt, **LOUD)
    apply_gates = load_runtime(tmp_path).apply_gates
    with pytest.raises(ValueError, match="exported for llava .*this model has type internvl"):
        apply_gates(ZOO["internvl"].model())
    with pytest.raises(ValueError, match="attention 'eager'; expected sdpa"):
        apply_gates(ZOO["llava"].model(attn="eager"))
    gates = apply_gates(vlm.model)
    with pytest.raises(ValueError, match="inputs_embeds alone"):
        vlm.model(inputs_embeds=torch.zeros(1, 4, 32))
    text = torch.tensor([[5, 6, 7]])
    cache = cache_in(vlm.model(input_ids=text))
    with pytest.raises(ValueError, match="whole prompt in one prefill"):
        vlm.model(**{**prompt.inputs, "attention_mask": None, CACHE_NAME: cache})
    gates.remove()


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_brings_its_scales_along(name, tmp_path):
    vlm, prompt = tiny_case()
    gates = three_groups(vlm)
    export_runtime(vlm, gates, tmp_path, prompt=prompt, **LOUD)
    rename_cache(vlm.decoder, name)
    applied, token = load_runtime(tmp_path).apply_gates(vlm.model), torch.tensor([[9]])
    rename_cache(vlm.decoder, CACHE_NAME)
    with torch.no_grad():
        cache = cache_in(vlm.model(**prompt.inputs))
        vlm.model(**vlm.read(ZOO["llava"].sample(3)).inputs)  # another prompt in between
        got = vlm.model(input_ids=token, **{CACHE_NAME: cache}).logits
    applied.remove()
    with torch.no_grad(), vlm.gated(prompt, sg.find_sinks(vlm, prompt, **LOUD), gates):
        cache = cache_in(vlm.model(**prompt.inputs))
        wanted = vlm.model(input_ids=token, **{CACHE_NAME: cache}).logits
    torch.testing.assert_close(got, wanted)
