"""Models as users name and store them: loaded, or refused in one sentence that says what to do."""

import importlib.util
import json
import re
import shutil
import tomllib
import warnings
from pathlib import Path
from random import Random
from types import SimpleNamespace

import httpx
import pytest
import torch
from accelerate import dispatch_model
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from tiny import noise_image, some_sinks, tiny_llava
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    Florence2Config,
    FuyuConfig,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    PreTrainedTokenizerFast,
    T5Config,
)
from zoo import ZOO

import sinkgate as sg
from sinkgate.demo.train import pick_device
from sinkgate.models import checks, loading
from sinkgate.models.checks import WRAPPERS, check_memory, check_model
from sinkgate.models.describe import describe
from sinkgate.models.load_errors import in_words
from sinkgate.models.loading import KNOWN_MODELS, best_device
from sinkgate.models.token_map import measure_tokens
from sinkgate.models.vlm import VLM
from sinkgate.models.weights import size_on_disk
from sinkgate.scenes.scene import Scene

QUESTION = "What color is the circle?"
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A tiny LLaVA as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    for part in tiny_llava("clip"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """An empty local cache of the Hub, and how to put the tiny LLaVA into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def hold(name: str, commit: str = "a" * 40, branch: str = "main") -> None:
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        shutil.copytree(saved, repository / "snapshots" / commit)

    return hold


def refused(source, *words, **options) -> str:
    """Assert that ``load`` refuses in one sentence with these words in it."""
    with pytest.raises(sg.UnsupportedModelError) as caught:
        sg.load(source, **options)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message and len(message) < 400, message
    for word in words:
        assert word in message, message
    return message


def gates_of(vlm):
    return sg.Gates.ones(vlm).set("v_sink", 0.3).set("rest", 0.5, layers=[1])


# --- what loads


def test_a_saved_folder_loads_offline_and_answers_the_same(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    again = sg.load(tmp_path)
    assert again.name == tmp_path.name
    image = noise_image(3, (40, 30))
    expected = tiny.predict(tiny.prompt(image, QUESTION)).probabilities
    assert torch.allclose(again.predict(again.prompt(image, QUESTION)).probabilities, expected, atol=1e-6)


def test_a_folder_laid_out_as_llava_1_5_loads_without_torchvision(tmp_path):
    """The files that llava-hf/llava-1.5-7b-hf has: an old preprocessor config and no chat template."""
    model, processor = tiny_llava("clip")
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 28},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    joint = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    for name, content in (("preprocessor", images), ("processor", {"image_token": "<image>", **joint})):
        config = {"processor_class": "LlavaProcessor", **content}
        (tmp_path / f"{name}_config.json").write_text(json.dumps(config))
    vlm = sg.load(tmp_path)
    prompt = vlm.prompt(noise_image(1, (50, 30)), QUESTION)
    assert vlm.processor.chat_template is None
    assert prompt.grid == (4, 4) and prompt.sheets[0].box == pytest.approx((10, 0, 40, 30), abs=0.5)
    text = vlm.tokenizer.decode(prompt.inputs["input_ids"][0, prompt.visual[-1] + 1 :])
    assert text.startswith("what color is the circle")  # the text of LLaVA 1.5 around it is not in this vocabulary


QWEN_IMAGES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096}}
IMAGE_TEXT = "{% for part in messages[0].content %}{{ part.text if part.type == 'text' else IMAGE }}{% endfor %}"
VIDEO_FAMILIES = {  # image processor as the Hub names it, its settings, those of the whole, the place of an image
    "qwen2_vl": ("Qwen2VLImageProcessor", QWEN_IMAGES, {}, "<|image_pad|>"),
    "qwen3_vl": ("Qwen2VLImageProcessorFast", QWEN_IMAGES, {}, "<|image_pad|>"),
    "llava_onevision": (
        "LlavaOnevisionImageProcessor",
        {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]]},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        "<image>",
    ),
}
PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "llava_onevision": "LlavaOnevisionProcessor",
}


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_processors_with_a_video_part_take_images_without_torchvision(family, tmp_path):
    """The files that such models have on the Hub."""
    kind, images, whole, token = VIDEO_FAMILIES[family]
    words = {f"w{number}": number for number in range(100)}
    marks = {token: 100, token.replace("image", "video"): 101, "<|vision_start|>": 102, "<|vision_end|>": 103}
    core = Tokenizer(models.WordLevel({**words, **marks}, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="w0", unk_token="w1", additional_special_tokens=list(marks)
    )
    tokenizer.save_pretrained(tmp_path)
    for name, content in (
        ("preprocessor", {"image_processor_type": kind, **images}),
        ("processor", {"processor_class": PROCESSORS[family], **whole}),
    ):
        (tmp_path / f"{name}_config.json").write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text(IMAGE_TEXT.replace("IMAGE", repr(token)))
    ZOO[family].model().save_pretrained(tmp_path)
    vlm = sg.load(tmp_path)
    assert type(vlm.processor).__name__ == PROCESSORS[family]
    assert hasattr(vlm.processor, "video_processor") == HAS_TORCHVISION
    prompt = vlm.prompt(noise_image(2, (48, 32)), "w5 w6")
    assert vlm.prompter.rule == ZOO[family].rule and prompt.token_of_patch is not None
    vlm.processor.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert saved["processor_class"] == PROCESSORS[family]


def test_a_hub_id_loads_from_the_local_cache(hub):
    hub("someone/tiny-llava")
    vlm = sg.load("someone/tiny-llava")
    assert vlm.name == "someone/tiny-llava"
    hub("someone/tiny-llava", commit="b" * 40, branch="v2")
    assert sg.load("someone/tiny-llava", revision="v2", local_files_only=True, check=False).name == vlm.name
    assert sg.load("someone/tiny-llava", revision="b" * 40, check=False).name == vlm.name
    refused("someone/tiny-llava", "not in the local cache", revision="v3")


def test_a_known_name_stands_for_its_hub_id_in_any_case(hub):
    hub("llava-hf/llava-1.5-7b-hf")
    for name in ("llava-1.5-7b", "LLaVA-1.5-7B"):
        assert sg.load(name, check=False).name == "llava-hf/llava-1.5-7b-hf"


def test_a_folder_goes_before_a_known_name(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "llava-1.5-7b")
    monkeypatch.chdir(tmp_path)
    assert sg.load("llava-1.5-7b", check=False).name == "llava-1.5-7b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sg.load("~/llava-1.5-7b", check=False).name == "llava-1.5-7b"


def test_known_models_are_hub_ids():
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", known["id"]) for known in KNOWN_MODELS.values())
    assert len({known["id"] for known in KNOWN_MODELS.values()}) == len(KNOWN_MODELS)
    assert all(name == name.lower() and known.keys() == {"id", "note"} for name, known in KNOWN_MODELS.items())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-5), ("float16", 0.01), ("bfloat16", 0.05)])
def test_every_dtype_passes_its_checks_and_is_gated_alike(demo, dtype, tolerance):
    other = sg.load("demo", dtype=dtype)
    assert str(other.model.dtype) == f"torch.{dtype}"
    image, gates = Scene.random(Random(71)).render(), sg.Gates.ones(demo).set("v_sink", 0.0, layers=2)
    prompt = demo.prompt(image, "How many objects are there?")
    sinks = some_sinks(demo, prompt)  # the same tokens for both: near a threshold, rounding decides who is a sink
    same = other.prompt(image, prompt.question)
    assert torch.equal(measure_tokens(other.adapter, same.inputs), torch.arange(64))
    expected, got = demo.predict(prompt, gates, sinks), other.predict(same, gates, sinks)
    assert (expected.probabilities - got.probabilities).abs().max() < tolerance
    assert torch.allclose(got.attention.sum(-1).float(), torch.ones(()), atol=1e-3)
    assert other.answer(same, gates, sinks).text == demo.answer(prompt, gates, sinks).text
    assert "V-sink" in sg.find_sinks(other, same).summary()


def test_dtype_and_attention_are_the_checkpoints_own_unless_said(saved):
    half = sg.load(saved, dtype=torch.bfloat16, attn_implementation="eager", check=False)
    assert half.model.dtype == torch.bfloat16 and half.model.config.text_config._attn_implementation == "eager"
    plain = sg.load(saved, dtype="auto", check=False)
    assert plain.model.dtype == torch.float32 and plain.model.config.text_config._attn_implementation == "sdpa"
    assert sg.load("demo", check=False).model.dtype == torch.float32, "stored in bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_without_instructions_on_this_cpu_is_warned_of(saved, dtype, monkeypatch):
    operator = f"_is_mkldnn_{'bf16' if dtype == 'bfloat16' else 'fp16'}_supported"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, operator, lambda supported=supported: supported)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sg.load(saved, dtype=dtype, check=False)
            sg.load(saved, dtype="float32", check=False)
        texts = [str(each.message) for each in caught if "instructions" in str(each.message)]
        assert len(texts) == (not supported)
        assert all(f"is in {dtype}" in text and "dtype='float32'" in text for text in texts)
        assert not loading.without_instructions(getattr(torch, dtype), torch.device("cuda"))


def test_the_fast_dtype_is_bfloat16_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for supported, fast in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert loading.fast_dtype(torch.device("cpu")) == fast
        assert loading.fast_dtype(torch.device("cuda")) == torch.bfloat16


# --- spread over devices


def spread(**places) -> dict[str, str]:
    """A device map of the tiny LLaVA: everything on the CPU but what is named, by its last words."""
    layers = [f"language_model.layers.{number}" for number in range(3)]
    text = ["language_model.embed_tokens", *layers, "language_model.norm", "language_model.rotary_emb"]
    whole = {f"model.{name}": "cpu" for name in ("vision_tower", "multi_modal_projector", *text)} | {"lm_head": "cpu"}
    for word, device in places.items():
        (name,) = [name for name in whole if name.endswith(word.replace("__", "."))]
        whole[name] = device
    return whole


def assert_gated_alike(whole, parts):
    """The same answer, word for word, the same rows of attention, and the gates do move them."""
    runs = []
    for vlm in (whole, parts):
        prompt = vlm.prompt(noise_image(3, (40, 30)), QUESTION)
        sinks = some_sinks(vlm, prompt)
        runs.append([vlm.answer(prompt, gates, sinks, max_new_tokens=4) for gates in (gates_of(vlm), None)])
    (expected, plain), (got, _) = runs
    assert torch.allclose(got.probabilities, expected.probabilities, atol=1e-6)  # files are mapped unaligned
    assert torch.allclose(got.attention, expected.attention, atol=1e-6) and got.text == expected.text
    assert not torch.allclose(plain.probabilities, expected.probabilities, atol=1e-3)


DEVICE_MAPS = {
    "auto": "auto",
    "one device": "cpu",
    "layers on disk": spread(layers__0="disk", layers__2="disk"),
    "projector and head on disk": spread(multi_modal_projector="disk", lm_head="disk"),
}


@pytest.mark.parametrize("device_map", DEVICE_MAPS)
def test_gates_are_the_same_on_a_model_in_parts(saved, device_map):
    parts = sg.load(saved, device_map=DEVICE_MAPS[device_map])
    offloaded = any(parameter.is_meta for parameter in parts.model.parameters())
    assert offloaded == ("disk" in device_map)
    assert_gated_alike(sg.load(saved), parts)


def test_gates_are_the_same_on_a_dispatched_model(saved, tmp_path):
    """A model with accelerate's hooks, handed in as it is."""
    whole = sg.load(saved)
    model = AutoModelForImageTextToText.from_pretrained(saved)
    dispatched = dispatch_model(
        model, spread(layers__1="disk"), main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    parts = sg.load((dispatched, whole.processor))
    assert hasattr(parts.attention[1], "_hf_hook")
    assert_gated_alike(whole, parts)


def test_a_map_that_offloads_the_first_module_is_refused(saved):
    refused(
        saved, "offloads its first module", "keep the first one on a device", device_map=spread(vision_tower="disk")
    )


def test_options_reach_transformers_and_bitsandbytes(saved, monkeypatch):
    received = {}

    def from_pretrained(source, **options):
        received.update(options)
        raise OSError("far enough")

    monkeypatch.setattr(loading, "find_spec", lambda name: name == "bitsandbytes")
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    refused(saved, "far enough", quantize="4bit", dtype="bfloat16")
    config = received["quantization_config"]
    assert (
        config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_compute_dtype == torch.bfloat16
    )
    refused(saved, "far enough", quantize="8bit", device_map="auto")
    assert received["quantization_config"].load_in_8bit and received["device_map"] == "auto"
    refused(saved, "far enough", device="cpu", local_files_only=True, trust_remote_code=True)
    assert received["quantization_config"] is None and received["device_map"] == {"": torch.device("cpu")}
    assert received["local_files_only"] and received["trust_remote_code"]


# --- what is refused


def test_names_that_are_no_model(tmp_path):
    refused("lava-1.5-7B", "no model and no folder is called 'lava-1.5-7B'", "near it: llava-1.5-7b", "owner/name")
    refused("paligemma", "near it: paligemma-3b")
    refused("xyz", "`sinkgate models` lists")
    for missing in (tmp_path / "nowhere", "./nowhere", "~/no/where", "a/b/c", "nowhere/", str(tmp_path / "nowhere")):
        refused(missing, f"the folder {missing} does not exist")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path / "model.safetensors", "is a file; give the folder")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlamaConfig, "(llama) takes no images together with text"),
        (CLIPConfig, "(clip) takes no images together with text"),
        (T5Config, "(t5) is an encoder-decoder"),
        (Florence2Config, "(florence2) is an encoder-decoder"),
        (FuyuConfig, "(fuyu) has no vision encoder of its own"),
    ],
)
def test_models_of_another_kind(config, words, tmp_path):
    config().save_pretrained(tmp_path)
    refused(tmp_path, words, "`sinkgate models` lists some")


def test_a_text_model_handed_in_is_refused(saved):
    text = SimpleNamespace(config=LlamaConfig(name_or_path="llama"))
    refused((text, None), "llama (llama) takes no images")


def test_architectures_that_transformers_does_not_know(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    refused(tmp_path, "has no class for its architecture", "pip install -U transformers", "-hf")
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    refused(tmp_path, "brings code of its own", "trust_remote_code=True")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not a valid JSON file")


def test_folders_with_files_missing_or_broken(folder):
    def without(*names):
        contents = {name: (folder / name).read_bytes() for name in names}
        for name in names:
            (folder / name).unlink()
        return contents

    def put_back(contents):
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    contents = without("config.json")
    refused(folder, "holds no config.json", "`hf download`")
    put_back(contents)
    contents = without("processor_config.json")
    refused(folder, "the processor of copy cannot be loaded", "save the model's own beside its weights")
    put_back(contents)
    contents = without("tokenizer.json", "tokenizer_config.json")
    refused(folder, "the processor of copy cannot be loaded", "tokenizer", "save the model's own beside its weights")
    put_back(contents)
    contents = without("model.safetensors")
    refused(folder, "no file named model.safetensors")
    for content in (contents["model.safetensors"][:5000], b"version https://git-lfs.github.com/spec/v1\n"):
        (folder / "model.safetensors").write_bytes(content)
        refused(folder, "a file of its weights is broken or cut short; copy or download it again")
    put_back(contents)
    sg.load(folder)


@pytest.fixture
def rewrite(folder):
    """Replace the weights of the copy by those that a function of its tensors returns."""
    path = folder / "model.safetensors"
    tensors = load_file(path)

    def write(change) -> Path:
        save_file(change(tensors), path, metadata={"format": "pt"})
        return folder

    return write


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("vision_tower", ("55 tensors of copy are missing", "model.vision_tower.* (55)")),
        ("multi_modal_projector", ("4 tensors of copy are missing", "model.multi_modal_projector.* (4)")),
        ("lm_head", ("1 tensors of copy are missing", "lm_head.weight")),
        ("language_model.model.layers.1.mlp", ("3 tensors of copy are missing", "model.language_model.* (3)")),
    ],
)
def test_a_part_without_weights_is_refused(rewrite, part, words):
    """transformers initializes it at random and only logs a table."""
    folder = rewrite(lambda tensors: {name: value for name, value in tensors.items() if part not in name})
    refused(folder, *words, "copy or download the whole checkpoint")
    refused(folder, *words, check=False)


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_weights_of_a_wrapped_model_are_refused(rewrite, prefix):
    folder = rewrite(lambda tensors: {prefix + name: value for name, value in tensors.items()})
    refused(folder, "89 tensors of copy are missing", f"names begin with {prefix}", "save the model inside the wrapper")


def test_weights_of_other_names_are_refused_with_an_example(rewrite):
    folder = rewrite(lambda tensors: {name.replace("vision_tower", "eye"): value for name, value in tensors.items()})
    refused(folder, "55 tensors of copy are missing", "55 tensors of other names, such as eye.")


def test_tensors_of_another_size_are_named(rewrite):
    folder = rewrite(lambda tensors: {n: v[:-1].clone() if "lm_head" in n else v for n, v in tensors.items()})
    refused(folder, "lm_head.weight is (97, 32) in the file, expected (98, 32)", "from the same checkpoint")


def test_tied_tensors_are_not_missing(tmp_path):
    model, processor = tiny_llava("clip")
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    vlm = sg.load(tmp_path)
    assert vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight


@pytest.mark.parametrize("config", [False, True])
def test_a_lone_adapter_is_refused(folder, config):
    """Files of PEFT and its trainers: an adapter, with or without the base model's config."""
    peft = pytest.importorskip("peft")
    model, _ = tiny_llava("clip")
    model.name_or_path = model.config._name_or_path = "llava-hf/llava-1.5-7b-hf"
    adapter = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapter.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    if not config:
        (folder / "config.json").unlink()
    refused(folder, "copy is a PEFT adapter for llava-hf/llava-1.5-7b-hf", "merge_and_unload()", "(model, processor)")


def test_an_adapter_beside_its_base_model_acts(folder, monkeypatch):
    peft = pytest.importorskip("peft")
    plain = sg.load(folder)
    adapter = peft.get_peft_model(tiny_llava("clip")[0], peft.LoraConfig(target_modules=["v_proj"]))
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapter.save_pretrained(folder)
    both, image = sg.load(folder), noise_image(3)
    runs = [vlm.predict(vlm.prompt(image, QUESTION)).probabilities for vlm in (plain, both)]
    assert not torch.allclose(*runs, atol=1e-3)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    refused(folder, "holds a PEFT adapter beside its weights", "pip install peft")


def test_no_network(hub):
    refused(
        "llava-1.5-7b",
        "not in the local cache and the Hub cannot be reached",
        "`hf download llava-hf/llava-1.5-7b-hf`",
    )
    refused("no/where", "`hf download no/where`", local_files_only=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (GatedRepoError, ("is gated: accept its terms on https://huggingface.co/some/model", "`hf auth login`")),
        (RepositoryNotFoundError, ("the Hub has no public model of that name", "`hf auth login`")),
        (RevisionNotFoundError, ("no such revision", "https://huggingface.co/some/model/commits/main")),
    ],
)
def test_what_the_hub_says_no_to(hub, monkeypatch, kind, words):
    answer = httpx.Response(403, request=httpx.Request("HEAD", "https://huggingface.co"))

    def no(*args, **options):
        raise kind("Access to it is restricted.\nSee the page.", response=answer)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", no)
    refused("some/model", *words)


def test_too_large_a_model_is_refused_before_it_is_read(monkeypatch):
    """LLaVA-1.5-7B, of which only the config is needed."""
    cpu, config = torch.device("cpu"), LlavaConfig()
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=10e9))
    for options, size in (({}, "14.1 GB (7.1 billion parameters, float16)"), ({"dtype": torch.float32}, "28.3 GB")):
        with pytest.raises(sg.UnsupportedModelError) as caught:
            check_memory(config, "llava", device=cpu, **options)
        for words in (size, "10.0 GB are free on cpu", "quantize", "device_map", "smaller model"):
            assert words in str(caught.value)
    check_memory(config, "llava", device=cpu, quantize="8bit")
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=5e9))
    check_memory(config, "llava", device=cpu, quantize="4bit")
    with pytest.raises(sg.UnsupportedModelError, match=r"7.1 GB \(7.1 billion parameters, 8bit\)"):
        check_memory(config, "llava", device=cpu, quantize="8bit")
    config.quantization_config = {"quant_method": "fp8"}
    check_memory(config, "llava", device=cpu)


def test_parameters_are_counted_only_where_the_files_are_larger_than_the_free_memory(saved, monkeypatch):
    counted = []
    count = AutoModelForImageTextToText.from_config
    monkeypatch.setattr(AutoModelForImageTextToText, "from_config", lambda config: counted.append(1) or count(config))
    sg.load(saved, check=False)
    assert not counted
    bound = 4 * (Path(saved) / "model.safetensors").stat().st_size  # float32, in a file of float32
    for free, times in ((bound, 0), (bound - 1, 1)):
        monkeypatch.setattr(checks.psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        sg.load(saved, check=False)
        assert len(counted) == times


def test_files_of_which_one_is_missing_have_no_size(saved, tmp_path):
    shards = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "model-1.safetensors").write_bytes(bytes(100))
    assert size_on_disk(tmp_path) == size_on_disk(tmp_path / "nothing") == 0
    (tmp_path / "model-2.safetensors").write_bytes(bytes(10))
    assert size_on_disk(tmp_path) == 110
    assert size_on_disk(Path(saved)) == (Path(saved) / "model.safetensors").stat().st_size


def test_load_looks_at_the_memory_of_one_device_only(saved, monkeypatch):
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    refused(saved, "the weights of tiny need", "are free on cpu")
    sg.load(saved, device_map=spread(layers__1="disk"), check=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
    ],
)
def test_memory_that_runs_out_is_said(saved, monkeypatch, error):
    def from_pretrained(source, **options):
        raise error

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    refused(saved, "not enough memory", "quantize", "device_map", "smaller model")


def test_options_that_cannot_be(saved):
    refused("demo", "cannot be put on nowhere", device="nowhere")
    if not torch.cuda.is_available():
        refused("demo", "cannot be put on cuda", device="cuda")
    refused("demo", "no dtype is called 'huge'", "bfloat16", dtype="huge")
    refused("demo", "no dtype is called 'int8'", dtype=torch.int8)
    refused("demo", "expected sdpa, eager, flash_attention_2", attn_implementation="no_such_attention")
    refused("demo", "expected sdpa, eager, flash_attention_2", attn_implementation="paged|eager")
    if importlib.util.find_spec("flash_attn") is None:
        refused("demo", "the flash kernel is not installed", "sdpa", attn_implementation="flash_attention_2")
    if importlib.util.find_spec("kernels") is None:
        refused("demo", "pip install -U kernels", "sdpa", attn_implementation="kernels-community/flash-attn2")
    refused("demo", "expected 4bit or 8bit", quantize="2bit")
    refused("demo", "give one of them", device="cpu", device_map="auto")
    refused(saved, "found nonsense", device_map="nonsense")
    for source, what in (("demo-large", "part of this package"), (saved, "a folder"), (str(saved), "a folder")):
        refused(source, f"revision is 'v1', and {source} is {what}", "leave it out, or load by a Hub id", revision="v1")
    refused(tiny_llava("clip"), "is taken as it is", device="cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="a machine without MPS shows that it is tried")
def test_auto_takes_whatever_accelerator_torch_has(monkeypatch):
    assert sg.load("demo", device="auto", check=False).device == best_device()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    assert best_device() == pick_device("auto") == torch.device("mps")
    refused("demo", "cannot be put on auto", "MPS", device="auto")
    refused("demo", "cannot be put on the accelerator", "MPS")
    assert sg.load("demo", device="cpu", check=False).device.type == "cpu"


def test_missing_packages_are_named(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    refused(saved, "pip install -U bitsandbytes", quantize="4bit")
    monkeypatch.setattr("transformers.integrations.accelerate.is_accelerate_available", lambda: False)
    refused(saved, "pip install accelerate", device_map="auto")
    for message in (  # word for word what transformers says
        "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`.",
        "\nPixtralProcessor requires the Torchvision library but it was not found in your environment. Check out",
        "some/model requires `torchvision` to be installed. Please install `torchvision` and try again.",
    ):
        with (
            pytest.raises(sg.UnsupportedModelError, match=r'run `pip install "sinkgate\[vision\]"`$'),
            in_words("it cannot be loaded", "some/model"),
        ):
            raise ImportError(message)


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is installed")
def test_a_processor_that_needs_torchvision_says_so(folder):
    (folder / "processor_config.json").write_text('{"processor_class": "PixtralProcessor"}')
    Mistral3Config().save_pretrained(folder)
    refused(folder, "the processor of copy cannot be loaded", 'pip install "sinkgate[vision]"')


def test_torchvision_is_in_the_vision_extra_only():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    holding = [name for name, lines in extras.items() if any("torchvision" in line for line in lines)]
    assert holding == ["vision"] and not any("torchvision" in line for line in project["dependencies"])


def test_errors_of_ours_pass_through_as_they_are():
    with pytest.raises(sg.PromptError, match="^as it is$"), in_words("it cannot be loaded", "some/model"):
        raise sg.PromptError("as it is")


# --- the checks


def test_a_wrong_processor_is_refused():
    model, processor = tiny_llava("siglip")
    processor.image_processor.size = {"height": 14, "width": 14}
    with pytest.raises(sg.UnsupportedModelError, match="14 x 14 pixels.*28"):
        sg.load((model, processor))


def fresh() -> VLM:
    return sg.load(tiny_llava("clip"), check=False)


def test_a_layer_that_is_not_seen_fails_the_check():
    vlm, other = fresh(), fresh()
    vlm.attention.append(other.attention[0])
    with pytest.raises(sg.UnsupportedModelError, match="seen in 3 of 4 layers.*attn_implementation='eager'"):
        check_model(vlm)


def test_numbers_that_overflow_fail_the_check():
    vlm = fresh()
    vlm.attention[1].q_proj.weight.data.fill_(torch.nan)
    with pytest.raises(sg.UnsupportedModelError, match="do not sum to one.*dtype='float32'"):
        check_model(vlm)


def test_layers_that_do_not_read_the_image_fail_the_check():
    vlm = fresh()
    for attention in vlm.attention:
        attention.o_proj.weight.data.zero_()
    with pytest.raises(sg.UnsupportedModelError, match="does not move the next-token distribution"):
        check_model(vlm)


def test_a_prompt_that_cannot_run_fails_the_check():
    vlm = fresh()
    vlm.processor.image_processor.image_mean = [0.5]
    with pytest.raises(sg.UnsupportedModelError, match="fails on a small prompt: .*; load the model's own processor"):
        check_model(vlm)


# --- the facts


@pytest.mark.parametrize(
    ("family", "facts"),
    [
        ("llava", {"patches": "each becomes one visual token", "features": "the output of layer 1 of 0 to 2"}),
        ("gemma3", {"patches": "2 x 2 neighbours become one visual token", "gated_layers": "all 3"}),
        ("qwen2_vl", {"patches": "2 x 2 neighbours, put together by the processor, become one visual token"}),
        ("idefics2", {"v_sinks": "patches can be named, visual tokens cannot, since each mixes patches"}),
        ("blip-2", {"image_encoded": "in every call", "patches": "every visual token gathers from many"}),
        ("got_ocr2", {"v_sinks": "cannot be named, since the vision encoder cannot be looked into"}),
        ("lfm2_vl", {"gated_layers": "2 of 3, those that attend to the image: 1, 2"}),
        ("mllama", {"gated_layers": "2 of 4, those that attend to the image: 1, 3", "image_encoded": "once a prompt"}),
    ],
)
def test_the_facts_of_a_model(family, facts):
    vlm = VLM(ZOO[family].model(), None, family)
    description = describe(vlm, vlm.read(ZOO[family].sample()))
    assert {name: description[name] for name in facts} == facts
    assert description["model"] == family and description["device"] == "cpu" and "\n" not in json.dumps(description)
    assert ("cross" in vlm.adapter.__class__.__name__.lower()) == ("only the attention" in description["l_sinks"])
