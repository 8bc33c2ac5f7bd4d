"""Learned gates on disk and on the Hub: what is written, what is read, what is refused."""

import json
import os
import pickle
import re
import warnings
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_llava

import sinkgate as sg
from sinkgate.methods.lsg import LSG, LSGConfig, serialization
from sinkgate.methods.lsg.config import ACTIVATIONS, GROUPINGS, SIGNALS, STARTS
from sinkgate.methods.lsg.model_card import MARK
from sinkgate.scenes.scene import Scene

FILES = {serialization.CONFIG, serialization.WEIGHTS, serialization.CARD}


def gates(layers=(1, 3), width=16, **options):
    lsg = LSG(LSGConfig(tuple(layers), width, bottleneck=4, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lsg.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return lsg


@pytest.fixture
def saved(tmp_path):
    gates().save_pretrained(tmp_path)
    return tmp_path


def change(folder, **tensors):
    """Put tensors in place of those with the same last words (None removes)."""
    content = load_file(folder / serialization.WEIGHTS)
    for name, value in tensors.items():
        name = f"gates.1.{name}.weight"
        content.pop(name, None)
        if value is not None:
            content[name] = value
    save_file(content, folder / serialization.WEIGHTS)


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


configs = st.builds(
    LSGConfig,
    layers=st.sets(st.integers(0, 60), min_size=1, max_size=4).map(lambda layers: tuple(sorted(layers))),
    hidden_size=st.integers(1, 12),
    bottleneck=st.integers(1, 5),
    grouping=st.sampled_from(list(GROUPINGS)),
    signal=st.sampled_from(SIGNALS),
    start=st.sampled_from(STARTS),
    activation=st.sampled_from([*ACTIVATIONS]),
    bias=st.booleans(),
    norm_weights=st.booleans(),
    base_model=st.none() | st.sampled_from(["demo", "llava-hf/llava-1.5-7b-hf"]),
    revision=st.none() | st.just("abc123"),
)


@given(config=configs, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_is_saved_is_read_again(tmp_path_factory, config, seed):
    folder = tmp_path_factory.mktemp("gates")
    lsg = LSG(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lsg.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    lsg.save_pretrained(folder)
    again = LSG.from_pretrained(folder)
    assert again.config == config
    for name, value in lsg.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert all(parameter.requires_grad for parameter in again.parameters())
    card = (folder / serialization.CARD).read_text()
    assert f"{lsg.num_parameters:,}" in card
    assert front(card).get("base_model") == (config.base_model if "/" in str(config.base_model) else None)


def test_biases_and_norm_weights_start_without_effect_and_cost_parameters():
    plain, full = LSGConfig((0,), 16, bottleneck=4), LSGConfig((0,), 16, bottleneck=4, bias=True, norm_weights=True)
    assert LSG(full).num_parameters - LSG(plain).num_parameters == 4 + 2 + 16 + 16
    fresh = LSG(full).gates["0"](torch.randn(3, 16))
    assert torch.equal(fresh, torch.full_like(fresh, 0.5))


def test_a_file_of_an_earlier_release_is_read(saved):
    config = saved / serialization.CONFIG
    content = json.loads(config.read_text())
    del content["bias"], content["norm_weights"]
    config.write_text(json.dumps(content))
    assert LSG.from_pretrained(saved).config == gates().config


def test_only_the_two_files_are_read(saved, monkeypatch):
    """A pickle of any name beside them is not touched, let alone run."""

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {saved / 'ran'}",)

    for name in ("pytorch_model.bin", "gates.bin", "gates.pt", "gates.safetensors.bin"):
        (saved / name).write_bytes(pickle.dumps(Bomb()))
    opened = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or real(path))
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("torch.load reads pickles"))
    LSG.from_pretrained(saved)
    assert opened == [serialization.WEIGHTS] and not (saved / "ran").exists()
    (saved / serialization.WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(sg.GateError, match="broken"):
        LSG.from_pretrained(saved)
    assert not (saved / "ran").exists()


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"up": None}, "gates.1.up.weight is missing"),
        ({"up": torch.zeros(2, 5)}, r"gates.1.up.weight is \(2, 5\), expected \(2, 4\)"),
        ({"side": torch.zeros(2)}, r"gates.1.side.weight is \(2,\), expected no such tensor .*strict=False"),
        ({"up": torch.full((2, 4), float("nan"))}, "gates.1.up.weight .*finite"),
        ({"up": torch.full((2, 4), float("inf"))}, "gates.1.up.weight .*finite"),
        ({"up": torch.zeros(2, 4, dtype=torch.int64)}, "gates.1.up.weight .*floating"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, tensors, words):
    change(saved, **tensors)
    with pytest.raises(sg.GateError, match=words):
        LSG.from_pretrained(saved)


def test_not_strict_ignores_unknown_tensors_only(saved):
    change(saved, side=torch.zeros(2))
    with pytest.warns(UserWarning, match="ignored gates.1.side.weight"):
        again = LSG.from_pretrained(saved, strict=False)
    assert torch.equal(again.gates["1"].up.weight, gates().gates["1"].up.weight)
    change(saved, up=None)
    with pytest.warns(UserWarning), pytest.raises(sg.GateError, match="missing"):
        LSG.from_pretrained(saved, strict=False)


def test_a_configuration_out_of_proportion_takes_no_memory(saved):
    config = saved / serialization.CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 10**12}))
    with pytest.raises(sg.GateError, match="1000000000000"):
        LSG.from_pretrained(saved)
    config.write_text("[" * 100_000)
    with pytest.raises(sg.GateError, match="no valid JSON"):
        LSG.from_pretrained(saved)


def test_a_kill_leaves_the_old_files_whole(saved, monkeypatch):
    real, count = Path.write_bytes, []

    def killed(path, content):
        count.append(path)
        if len(count) == 2:
            real(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        gates(layers=(0,)).save_pretrained(saved)
    monkeypatch.undo()
    assert LSG.from_pretrained(saved).config.layers == (1, 3)
    gates(layers=(0,)).save_pretrained(saved)
    assert LSG.from_pretrained(saved).config.layers == (0,)
    assert {path.name for path in saved.iterdir()} == FILES


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.GateError, match="cannot be written to .*file"):
        gates().save_pretrained(tmp_path / "file" / "gates")


def test_the_card_says_what_is_known_and_nothing_else(tmp_path):
    lsg = gates(base_model="llava-hf/llava-1.5-7b-hf", revision="abc", bias=True)
    lsg.save_pretrained(tmp_path / "bare")
    bare = (tmp_path / "bare" / serialization.CARD).read_text()
    head = front(bare)
    assert head["base_model"] == "llava-hf/llava-1.5-7b-hf" and head["library_name"] == "sinkgate"
    assert "license" not in head and "sinkgate" in head["tags"]
    assert "Training" not in bare and "None" not in bare and str(tmp_path) not in bare
    assert "| layers, from 0 | 1, 3 |" in bare and "revision abc" in bare and "with biases" in bare
    training = {
        "samples": 12_000,
        "epochs": 2,
        "loss_before": 1.23456,
        "loss_after": 0.5,
        "seed": None,
        "accuracy": {"count": [0.25, 0.75], "color | shape": 0.5},
    }
    lsg.save_pretrained(tmp_path / "full", license="mit", training=training)
    full = (tmp_path / "full" / serialization.CARD).read_text()
    assert front(full)["license"] == "mit"
    for row in (
        "| samples | 12,000 |",
        "| loss before | 1.235 |",
        "| accuracy, count | 0.25, 0.75 |",
        r"color \| shape",
    ):
        assert row in full
    assert "seed" not in full


@pytest.mark.parametrize(
    ("base_model", "loaded"),
    [("demo", "demo"), ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"), ("dino-smol", "path/to/dino-smol")],
)
def test_the_card_loads_a_folder_by_a_path(tmp_path, base_model, loaded):
    gates(base_model=base_model, weights="0123abcd").save_pretrained(tmp_path)
    card = (tmp_path / serialization.CARD).read_text()
    assert f'vlm = sg.load("{loaded}")' in card
    assert f"| base model | {base_model}, checksum of weights 0123abcd |" in card


def test_the_cards_code_runs(tmp_path, demo, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LSG.for_vlm(demo, [2]).save_pretrained("path/to/this/folder")
    Scene.random(Random(1)).render().save("picture.jpg")
    code = re.search(r"```python\n(.*?)```", Path("path/to/this/folder", serialization.CARD).read_text(), re.DOTALL)[1]
    exec(compile(code, serialization.CARD, "exec"), {})


def test_somebodys_own_readme_stays(saved):
    readme = saved / serialization.CARD
    gates(layers=(5,)).save_pretrained(saved)
    assert "| 5 |" in readme.read_text()
    readme.write_text(readme.read_text().replace(MARK, "my own words"))
    gates(layers=(6,)).save_pretrained(saved)
    assert "my own words" in readme.read_text() and "| 5 |" in readme.read_text()
    assert LSG.from_pretrained(saved).config.layers == (6,)


# --- the Hub


def test_a_hub_id_fetches_the_two_files(saved, monkeypatch):
    request = {}

    def fetched(source, **options):
        request.update(options, source=source)
        return str(saved)

    monkeypatch.setattr(serialization, "snapshot_download", fetched)
    again = LSG.from_pretrained("someone/gates", revision="v1", token="secret")
    assert again.config == gates().config
    assert request == {
        "source": "someone/gates",
        "revision": "v1",
        "token": "secret",
        "allow_patterns": [serialization.CONFIG, serialization.WEIGHTS],
    }
    (saved / serialization.WEIGHTS).unlink()
    with pytest.raises(sg.GateError, match="from someone/gates: gates.safetensors"):
        LSG.from_pretrained("someone/gates")


def test_a_revision_of_a_folder_is_refused(saved):
    with pytest.raises(sg.GateError, match=f"revision is 'v1', and {saved} is a folder, which has none; leave it out"):
        LSG.from_pretrained(saved, revision="v1")


def test_offline_is_one_sentence():
    with pytest.raises(sg.GateError, match="from nobody-here/no-gates: .*cannot be reached.*hf download") as caught:
        LSG.from_pretrained("nobody-here/no-gates")
    assert "\n" not in str(caught.value)
    for source in ("nowhere", "a/b/c", Path("nobody-here/no-gates"), "../gates"):
        with pytest.raises(sg.GateError, match="no such folder; a Hub id reads owner/name"):
            LSG.from_pretrained(source)


class FakeHub:
    """HfApi, of which nothing leaves this process."""

    calls: list = []  # noqa: RUF012

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))

        class Url(str):
            repo_id = "someone/gates"

        return Url("https://huggingface.co/someone/gates")

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        content = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.calls.append(("upload", repo_id, revision, content))


def test_push_sends_what_save_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    url = gates().push_to_hub("gates", private=True, revision="next", token="secret", license="mit")
    assert url == "https://huggingface.co/someone/gates"
    token, create, (_, repo, revision, content) = FakeHub.calls
    assert token == ("token", "secret") and create == ("create", "gates", {"private": True, "exist_ok": True})
    assert (repo, revision) == ("someone/gates", "next") and content.keys() == FILES
    for name, value in content.items():
        (tmp_path / name).write_bytes(value)
    assert LSG.from_pretrained(tmp_path).config == gates().config
    card = content[serialization.CARD].decode()
    assert front(card)["license"] == "mit" and 'from_pretrained("someone/gates")' in card


def test_a_refused_push_is_one_sentence(monkeypatch):
    class Refusing(FakeHub):
        def create_repo(self, repo_id, **options):
            raise errors.HFValidationError(f"Repo id must be in the form 'namespace/repo_name': '{repo_id}'.")

    monkeypatch.setattr(serialization, "HfApi", Refusing)
    with pytest.raises(sg.GateError, match="cannot be sent to a/b/c: Repo id"):
        gates().push_to_hub("a/b/c")


# --- the model


def test_another_revision_is_a_warning(monkeypatch):
    vlm = sg.load(tiny_llava("siglip"))
    vlm.model.config._commit_hash = "one"
    lsg = LSG.for_vlm(vlm, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lsg.check_fits(vlm)
        vlm.model.config._commit_hash = None
        lsg.check_fits(vlm)
        vlm.model.config._commit_hash = "two"
        lsg.check_fits(vlm, any_model=True)
    with pytest.warns(UserWarning, match="revision one of .*this is two"):
        lsg.check_fits(vlm)


def test_parameters_are_printed_as_in_peft(capsys):
    lsg = gates(layers=(1, 3), width=16)
    lsg.print_trainable_parameters()
    assert capsys.readouterr().out == lsg.trainable_parameters() + "\n"
    assert lsg.trainable_parameters().startswith("144 trainable parameters, 72 a gate")
