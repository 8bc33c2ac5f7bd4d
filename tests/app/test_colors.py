"""One palette: figures, widgets and the app take the colours of groups from the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app import server
from sinkgate.plots import style
from sinkgate.sinks.glossary import DARK_GROUP_COLORS, GROUP_COLORS
from sinkgate.widgets.figure import MARKS

APP = Path(server.__file__).parent
COLOR = r"#[0-9a-fA-F]{3,8}\b|\brgba?\("


def test_the_page_has_the_colours_of_figures_and_widgets() -> None:
    light, dark = re.findall(r"\{ ((?:--group-[^}]+))\}", server.head())
    for written, colors in ((light, GROUP_COLORS), (dark, DARK_GROUP_COLORS)):
        assert dict(re.findall(r"--group-(\w+): (#\w{6});", written)) == colors
    assert style.GROUP_COLORS is GROUP_COLORS and GROUP_COLORS.keys() == DARK_GROUP_COLORS.keys()
    assert [color for _, color in MARKS] == [DARK_GROUP_COLORS["v_sink"], DARK_GROUP_COLORS["l_sink"]]


def test_the_style_sheet_has_no_colour_of_a_group_of_its_own() -> None:
    sheet = (APP / "style.css").read_text(encoding="utf-8")
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", sheet)
    of_groups = [
        (selector, body)
        for selector, body in rules
        if re.search(r"\.(v_sink|l_sink|ordinary|separator|region)\b", selector)
    ]
    assert len(of_groups) > 10
    assert [rule for rule in of_groups if re.search(COLOR, rule[1])] == []
    named = re.findall(r"--(?:v|l|rest|series): ([^;]+);", sheet)
    assert len(named) > 6 and all(value.startswith("var(--") for value in named)


@pytest.mark.parametrize("file", sorted((APP / "components").glob("*.js")), ids=lambda file: file.stem)
def test_no_script_has_a_colour_of_a_group(file: Path) -> None:
    text = file.read_text(encoding="utf-8").lower()
    assert not [color for color in (*GROUP_COLORS.values(), *DARK_GROUP_COLORS.values()) if color in text]
    assert not re.search(rf"(v_sink|l_sink|ordinary|separator)[\"']?: [\"'](?:{COLOR})", text)
