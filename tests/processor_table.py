"""The table of published processors in the documentation: ``python tests/processor_table.py FOLDER``.

FOLDER holds a folder for each processor, as ``hf download --exclude "*.safetensors"`` writes it; one of a ``tokenizer.model`` alone is
read as that of LLaVA-1.5. Processors without weights get a tiny random model of their architecture. With weights, greedy answers to
questions about the pictures ``*.jpg`` in FOLDER are compared too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaProcessor,
)

import sinkgate as sg
from sinkgate.models.describe import greedy_answer

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "models.md"
BEGIN, END = "<!-- processors: written by tests/processor_table.py -->", "<!-- end of processors -->"
HEAD = (
    '| processor | chat format | ids, masks, pixels equal | places right | "red circle" as an answer | greedy answers |\n'
    "|---|---|---|---|---|---|"
)
QUESTIONS = ("What is in the picture?", "How many objects are there?", "Which colors are there?", "Where is it?")
SIZES = ((512, 512), (600, 400), (100, 400))
#: LLaVA-1.5's turns: images first, a blank behind every text.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}"
    "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_SMALL = {
    "num_hidden_layers": 3, "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "fullatt_block_indexes": [2], "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def table(folder: Path) -> str:
    """The whole table as Markdown."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    rows = [HEAD, row("the demo", sg.load("demo"), pictures)]
    for each in sorted(path.parent for path in folder.glob("*/config.json")):
        rows.append(row(each.name, load(each), pictures if has_weights(each) else []))
    for each in sorted(path.parent for path in folder.glob("*/tokenizer.model")):
        for suffix, start in (("", ""), (", BOS in its template", "{{ bos_token }}")):
            rows.append(row(f"{each.name}, LLaVA-1.5{suffix}", load_llava(each, start + LLAVA_TEMPLATE)))
    return "\n".join(rows)


def has_weights(folder: Path) -> bool:
    """Return True where a folder holds a whole model."""
    return any(folder.glob("*.safetensors"))


def load(folder: Path) -> sg.VLM:
    """A model with a published processor, its own weights where they are at hand."""
    if has_weights(folder):
        return sg.load(folder, check=False)
    config = AutoConfig.from_pretrained(folder)
    for part in (config.get_text_config(), config.vision_config):
        for name, value in _SMALL.items():
            if getattr(part, name, None) is not None:
                setattr(part, name, value)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:3]
    for rope in (getattr(text, "rope_parameters", None), getattr(text, "rope_scaling", None)):
        if rope and "mrope_section" in rope:
            rope["mrope_section"] = [2, 3, 3]
    vlm = _random(config, AutoProcessor.from_pretrained(folder))
    if (folder / "generation_config.json").exists():
        vlm.model.generation_config = GenerationConfig.from_pretrained(folder)
    return vlm


def load_llava(folder: Path, template: str) -> sg.VLM:
    """LLaVA-1.5 around a tokenizer."""
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.padding_side = "left"
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, **small),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, **small
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _random(config, processor)


def _random(config: Any, processor: Any) -> sg.VLM:
    torch.manual_seed(0)
    return sg.load((AutoModelForImageTextToText.from_config(config).float().eval(), processor), check=False)


def row(name: str, vlm: sg.VLM, pictures: Sequence[Image.Image] = ()) -> str:
    """Everything that can be seen of one processor."""
    equal = [same for case in cases() if (same := same_inputs(vlm, *case)) is not None]
    placed = [brightness(vlm, gradient(size)) > 0.98 for size in SIZES]
    prompt = vlm.prompt(gradient(SIZES[0]), "Why?")
    pieces = vlm.tokenizer.convert_ids_to_tokens(vlm.encode_answer(prompt, "red circle"))
    cells = [
        name,
        vlm.prompter.chat.source,
        f"{sum(equal)} of {len(equal)}",
        f"{sum(placed)} of {len(placed)}",
        " ".join(f"<code>{escape(piece).replace('|', '&#124;')}</code>" for piece in pieces),
        greedy(vlm, pictures),
    ]
    return f"| {' | '.join(cells)} |"


def cases() -> list[tuple[list[Image.Image], str, list[tuple[str, str]]]]:
    """Images, a system turn, "" for the template's own, and earlier turns: sizes, several images, a system turn, three questions."""
    return [
        *(([gradient(size)], "", []) for size in SIZES),
        ([gradient(SIZES[0]), gradient(SIZES[1])], "", []),
        ([gradient(SIZES[0])], "Answer with one word.", []),
        ([gradient(SIZES[1])], "", [(QUESTIONS[1], "Two."), (QUESTIONS[2], "Red and “blue”.")]),
    ]


def same_inputs(vlm: sg.VLM, images: list[Image.Image], system: str, earlier: list[tuple[str, str]]) -> bool | None:
    """Compare a prompt with what transformers makes of the same conversation; None where both refuse it."""
    question = "What is in the picture?\nIt's “nice”."

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    chat = [turn("user", question)]
    for past, answer in reversed(earlier):
        chat = [turn("user", past), turn("assistant", answer), *chat]
    chat[0]["content"] = [*({"type": "image", "image": image} for image in images), *chat[0]["content"]]
    try:
        expected = vlm.processor.apply_chat_template(
            [*([turn("system", system)] if system else []), *chat],
            chat_template=vlm.prompter.chat.template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except (ValueError, TemplateError):
        expected = None
    try:
        inputs = vlm.prompt(images, question, system=system, earlier=earlier).inputs
    except sg.PromptError:
        return None if expected is None else False
    return (
        expected is not None
        and inputs.keys() == expected.keys()
        and all(torch.equal(inputs[name], expected[name]) for name in inputs)
    )


def gradient(size: tuple[int, int]) -> Image.Image:
    """A picture that is dark in its upper left, bright in its lower right and darkest in the middle."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    return Image.blend(
        Image.blend(across, Image.linear_gradient("L").resize(size), 0.4), Image.radial_gradient("L").resize(size), 0.4
    ).convert("RGB")


def brightness(vlm: sg.VLM, image: Image.Image) -> float:
    """Correlation between what the patches of visual tokens hold and the picture where they are said to lie."""
    prompt = vlm.prompt(image, "Where?")
    token, values = prompt.token_of_patch, vlm.adapter.pixels(prompt.inputs).mean(1)
    if token is None:
        return 0.0
    held = torch.zeros(len(prompt.visual)).scatter_reduce(0, token.clamp_min(0), values, "mean", include_self=False)
    pairs = []
    for sheet in prompt.sheets:
        left, top, right, bottom = sheet.box or (0, 0, 0, 0)
        rows, columns = sheet.grid
        high, wide = (bottom - top) / rows, (right - left) / columns
        for index, cell in enumerate(sheet.tokens.flatten().tolist()):
            box = [left + index % columns * wide, top + index // columns * high]
            box += [box[0] + wide, box[1] + high]
            if cell >= 0 and min(box) >= 0 and box[2] <= image.width and box[3] <= image.height:
                shown = image.convert("L").resize((1, 1), Image.Resampling.BOX, tuple(box)).getpixel((0, 0))
                pairs.append((float(held[cell]), float(shown)))
    return float(torch.corrcoef(torch.tensor(pairs).T)[0, 1]) if len(pairs) > 3 else 0.0


def greedy(vlm: sg.VLM, pictures: Sequence[Image.Image]) -> str:
    """Count a trained model's own answers that are encoded as it wrote them; answers without text are left out."""
    prompts = [vlm.prompt(picture, question) for picture in pictures for question in QUESTIONS]
    same = [equal for prompt in prompts if (equal := greedy_answer(vlm, prompt).same) is not None]
    return f"{sum(same)} of {len(same)} equal" if same else "no weights"


def written(page: str) -> str:
    """The table as it stands on the page."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(Path(sys.argv[1]))}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
