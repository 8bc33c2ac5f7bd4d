"""Prompts made by the families' own processors: tiles, break tokens, several images, pictures of any size."""

import pytest
import torch
from tiny import noise_image, tiny_llava
from transformers import (
    BatchFeature,
    Idefics3Processor,
    LlavaNextProcessor,
    ProcessorMixin,
    Qwen2VLProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from zoo import PINPOINTS, ZOO

import sinkgate as sg
from sinkgate.demo.build import build_tokenizer
from sinkgate.methods import Fixed
from sinkgate.training.dataset import ExampleCache

QUESTION = "What color is the circle?"
#: A place for each image, then the question.
TEMPLATE = "{{% for m in messages %}}{{% for p in m.content %}}{{% if p.type == 'image' %}}{image}{{% else %}}{{{{ p.text }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"


def tokenizer_with(*names, image="<image>"):
    """The demo's words with the image token of the zoo's models at their id."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [image, *names]})
    return tokenizer, TEMPLATE.format(image=image)


def vlm_of(name, processor, tokenizer):
    """A zoo model whose vocabulary is the tokenizer's."""
    model = ZOO[name].model()
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    model.config.image_token_id = processor.image_token_id
    return sg.load((model, processor))


@pytest.fixture(scope="module")
def llava_next():
    tokenizer, template = tokenizer_with()
    side = {"height": 28, "width": 28}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=PINPOINTS)
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return vlm_of("llava_next", processor, tokenizer)


@pytest.fixture(scope="module")
def idefics3():
    cells = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    tokenizer, template = tokenizer_with("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *cells)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 84}, max_image_size={"longest_edge": 28})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)
    return vlm_of("idefics3", processor, tokenizer)


class RowsAndBreaks:
    """PixtralProcessor's form of a prompt (it cannot be imported without torchvision): rows of tokens with a break after each."""

    chat_template = None
    image_token = "[IMG]"

    def __init__(self, image_processor, tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_token_id = tokenizer.convert_tokens_to_ids("[IMG]")

    def __call__(self, images, text, return_tensors):
        processed = self.image_processor(images=images[0], return_tensors=return_tensors)
        for height, width in processed["image_sizes"]:
            row = "<placed>" * (int(width) // 14)
            tokens = "[IMG_BREAK]".join([row] * (int(height) // 14)) + "[IMG_END]"
            text = [text[0].replace("[IMG]", tokens, 1)]
        ids = self.tokenizer([text[0].replace("<placed>", "[IMG]")], return_tensors=return_tensors)
        return BatchFeature({**processed, "input_ids": ids.input_ids, "attention_mask": ids.attention_mask})


@pytest.fixture(scope="module")
def mistral3():
    tokenizer, _ = tokenizer_with("[IMG_BREAK]", "[IMG_END]", image="[IMG]")
    images = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    return vlm_of("mistral3", RowsAndBreaks(images, tokenizer), tokenizer)


@pytest.fixture(scope="module")
def qwen2_vl():
    marks = ("<|vision_start|>", "<|vision_end|>")  # without them two images would run into one
    tokenizer, template = tokenizer_with("<|video_pad|>", *marks, image="<|image_pad|>")
    template = template.replace("<|image_pad|>", marks[0] + "<|image_pad|>" + marks[1])
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 40}
    )
    with pytest.MonkeyPatch.context() as patch:  # its video processor needs torchvision; images do not
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        processor = Qwen2VLProcessor(images, tokenizer, None, chat_template=template)
    return vlm_of("qwen2_vl", processor, tokenizer)


def covered(sheet, image):
    assert sheet.box == pytest.approx((0, 0, *image.size), abs=0.06 * max(image.size))


def test_anyres_has_an_overview_and_tiles_with_newlines_apart(llava_next):
    image = noise_image(1, (100, 60))
    prompt = llava_next.prompt(image, QUESTION)
    overview, tiles = prompt.sheets
    assert overview.grid == (4, 4) and overview.tokens.flatten().tolist() == list(range(16))
    assert tiles.grid[1] == 8 and tiles.tokens.numel() == len(prompt.visual) - 16
    assert len(prompt.separators) == tiles.grid[0], "a newline after each row"
    covered(overview, image)
    assert tiles.box[0] <= 1 and tiles.box[2] >= 99
    sinks = sg.find_sinks(llava_next, prompt, v_sink="norm")
    shares = llava_next.predict(prompt).shares(sinks)
    assert (shares["separator"] > 0).all()
    assert sinks.where(20).startswith("sheet 1, patch row")


def test_tiles_of_idefics3_join_and_their_marks_are_separators(idefics3):
    image = noise_image(1, (120, 80))
    prompt = idefics3.prompt(image, QUESTION)
    tiles, overview = prompt.sheets
    covered(tiles, image)
    covered(overview, image)
    assert overview.grid == (2, 2) and tiles.tokens.numel() == len(prompt.visual) - 4
    names = idefics3.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0, prompt.separators])
    assert "<row_1_col_2>" in names and "<global-img>" in names and "<image>" not in names
    assert (prompt.inputs["input_ids"][0, prompt.visual] == idefics3.adapter.image_token_id).all()


def test_break_tokens_of_pixtral_are_separators(mistral3):
    image = noise_image(1, (56, 28))
    prompt = mistral3.prompt(image, QUESTION)
    (sheet,) = prompt.sheets
    assert sheet.grid == (2, 4)
    covered(sheet, image)
    names = mistral3.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0, prompt.separators])
    assert names == ["[IMG_BREAK]"]


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "mistral3", "qwen2_vl"])
def test_several_images_of_several_sizes_in_one_prompt(name, request):
    vlm = request.getfixturevalue(name)
    images = [noise_image(1, (90, 56)), noise_image(2, (56, 56)), noise_image(3, (40, 80))]
    prompt = vlm.prompt(images, QUESTION)
    assert sorted({sheet.image for sheet in prompt.sheets}) == [0, 1, 2]
    tokens = torch.cat([sheet.tokens[sheet.tokens >= 0] for sheet in prompt.sheets])
    assert sorted(tokens.tolist()) == list(range(len(prompt.visual))), "every token lies on one sheet"
    for sheet in prompt.sheets:
        assert sheet.view(prompt.images) is not None
    words = vlm.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0, prompt.separators])
    assert "circle" not in words
    sinks = sg.find_sinks(vlm, prompt, v_sink="norm", l_sink="norm")
    half = sg.Gates.ones(vlm).set("rest", 0.5)
    assert not torch.equal(vlm.predict(prompt, half, sinks).probabilities, vlm.predict(prompt).probabilities)


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "mistral3", "qwen2_vl"])
def test_pictures_of_several_sizes_side_by_side(name, request):
    vlm = request.getfixturevalue(name)
    prompts = [vlm.prompt(noise_image(i, size), QUESTION) for i, size in enumerate([(90, 56), (56, 56), (40, 80)])]
    assert len({prompt.length for prompt in prompts}) > 1
    sinks = [sg.find_sinks(vlm, prompt, v_sink="norm", l_sink="norm") for prompt in prompts]
    gates = [sg.Gates.ones(vlm).set("rest", 0.2 + i) for i in range(3)]
    for prompt, table, sink_map, trace in zip(
        prompts, gates, sinks, vlm.predict_all(prompts, gates, sinks), strict=True
    ):
        alone = vlm.predict(prompt, table, sink_map)
        assert torch.allclose(trace.probabilities, alone.probabilities, atol=1e-4)
        assert torch.allclose(trace.visual(1), alone.visual(1), atol=1e-4)


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "qwen2_vl"])
@pytest.mark.parametrize(
    ("sizes", "earlier"), [([(90, 56)], []), ([(40, 80), (56, 56)], []), ([(90, 56)], [("Is it red?", "yes")])]
)
def test_ids_masks_and_pixels_are_those_of_transformers(name, sizes, earlier, request):
    vlm = request.getfixturevalue(name)
    images = [noise_image(number, size) for number, size in enumerate(sizes)]
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    for question, answer in earlier:
        content[-1] = {"type": "text", "text": question}
        chat += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        chat += [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    expected = vlm.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs = vlm.prompt(images, QUESTION, earlier=earlier).inputs
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], value) for name, value in expected.items())


def test_bright_corner_is_where_it_is_shown(qwen2_vl):
    """The pixels of the patches that a token comes from lie where its sheet says: brightness tells."""
    image = noise_image(1, (64, 48)).point(lambda value: 0)
    image.paste("white", (32, 24, 64, 48))
    prompt = qwen2_vl.prompt(image, QUESTION)
    (sheet,) = prompt.sheets
    brightness = qwen2_vl.adapter.pixels(prompt.inputs).mean(1)
    token = torch.zeros(len(prompt.visual)).scatter_reduce(
        0, prompt.token_of_patch, brightness, "mean", include_self=False
    )
    shown = sheet.spread(token)
    rows, columns = sheet.grid
    assert rows > 2 and columns > 2
    assert shown[-1, -1] == shown.max() and shown[0, 0] == shown.min()
    assert shown[: rows // 2].max() < shown[-1, -1] and shown[:, : columns // 2].max() < shown[-1, -1]


def test_a_prompt_without_images_is_refused(qwen2_vl):
    with pytest.raises(sg.PromptError, match="no image"):
        qwen2_vl.prompt([], QUESTION)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(sg.PromptError, match="no image token"):
        qwen2_vl.read({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.zeros(4, 96)})


def test_too_few_places_for_the_image_are_refused(qwen2_vl):
    prompt = qwen2_vl.prompt(noise_image(), QUESTION)
    fresh = sg.VLM(qwen2_vl.model, qwen2_vl.processor, "fresh")
    ids = prompt.inputs["input_ids"]
    keep = torch.ones(ids.shape[1], dtype=torch.bool)
    keep[prompt.visual[0]] = False
    inputs = {**prompt.inputs, "input_ids": ids[:, keep], "attention_mask": prompt.inputs["attention_mask"][:, keep]}
    with pytest.raises(sg.UnsupportedModelError, match="image tokens, the encoder makes"):
        fresh.read(inputs)


def test_line_breaks_of_a_question_stay():
    vlm = sg.load(tiny_llava())
    question = "Which is it?\nA. red\nB. blue\nAnswer with the letter."
    prompt = vlm.prompt(noise_image(), f"  {question}\n")
    assert prompt.question == question
    assert question in vlm.prompter.chat.text([None, prompt.question])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("qwen2_vl", (2, 450), "processor of .* refuses the picture, 2 x 450 pixels: .*aspect ratio"),
        ("mistral3", (700, 1), "processor of .* refuses the picture, 700 x 1 pixels"),
        ("mistral3", (3, 1), "encoder of .* cannot take a picture of 3 x 1 pixels"),
    ],
)
def test_pictures_that_a_model_refuses_are_named(name, size, message, request):
    vlm, odd = request.getfixturevalue(name), noise_image(1, size)
    with pytest.raises(sg.ImageError, match=message):
        sg.find_sinks(vlm, vlm.prompt(odd, QUESTION))
    if "processor" in message:
        with pytest.raises(sg.ImageError, match=f"picture 2 of 3, {size[0]} x {size[1]} pixels"):
            vlm.prompt([noise_image(), odd, noise_image()], QUESTION)
    good = sg.Sample((noise_image(),), QUESTION, "red")
    examples = ExampleCache(vlm)
    sg.evaluate(vlm, {"plain": Fixed(sg.Gates.ones(vlm))}, [(odd, QUESTION, "red"), good], examples=examples)
    assert list(examples.skipped) == ["sample 0"] and f"{size[0]} x {size[1]} pixels" in examples.skipped["sample 0"]


def test_a_processor_that_takes_no_picture_at_all_keeps_its_own_words(qwen2_vl, monkeypatch):
    def broken(*_, **__):
        raise TypeError("this processor is broken")

    monkeypatch.setattr(qwen2_vl.prompter.chat, "inputs", broken)
    with pytest.raises(TypeError, match="broken"):
        qwen2_vl.prompt(noise_image(), QUESTION)


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "mistral3", "qwen2_vl"])
def test_inputs_of_a_processor_are_read_at_any_size(name, request):
    vlm, image = request.getfixturevalue(name), noise_image(4, (101, 67))  # a size that no other test has asked about
    inputs = vlm.processor(images=[[image]], text=[vlm.prompter.chat.text([None, QUESTION])], return_tensors="pt")
    read = vlm.read(inputs, [image], QUESTION)
    prompt = vlm.prompt(image, QUESTION)
    assert [sheet.box for sheet in read.sheets] == [sheet.box for sheet in prompt.sheets] and read.sheets[0].box
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(read.sheets, prompt.sheets, strict=True))
    assert torch.equal(vlm.predict(read).probabilities, vlm.predict(prompt).probabilities)


def test_inputs_come_as_arrays_and_lists_too(qwen2_vl):
    image = noise_image(1, (56, 40))
    prompt = qwen2_vl.prompt(image, QUESTION)
    expected = qwen2_vl.predict(prompt).probabilities
    for make in (
        lambda value: value.numpy(),
        lambda value: value.tolist(),
        lambda value: value.double() if value.is_floating_point() else value,
    ):
        inputs = {name: make(value) for name, value in prompt.inputs.items()}
        assert torch.equal(qwen2_vl.predict(qwen2_vl.read(inputs, image)).probabilities, expected)


def test_inputs_that_are_no_prompt_get_a_sentence(qwen2_vl):
    inputs = qwen2_vl.prompt(noise_image(1, (56, 40)), QUESTION).inputs
    ids = inputs["input_ids"]
    cases = [
        ({"input_ids": ids}, (), "no pixel_values, only input_ids"),
        ({"pixel_values": inputs["pixel_values"]}, (), "no input_ids"),
        ({}, (), "only nothing"),
        ({**inputs, "input_ids": torch.cat([ids, ids])}, (), "hold 2 prompts; expected one"),
        ({**inputs, "input_ids": ids[0]}, (), "input_ids of shape"),
        ({**inputs, "pixel_values": [[1.0], [1.0, 2.0]]}, (), "return_tensors"),
        (ids, (), "the inputs are a Tensor"),
        (inputs, noise_image(1, (200, 40)), "give the images that the inputs were made of"),
        (inputs, [noise_image(1, (56, 40))] * 2, "give the images that the inputs were made of"),
    ]
    for wrong, images, message in cases:
        with pytest.raises(sg.PromptError, match=message):
            qwen2_vl.read(wrong, images)
    with pytest.raises(sg.ImageError, match="cannot be opened"):
        qwen2_vl.read(inputs, ["nowhere.png"])


def test_a_template_may_place_the_image_by_itself():
    """As where the image comes first, for a model without a token in front of it."""
    model, processor = tiny_llava()
    processor.chat_template = (
        "<image>{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    vlm = sg.load((model, processor))
    prompt = vlm.prompt(noise_image(), QUESTION)
    assert prompt.visual.tolist() == list(range(16)) and vlm.tokenizer.decode(prompt.inputs["input_ids"][0]).endswith(
        vlm.tokenizer.decode(vlm.tokenizer(QUESTION, add_special_tokens=False).input_ids)
    )
