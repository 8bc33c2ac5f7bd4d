"""The demo model's training from a pretrained language model, at tiny size."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from sinkgate.demo import pretrained
from sinkgate.demo.build import END, build_tokenizer
from sinkgate.errors import UnsupportedModelError


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A random LLaMA of six layers with a word-level tokenizer that lacks the demo's special tokens."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = build_tokenizer()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_scene_a_step(monkeypatch):
    monkeypatch.setattr(pretrained.Answerer, "examine", lambda self: {})


def train(out, language):
    pretrained.main(
        out, str(language), layers=5, answer_steps=2, grounding_steps=4, answer_batch=1, grounding_batch=1, device="cpu"
    )
    return load_file(out / "model" / "model.safetensors")


def test_layers_and_words_are_the_pretrained_ones(language):
    tokenizer = build_tokenizer()
    small = pretrained.load(check=False).model.model.vision_tower
    model = pretrained.build_pretrained(tokenizer, language, small, layers=4)
    whole, pieces = pretrained.load_language_model(language)
    own, source = model.model.language_model.state_dict(), whole.model.state_dict()
    copied = [name for name in own if name != "embed_tokens.weight"]
    assert {name.split(".")[1] for name in copied if name.startswith("layers")} == {"0", "1", "2", "3"}
    assert all(torch.equal(own[name], source[name]) for name in copied)
    assert model.config.text_config.rope_parameters["rope_theta"] == 100000.0
    table = source["embed_tokens.weight"]
    vocabulary, own_table = tokenizer.get_vocab(), own["embed_tokens.weight"]
    assert torch.equal(own_table[vocabulary["circle"]], table[pieces(" circle").input_ids].mean(0))
    ends = pieces("<|im_end|>", add_special_tokens=False).input_ids
    assert len(ends) > 1 and torch.allclose(own_table[vocabulary[END]], table[ends].mean(0))
    assert all(
        torch.equal(weight, small.state_dict()[name]) for name, weight in model.model.vision_tower.state_dict().items()
    )


def test_visual_tokens_start_at_the_spread_of_the_vocabulary(language):
    model = pretrained.build_pretrained(
        build_tokenizer(), language, pretrained.load(check=False).model.model.vision_tower
    )
    scenes, _ = pretrained.scenes_for("other scenes", 16)
    tokens = model.get_image_features(pretrained.pixels(scenes)).pooler_output
    spread = torch.cat(list(tokens)).std() / model.get_input_embeddings().weight.std()
    assert 0.7 < spread < 1.4


def test_frozen_layers_stay_bit_identical(tmp_path, language):
    before = LlamaForCausalLM.from_pretrained(language, dtype=torch.bfloat16).model.layers
    train(tmp_path, language)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).model
    layers = model.language_model.layers
    assert len(layers) == pretrained.FROZEN + 2
    same = [
        all(torch.equal(a, b) for a, b in zip(layer.parameters(), old.parameters(), strict=True))
        for layer, old in zip(layers, before, strict=False)
    ]
    assert same == [True] * pretrained.FROZEN + [False] * 2


def test_a_killed_run_continues_to_the_same_weights(tmp_path, language, monkeypatch):
    whole = train(tmp_path / "whole", language)
    real = pretrained.run_stage
    monkeypatch.setattr(pretrained, "run_stage", lambda *args, **options: real(*args, **{**options, "save_every": 1}))
    loss = pretrained.Answerer.loss
    monkeypatch.setattr(pretrained.Answerer, "loss", _interrupt_at("0/grounding/2", loss))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", language)
    monkeypatch.undo()
    assert torch.load(tmp_path / "killed" / "grounding.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(pretrained.Answerer, "examine", lambda self: {})
    resumed = train(tmp_path / "killed", language)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def _interrupt_at(stream, loss):
    def interrupted(self, name, batch):
        if name == stream:
            raise KeyboardInterrupt
        return loss(self, name, batch)

    return interrupted


def test_the_rate_holds_then_decays_to_zero():
    factor = pretrained.hold_then_decay(1000, 0.5)
    assert factor(0) == 1 / pretrained.WARMUP
    assert factor(200) == factor(499) == 1.0
    assert factor(625) == pytest.approx(0.5) and factor(1000) == 0.0


def test_too_few_layers_are_refused(language):
    with pytest.raises(UnsupportedModelError, match="6 layers; expected at least 9"):
        pretrained.build_pretrained(
            build_tokenizer(), language, pretrained.load(check=False).model.model.vision_tower, layers=9
        )
