"""The reference check passes on small rotary models of several families, and fails where gating is wrong."""

import check_gating
import pytest
import torch
from check_gating import check, main
from tiny import noise_image, some_sinks, tiny_llava
from zoo import ZOO

import sinkgate as sg
from sinkgate.attention import patch
from sinkgate.models.session import Session


def vlm_of(name):
    if name == "demo":
        return sg.load("demo", check=False)
    if name in ("clip", "siglip"):
        return sg.load(tiny_llava(name), check=False)
    return sg.VLM(ZOO[name].model(), None, name)


def prompt_of(vlm, name):
    return vlm.prompt(noise_image(1), "What color is the circle?") if vlm.processor else vlm.read(ZOO[name].sample())


@pytest.mark.parametrize(
    "name", ["demo", "clip", "siglip", "mistral3", "qwen2_5_vl", "qwen3_vl", "idefics3", "internvl", "gemma3"]
)
def test_gates_are_what_hooks_on_the_key_projection_do(name):
    vlm = vlm_of(name)
    prompt = prompt_of(vlm, name)
    result = check(vlm, prompt, some_sinks(vlm, prompt), tokens=8)
    assert result.effect > 0.01 and result.passes(1e-3), result


def test_a_wrong_scale_in_prefill_or_decode_is_noticed(monkeypatch):
    vlm = vlm_of("clip")
    prompt = prompt_of(vlm, "clip")
    sinks, scale = some_sinks(vlm, prompt), patch.scale_keys
    for wrong in (lambda keys: keys > 0, lambda keys: keys > prompt.length + 2):  # everywhere; from the third token on
        monkeypatch.setattr(
            patch, "scale_keys", lambda key, *a, wrong=wrong: scale(key, *a) * (1.1 if wrong(key.shape[2]) else 1)
        )
        result = check(vlm, prompt, sinks, tokens=8)
        assert not result.passes(1e-3) and result.cached < 1e-3 * result.effect


def test_a_session_that_is_off_by_a_bit_is_noticed(monkeypatch):
    vlm = vlm_of("demo")
    prompt = prompt_of(vlm, "demo")
    run = Session._run

    def off(self, old, scales, start, keep=True):
        state = run(self, old, scales, start, keep)
        if old is not None and start == 5:
            state.output.logits = torch.nextafter(state.output.logits, torch.tensor(torch.inf))
        return state

    monkeypatch.setattr(Session, "_run", off)
    assert check_gating.layers_that_differ(vlm, prompt, some_sinks(vlm, prompt)) == [5]


def test_the_command_says_equal_or_different(tmp_path, capsys, monkeypatch):
    noise_image(1, (64, 64)).save(path := tmp_path / "noise.png")
    assert main(["demo", str(path), "--tokens", "3"]) == 0
    assert "sessions resume bit for bit at all 8 layers: equal" in capsys.readouterr().out
    assert main(["demo", str(path), "--tokens", "3", "--tolerance", "1e-12"]) == 1
    assert ": DIFFERENT" in capsys.readouterr().out
    assert main(["demo", str(tmp_path / "none.png")]) == 2 and "cannot be opened" in capsys.readouterr().err
