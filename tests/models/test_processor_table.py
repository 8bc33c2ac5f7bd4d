"""The script that writes the table of published processors sees what is right and what is wrong, on small ones."""

import re

import chat_cases as cases
import processor_table
import pytest
from tiny import noise_image

from sinkgate.models.chat import ChatFormat


@pytest.fixture
def folder(tmp_path):
    """Two processors: one with weights, one with a config alone; and a picture."""
    for name, make, template in (
        ("a", cases.byte_level, cases.CHATML),
        ("b", cases.sentencepiece, cases.TEMPLATES["bos"]),
    ):
        vlm = cases.vlm_with(make(), template, ends=("</s>", "<|im_end|>"))
        vlm.processor.save_pretrained(tmp_path / name)
        vlm.model.config.save_pretrained(tmp_path / name)
        vlm.model.generation_config.save_pretrained(tmp_path / name)
        if name == "a":
            vlm.model.save_pretrained(tmp_path / name)
    noise_image().save(tmp_path / "picture.jpg")
    return tmp_path


def cells(folder):
    rows = processor_table.table(folder).splitlines()
    return {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]] for line in rows[2:]}


def test_what_is_right_is_seen(folder):
    table = cells(folder)
    assert list(table) == ["the demo", "a", "b"]
    for name, end in (("a", "&lt;&#124;im_end&#124;&gt;"), ("b", "&lt;/s&gt;")):
        source, equal, placed, pieces, _ = table[name]
        assert source == "chat template of the processor" and (equal, placed) == ("6 of 6", "3 of 3")
        assert pieces.endswith(f"<code>{end}</code>")
    assert table["a"][-1].endswith("equal") and table["b"][-1] == "no weights"
    equal, total = map(int, table["the demo"][-1].removesuffix(" equal").split(" of "))
    assert equal == total > 0


def test_what_is_wrong_is_seen(folder, monkeypatch):
    """The first token twice, where the template writes it."""

    def doubled(self, text, images, fps=None):
        features = self.processor(images=[list(images)], text=[text], return_tensors="pt", add_special_tokens=True)
        return dict(features.to(self.model.device, self.model.dtype))

    monkeypatch.setattr(ChatFormat, "inputs", doubled)
    table = cells(folder)
    assert table["a"][1] == "6 of 6" and table["b"][1] == "0 of 6"


def test_the_page_holds_the_table_and_every_processor_is_read_rightly():
    rows = processor_table.written(processor_table.PAGE.read_text(encoding="utf-8")).splitlines()
    assert "\n".join(rows[:2]) == processor_table.HEAD and len(rows) > 5
    for row in rows[2:]:
        counts = re.findall(r"(\d+) of (\d+)", row)
        assert len(counts) >= 2 and all(int(right) == int(total) > 0 for right, total in counts), row
