"""Checksums of weights: the same wherever and however a checkpoint is stored, another for other weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import shaken, tiny_llava

import sinkgate as sg
from sinkgate.methods import Fixed, LoRA, Reweight
from sinkgate.methods.registry import read_method
from sinkgate.models.weights import checksum
from sinkgate.studies.provenance import facts_of

FILE = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """Two models of one architecture in folders of one name."""
    folders = [tmp_path_factory.mktemp(f"run{seed}") / "checkpoint-1000" for seed in range(2)]
    for seed, folder in enumerate(folders):
        for part in tiny_llava("clip", seed=seed):
            part.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def models(checkpoints) -> list[sg.VLM]:
    return [sg.load(folder, check=False) for folder in checkpoints]


def moved(folder, to) -> Path:
    return Path(shutil.copytree(folder, to))


def test_names_of_files_shards_and_order_do_not_count(checkpoints, tmp_path):
    first = checksum(checkpoints[0])
    assert first != checksum(checkpoints[1]) and checksum(moved(checkpoints[0], tmp_path / "elsewhere")) == first
    model, _ = tiny_llava("clip")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2 and checksum(tmp_path / "shards") == first
    tensors = load_file(checkpoints[0] / FILE)
    (tmp_path / "turned").mkdir()
    save_file(dict(reversed(tensors.items())), tmp_path / "turned" / FILE, metadata={"written": "again"})
    assert checksum(tmp_path / "turned") == first
    assert checksum(tmp_path) is None


def test_any_tensor_counts_with_name_dtype_and_content(checkpoints, tmp_path):
    """Also in the middle of a file, where a fine-tuned checkpoint differs from its base."""
    tensors = load_file(checkpoints[0] / FILE)
    name = sorted(tensors)[len(tensors) // 2]
    variants = {
        "end": {name: torch.cat([tensors[name].flatten()[:-1], torch.ones(1)]).view_as(tensors[name])},
        "middle": {name: tensors[name] + 1},
        "dtype": {name: tensors[name].half()},
        "name": {name: None, "other": tensors[name]},
    }
    checksums = {checksum(checkpoints[0])}
    for variant, change in variants.items():
        (tmp_path / variant).mkdir()
        content = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(content, tmp_path / variant / FILE)
        checksums.add(checksum(tmp_path / variant))
    assert len(checksums) == 1 + len(variants)


def test_files_of_other_formats_count_with_samples(tmp_path):
    for folder, content in (("a", {"w": torch.zeros(99)}), ("b", {"w": torch.ones(99)})):
        (tmp_path / folder).mkdir()
        torch.save(content, tmp_path / folder / "pytorch_model.bin")
    assert None is not checksum(tmp_path / "a") != checksum(tmp_path / "b")


def test_only_what_is_loaded_counts(checkpoints, tmp_path):
    folder, first = moved(checkpoints[0], tmp_path / "model"), checksum(checkpoints[0])
    for name in ("pytorch_model.bin", "consolidated.safetensors", "training_args.bin"):
        (folder / name).write_bytes(b"not read where model.safetensors is")
    assert checksum(folder) == first
    save_file({"lora_A": torch.ones(2)}, folder / "adapter_model.safetensors")
    assert checksum(folder) != first


def test_a_model_knows_its_files_however_it_was_loaded(checkpoints, models, tmp_path, monkeypatch):
    first = checksum(checkpoints[0])
    half = sg.load(checkpoints[0], dtype="bfloat16", check=False)
    handed = sg.load((models[0].model, models[0].processor), check=False)
    assert models[0].weights_checksum == half.weights_checksum == handed.weights_checksum == first
    assert sg.load(tiny_llava("clip"), check=False).weights_checksum is None
    assert facts_of(models[0])["revision"] == first
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--someone--tiny", "a" * 40
    moved(checkpoints[0], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    fetched = sg.load("someone/tiny", check=False)
    assert fetched.weights_checksum == first
    assert facts_of(fetched)["revision"] == sg.LSG.for_vlm(fetched, [1]).config.revision == commit
    gone = moved(checkpoints[0], tmp_path / "gone")
    vlm = sg.load(gone, check=False)
    shutil.rmtree(gone)
    assert vlm.weights_checksum is None


# --- what was trained on a model


def lsg_of(vlm, folder):
    shaken(sg.LSG.for_vlm(vlm, [1])).save_pretrained(folder)


def lora_of(vlm, folder):
    LoRA.for_vlm(vlm, 1).save_pretrained(folder)


def reweight_of(vlm, folder):
    Reweight.for_vlm(vlm).save_pretrained(folder)


LEARNED = [lsg_of, lora_of, reweight_of]


@pytest.mark.parametrize("save", LEARNED)
def test_folders_of_one_name_are_told_apart(models, tmp_path, save):
    save(models[0], tmp_path / "learned")
    read_method(tmp_path / "learned", models[0])
    with pytest.raises(
        sg.GateError, match="trained on checkpoint-1000 .*other weights under the same name.*--any-model"
    ):
        read_method(tmp_path / "learned", models[1])
    read_method(tmp_path / "learned", models[1], any_model=True)


@pytest.mark.parametrize("save", LEARNED)
def test_the_same_weights_elsewhere_are_accepted(checkpoints, models, tmp_path, save):
    save(models[0], tmp_path / "learned")
    elsewhere = sg.load(moved(checkpoints[0], tmp_path / "renamed"), check=False)
    read_method(tmp_path / "learned", elsewhere)


@pytest.mark.parametrize("save", LEARNED)
def test_without_a_checksum_the_name_decides(models, tmp_path, save):
    """As for models that were handed in, and in files of earlier releases."""
    handed = sg.load(tiny_llava("clip"), check=False)
    save(handed, tmp_path / "learned")
    read_method(tmp_path / "learned", handed)
    with pytest.raises(sg.GateError, match=f"trained on {handed.name}, this is checkpoint-1000; say any_model"):
        read_method(tmp_path / "learned", models[0])
    read_method(tmp_path / "learned", models[0], any_model=True)


def test_gates_of_an_earlier_release_are_accepted_by_name_with_a_warning(models, tmp_path):
    lsg_of(models[0], tmp_path)
    config = json.loads((tmp_path / "gate_config.json").read_text())
    assert config.pop("weights") == models[0].weights_checksum
    (tmp_path / "gate_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="no checksum of weights.*folder is called checkpoint-1000"):
        read_method(tmp_path, models[0])


def test_fixed_gates_of_another_model_where_allowed(models, tmp_path):
    sg.Gates(torch.ones(3, 3), "somebody/else").save(tmp_path / "gates.json")
    with pytest.raises(sg.GateError, match="made for somebody/else.*any_model=True"):
        read_method(tmp_path / "gates.json", models[0])
    fixed = read_method(tmp_path / "gates.json", models[0], any_model=True)
    assert isinstance(fixed, Fixed) and fixed.first_layer(models[0]) == 3
    sg.Gates(torch.ones(4, 3)).save(tmp_path / "gates.json")
    with pytest.raises(sg.GateError, match="4 layers"):
        read_method(tmp_path / "gates.json", models[0], any_model=True)


def test_the_width_decides_in_any_case(models, demo, tmp_path):
    reweight_of(models[0], tmp_path / "reweight")
    with pytest.raises(sg.GateError, match="32 wide, those of demo are 128"):
        read_method(tmp_path / "reweight", demo, any_model=True)
