"""Videos in prompts: frames to tokens, by the probe, by change of a frame, and through the families' own video processors."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise_image, some_sinks, tiny_llava
from transformers import PreTrainedTokenizerFast
from zoo import FRAMES_AS_IMAGES, VIDEO, VIDEO_FAMILIES, ZOO, video_sample

import sinkgate as sg
from sinkgate.demo.build import build_tokenizer
from sinkgate.models.token_map import measure_tokens
from sinkgate.models.vlm import VLM

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
needs_torchvision = pytest.mark.skipif(not HAS_TORCHVISION, reason="video processors need torchvision")
QUESTION = "What color is the circle?"


@pytest.mark.parametrize("frames", [2, 5, 6])
@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_the_closed_form_of_a_video_equals_the_gradient_probe(name, frames):
    vlm, inputs = ZOO[name].vlm(), video_sample(name, frames)
    prompt = vlm.read(inputs)
    assert vlm.prompter.rules["video"] == ZOO[name].rule and prompt.kind == "video" and prompt.note == ""
    assert torch.equal(vlm.adapter.token_of_patch(inputs, ZOO[name].rule), measure_tokens(vlm.adapter, inputs))
    ids = inputs["input_ids"][0]
    assert (ids[prompt.visual] == VIDEO).all()
    assert len(prompt.separators) == (name == "llava_onevision"), "the newline behind the video"


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_the_tokens_of_a_frame_are_those_that_change_with_it(name):
    """Through the whole encoder, which no frame leaves: independent of the probe."""
    vlm, inputs = ZOO[name].vlm(), video_sample(name)
    prompt = vlm.read(inputs)
    pixels = inputs["pixel_values_videos"]
    times = pixels.unflatten(0, (-1, 32)) if pixels.dim() == 2 else pixels[0]
    patches = len(prompt.token_of_patch) // len(times)
    with torch.no_grad():
        before = vlm.adapter.projected(vlm.encode(prompt))
        for time in range(len(times)):
            changed = times.clone()
            changed[time] += 1
            after = vlm.adapter.projected(
                vlm.adapter.encode({**inputs, "pixel_values_videos": changed.view_as(pixels)})
            )
            rows = (after - before).abs().amax(-1) > 1e-6
            expected = prompt.token_of_patch[time * patches : (time + 1) * patches].unique()
            assert rows[: len(prompt.visual)].nonzero()[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_a_video_encoded_once_is_gated_and_batched_like_an_image(name):
    vlm = ZOO[name].vlm()
    prompts = [vlm.read(video_sample(name)), vlm.read(video_sample(name, 4, 1)), vlm.read(ZOO[name].sample())]
    sinks = [sg.find_sinks(vlm, prompt, v_sink="norm", l_sink="norm") for prompt in prompts]
    gates = sg.Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5)
    alone = [vlm.predict(prompt, gates, each) for prompt, each in zip(prompts, sinks, strict=True)]
    with torch.no_grad():
        raw = vlm.model(**prompts[0].inputs).logits[0, -1].softmax(-1)
    assert torch.allclose(vlm.predict(prompts[0]).probabilities, raw, atol=1e-6)
    assert (alone[0].probabilities - raw).abs().max() > 1e-5
    for one, many in zip(alone, vlm.predict_all(prompts, gates, sinks), strict=True):
        assert torch.allclose(one.probabilities, many.probabilities, atol=1e-6)
        assert torch.allclose(one.attention, many.attention[..., -one.attention.shape[-1] :], atol=1e-5)
    session = sg.Session(vlm, prompts[0], sinks[0])
    assert session.resumes and torch.allclose(session.predict(gates).probabilities, alone[0].probabilities, atol=1e-6)


def test_frames_of_an_odd_side_are_mapped_to_the_nearest_token():
    """LLaVA-OneVision pools 27 x 27 patches to 14 x 14 tokens; here 7 x 7 to 4 x 4. The nearest is among those that a patch feeds."""
    model = ZOO["llava_onevision"].model()
    model.config.vision_config.image_size = 49
    model = type(model)(model.config).eval()
    vlm = VLM(model, None, "odd")
    ids = torch.tensor([[5, *[VIDEO] * (2 * 16 + 1), 6, 7]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": torch.randn(1, 2, 3, 49, 49),
    }
    prompt = vlm.read(inputs)
    assert "frames are resized" in prompt.note and len(prompt.visual) == 32
    measured = measure_tokens(vlm.adapter, inputs)
    single = measured >= 0
    assert single.any() and (measured == -2).any()
    assert torch.equal(prompt.token_of_patch[single], measured[single])


def test_images_beside_a_video_are_refused():
    vlm, inputs = ZOO["qwen2_vl"].vlm(), video_sample("qwen2_vl")
    with pytest.raises(sg.PromptError, match="images beside a video"):
        vlm.read({**inputs, "pixel_values": torch.randn(32, 96), "image_grid_thw": torch.tensor([[1, 4, 8]])})
    with pytest.raises(sg.PromptError, match="without video tokens of their own"):
        vlm.read({**inputs, "input_ids": inputs["input_ids"].where(inputs["input_ids"] != VIDEO, 100)})


# --- models that read frames as pictures


def test_a_model_without_videos_is_given_the_frames_as_images():
    vlm = sg.load(tiny_llava())
    video = sg.Video([noise_image(seed) for seed in range(3)], fps=2)
    prompt, several = vlm.prompt(video, QUESTION), vlm.prompt(video.frames, QUESTION)
    assert prompt.kind == "image" and prompt.video is video and "3 frames" in repr(prompt)
    assert all(torch.equal(prompt.inputs[name], several.inputs[name]) for name in several.inputs)
    assert [sheet.frames for sheet in prompt.sheets] == [(0, 0), (1, 1), (2, 2)]
    assert [sheet.frames for sheet in several.sheets] == [None] * 3
    for one, other in zip(prompt.sheets, several.sheets, strict=True):
        assert torch.equal(one.tokens, other.tokens) and one.image == other.image and one.box == other.box


def test_fewer_frames_are_chosen_evenly():
    vlm = sg.load(tiny_llava())
    video = sg.Video([noise_image(seed) for seed in range(6)], fps=3)
    prompt = vlm.prompt(video, ["First", None, "then?"], frames=2)
    assert [image.tobytes() for image in prompt.images] == [video.frames[index].tobytes() for index in (0, 3)]
    assert prompt.video.fps == 1


def test_a_video_stands_alone_at_one_place():
    vlm = sg.load(tiny_llava())
    video = sg.Video([noise_image()] * 2)
    with pytest.raises(sg.PromptError, match="one video alone"):
        vlm.prompt([video, noise_image()], QUESTION)
    with pytest.raises(sg.PromptError, match="2 places for the video"):
        vlm.prompt(video, [None, None, QUESTION])


def test_attention_and_sinks_are_given_by_frame():
    vlm = sg.load(tiny_llava())
    prompt = vlm.prompt(sg.Video([noise_image(seed) for seed in range(3)]), QUESTION)
    sinks = some_sinks(vlm, prompt)
    trace, many = vlm.predict(prompt), len(prompt.visual) // 3
    patches = trace.attention[:, :, 0].mean(1)[:, trace.positions]
    for index, (frames, share) in enumerate(trace.frames().items()):
        assert frames == (index, index)
        assert torch.allclose(share, patches[:, index * many : (index + 1) * many].sum(1))
    rest = trace.frames(hide=sinks.v_sink)
    assert torch.allclose(sum(rest.values()), (patches * ~sinks.v_sink).sum(1))
    frame = sinks.to_frame()
    assert frame.loc[frame["layer"] == 0, "frame"].tolist() == [index for index in range(3) for _ in range(many)]
    counts = [int(sinks.v_sink[index * many : (index + 1) * many].sum()) for index in range(3)]
    held = ", ".join(f"{number} in {index}" for index, number in enumerate(counts) if number)
    assert f"V-sinks by frame: {held}." in sinks.summary()
    assert sinks.where(many) == "frame 1, patch row 0, column 0"
    pictures = vlm.predict(vlm.prompt(prompt.images, QUESTION))
    with pytest.raises(sg.SinkgateError, match="no video"):
        pictures.frames()


def test_a_sheet_names_the_frames_that_it_merges():
    assert (
        sg.Sheet(torch.tensor([[0]]), frames=(2, 3)).time == "frames 2-3" and sg.Sheet(torch.tensor([[0]])).time == ""
    )


# --- processors of the families, which need torchvision


def tokenizer_with(image, video, **named):
    """The demo's words with tokens for images and videos."""
    base = build_tokenizer()
    names = [image, video, *named.values(), *OTHERS]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base._tokenizer,
        pad_token=base.pad_token,
        unk_token=base.unk_token,
        eos_token=base.eos_token,
        extra_special_tokens=named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": names}, replace_extra_special_tokens=False)
    return tokenizer


OTHERS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "{{% for m in messages %}}{{% for p in m.content %}}{{% if p.type == 'image' %}}{image}{{% elif p.type == 'video' %}}{video}"
    "{{% else %}}{{{{ p.text }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
)


def qwen(kind):
    import transformers as t
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 40}
    videos = getattr(t, f"{'Qwen3VL' if kind == 'qwen3_vl' else 'Qwen2VL'}VideoProcessor")
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    tokenizer = tokenizer_with("<|image_pad|>", "<|video_pad|>", start="<|vision_start|>", end="<|vision_end|>")
    marked = TEMPLATE.format(image="<|image_pad|>", video="<|vision_start|><|video_pad|><|vision_end|>")
    return getattr(t, f"{names[kind]}Processor")(
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=size),
        tokenizer,
        videos(patch_size=4, merge_size=2, temporal_patch_size=2, size=size),
        chat_template=marked,
    )


def llava_onevision():
    import transformers as t

    side = {"height": 28, "width": 28}
    return t.LlavaOnevisionProcessor(
        t.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=[[28, 56], [56, 28]]),
        tokenizer_with("<image>", "<video>"),
        t.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.format(image="<image>", video="<video>"),
    )


def llava_next_video():
    import transformers as t

    side = {"height": 28, "width": 28}
    return t.LlavaNextVideoProcessor(
        t.LlavaNextVideoVideoProcessor(size={"shortest_edge": 28}, crop_size=side),
        t.LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=[[28, 56]]),
        tokenizer_with("<image>", "<video>"),
        chat_template=TEMPLATE.format(image="<image>", video="<video>"),
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def internvl():
    import transformers as t

    side = {"height": 28, "width": 28}
    marks = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    return t.InternVLProcessor(
        t.GotOcr2ImageProcessor(size=side),
        tokenizer_with("<IMG_CONTEXT>", "<video>", **marks, video_token="<video>"),
        t.InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=TEMPLATE.format(image="<IMG_CONTEXT>", video="<video>"),
    )


def smolvlm():
    import transformers as t

    pytest.importorskip("num2words")
    return t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}),
        tokenizer_with("<image>", "<video>"),
        t.SmolVLMVideoProcessor(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}),
        image_seq_len=4,
        chat_template=TEMPLATE.format(image="<image>", video="<video>"),
    )


PROCESSORS = {
    "qwen2_vl": lambda: qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen("qwen3_vl"),
    "llava_onevision": llava_onevision,
    "llava_next_video": llava_next_video,
    "internvl": internvl,
    "smolvlm": smolvlm,
}
assert set(PROCESSORS) - set(VIDEO_FAMILIES) == set(FRAMES_AS_IMAGES), "the table of architectures names them"
MERGED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # two frames become one


def read_by(name):
    """A tiny model of the family behind its own processor."""
    processor = PROCESSORS[name]()
    model = ZOO[name].model()
    model.resize_token_embeddings(len(processor.tokenizer) + 8, mean_resizing=False)
    model.config.image_token_id = processor.image_token_id
    if VIDEO_FAMILIES.count(name):
        model.config.video_token_id = processor.video_token_id
        for mark in ("start", "end"):
            if (token := getattr(processor, f"vision_{mark}_token_id", None)) is not None:
                setattr(model.config, f"vision_{mark}_token_id", token)
    return sg.load((model, processor), check=False)


def gradient(turn):
    """A picture that is bright on one side."""
    return Image.linear_gradient("L").rotate(90 * turn).resize((48, 32)).convert("RGB")


def test_the_guides_table_is_that_of_these_tests():
    page = (Path(__file__).parents[2] / "docs/pages/guides/video.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d) \|", page, re.MULTILINE)
    assert rows == [(name, "video", "2" if name in MERGED else "1") for name in PROCESSORS]


@needs_torchvision
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_token_of_a_video_is_where_its_frame_and_its_place_say(name):
    vlm = read_by(name)
    frames = [gradient(turn) for turn in (0, 0, 1, 1, 2)]
    prompt = vlm.prompt(sg.Video(frames, fps=2), QUESTION)
    assert prompt.kind == ("video" if name in VIDEO_FAMILIES else "image") and prompt.note == ""
    spans = [(0, 1), (2, 3), (4, 4)] if name in MERGED else [(index, index) for index in range(5)]
    assert [sheet.frames for sheet in prompt.sheets] == spans
    assert sorted(torch.cat([sheet.tokens.flatten() for sheet in prompt.sheets]).tolist()) == list(
        range(len(prompt.visual))
    )

    # what a frame changes, through processor and encoder
    before = vlm.adapter.projected(vlm.encode(prompt))
    rows = vlm.adapter.rows_in_prompt(prompt.inputs)
    for index in range(5):
        changed = [noise_image(7, (48, 32)) if number == index else frame for number, frame in enumerate(frames)]
        after = vlm.adapter.projected(vlm.encode(vlm.prompt(sg.Video(changed, fps=2), QUESTION)))
        moved = rows[((after - before).abs().amax(-1) > 1e-6).nonzero()[:, 0]]
        mine = [sheet.tokens.flatten() for sheet in prompt.sheets if sheet.frames[0] <= index <= sheet.frames[1]]
        assert moved.tolist() == prompt.visual[torch.cat(mine).sort().values].tolist()

    # what a place holds
    values = vlm.adapter.pixels(prompt.inputs).mean(1)
    held = torch.zeros(len(prompt.visual)).scatter_reduce(0, prompt.token_of_patch, values, "mean", include_self=False)
    for sheet in prompt.sheets:
        rows_columns = sheet.view(prompt.images).convert("L").resize(sheet.grid[::-1], Image.Resampling.BOX)
        shown = torch.tensor(np.asarray(rows_columns, dtype=np.float32)).flatten()
        assert torch.corrcoef(torch.stack([sheet.spread(held).flatten(), shown]))[0, 1] > 0.95


@needs_torchvision
@pytest.mark.parametrize("earlier", [[], [("What color is it?", "red")]])
@pytest.mark.parametrize("name", PROCESSORS)
def test_ids_masks_and_pixels_of_a_video_are_those_of_transformers(name, earlier):
    vlm = read_by(name)
    video = sg.Video([noise_image(seed, (48, 32)) for seed in range(4)], fps=2)
    prompt = vlm.prompt(video, QUESTION, earlier=earlier)
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    for question, answer in earlier:
        past = (("user", question), ("assistant", answer))
        chat = [*({"role": role, "content": [{"type": "text", "text": text}]} for role, text in past), *chat]
    chat[0]["content"].insert(0, {"type": "video", "video": list(video.frames)})
    metadata = {"total_num_frames": 4, "fps": 2.0, "duration": 2.0, "frames_indices": [0, 1, 2, 3]}
    expected = vlm.processor.apply_chat_template(
        chat,
        chat_template=vlm.processor.chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": False, "video_metadata": [metadata]},
    )
    assert prompt.inputs.keys() == expected.keys()
    assert all(torch.equal(prompt.inputs[name], expected[name]) for name in expected)
    again = vlm.read(expected, video)
    assert [sheet.frames for sheet in again.sheets] == [sheet.frames for sheet in prompt.sheets]


@pytest.mark.skipif(HAS_TORCHVISION, reason="torchvision is installed")
def test_without_torchvision_the_remedy_is_named():
    from transformers import ProcessorMixin, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2560})
    tokenizer = tokenizer_with("<|image_pad|>", "<|video_pad|>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        template = TEMPLATE.format(image="<|image_pad|>", video="<|video_pad|>")
        processor = Qwen2VLProcessor(images, tokenizer, None, chat_template=template)
    model = ZOO["qwen2_vl"].model()
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    model.config.image_token_id = processor.image_token_id
    vlm = sg.load((model, processor), check=False)
    video = sg.Video([noise_image()] * 2)
    with pytest.raises(sg.PromptError, match=r"sinkgate\[vision\].*video\.frames"):
        vlm.prompt(video, QUESTION)
    assert len(vlm.prompt(video.frames, QUESTION).sheets) == 2
