"""Models whose visual tokens are no single grid: what the page shows is right for tiles, for a list, for several images."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from app_process import running_app
from models import FEWER_TOKENS, MOST_TOKENS, QUERIES, save_listed, save_tiled
from page_user import Tab
from PIL import Image
from test_page import CLOSE, QUESTION, ask_about, assert_shows, direct
from tiny import noise_image, tiny_llava

import sinkgate as sg
from app import view_model
from app.engine import Engine
from app.examples import GENERAL_QUESTIONS, PLAIN_QUESTIONS
from app.handlers import Handlers
from app.lens import Lens
from app.user_session import QuestionState, UserSession
from app.view_model import view_urls
from sinkgate.images.layout import Sheet
from sinkgate.scenes.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser

WINDOW = {"width": 1366, "height": 900}
LENS = {"layer": 1, "head": None, "row": 0, "hide": False}


@pytest.fixture(scope="module")
def tiled(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, sg.VLM]]:
    """An app with the model that cuts pictures into tiles: its address, and the same model here."""
    folder = save_tiled(tmp_path_factory.mktemp("tiled"))
    with running_app("--model", str(folder), code=FEWER_TOKENS) as app:
        yield app.address, sg.load(folder)


@pytest.fixture(scope="module")
def listed(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, sg.VLM]]:
    """As ``tiled``, with the model whose tokens have no place in the picture."""
    folder = save_listed(tmp_path_factory.mktemp("listed"))
    with running_app("--model", str(folder), code=FEWER_TOKENS) as app:
        yield app.address, sg.load(folder)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that is wider than high: the processor pads its tiles, and not its overview."""
    path = tmp_path_factory.mktemp("wide") / "wide.png"
    Scene.random(Random(91)).render(448).crop((0, 100, 448, 400)).save(path)
    return path


def pick(tab: Tab, sheet: int) -> dict[str, Any]:
    """Choose a sheet in the lens; gives the frame drawn then."""
    tab.page.locator("#lens .sheet").select_option(str(sheet))
    tab.wait(f"document.querySelector('#maps [data-tick]').frame.lens.sheet === {sheet}")
    return tab.frame()


def marked_cells(tab: Tab) -> list[tuple[int, int]]:
    """The cells of the left map that are outlined, each alone, measured on the screen."""
    rows, columns = tab.frame()["grid"]
    box = tab.page.locator("#maps canvas.before").bounding_box()
    cells = []
    for mark in tab.page.locator("#maps .marks").first.locator(".region").all():
        rectangle = mark.bounding_box()
        assert box and rectangle
        row = (rectangle["y"] + rectangle["height"] / 2 - box["y"]) / box["height"] * rows - 0.5
        column = (rectangle["x"] + rectangle["width"] / 2 - box["x"]) / box["width"] * columns - 0.5
        assert row == pytest.approx(round(row), abs=0.1) and column == pytest.approx(round(column), abs=0.1)
        cells.append((round(row), round(column)))
    return sorted(cells)


def picture_of(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(int)


def proportions(tab: Tab) -> float:
    """Width over height of the left map as it stands on the screen."""
    box = tab.page.locator("#maps canvas.before").bounding_box()
    assert box
    return box["width"] / box["height"]


def test_an_overview_and_its_tiles(enter: Callable[..., Tab], tiled: tuple[str, sg.VLM], wide: Path) -> None:
    address, vlm = tiled
    tab = enter(address, size=WINDOW)
    ask_about(tab, wide)
    expected = direct(vlm, wide, QUESTION, tab.frame()["gates"], MOST_TOKENS)
    overview, tiles = expected["sinks"].sheets
    assert tab.page.locator("#lens .sheet option").all_text_contents() == ["overview 4 x 4", "tiles 6 x 8"]
    assert_shows(tab, tab.frame(), expected)
    first, pixels = tab.frame(), tab.pixels("before")
    assert first["grid"] == [4, 4] and first["note"] == ""
    assert marked_cells(tab) == [(1, 1)]
    assert tab.page.locator("#maps .elsewhere").text_content() == "4 more sinks on the other sheet"
    assert proportions(tab) == pytest.approx(448 / 300, rel=0.02)

    second = pick(tab, 1)
    assert second["grid"] == [6, 8] and second["films"] != first["films"]
    assert_shows(tab, second, expected)
    sinks = expected["sinks"].v_sink.nonzero().flatten().tolist()
    assert marked_cells(tab) == sorted(cell for cell in map(tiles.find, sinks) if cell)
    assert len(marked_cells(tab)) == 4
    assert tab.page.locator("#maps .elsewhere").text_content() == "1 more sink on the other sheet"
    assert tab.pixels("before") != pixels
    assert proportions(tab) == pytest.approx(448 / 312, rel=0.01)  # the tiles reach beyond the picture

    view = tab.page.evaluate("window.sinkgate.last.view")
    for url, sheet in zip([view["url"], *view["others"]], (overview, tiles), strict=True):
        part = sheet.view([sg.open_image(wide)])
        assert part is not None
        assert np.abs(picture_of(url) - np.asarray(part).astype(int)).mean() < 3  # JPEG

    tab.drag(1, 0.1)
    moved = tab.settle()
    assert moved["lens"]["sheet"] == 1 and moved["after"] != moved["before"]
    assert_shows(tab, moved, direct(vlm, wide, QUESTION, moved["gates"], MOST_TOKENS))
    legend = tab.page.locator("#chart .key").all_text_contents()
    assert legend == ["V-sinks", "L-sinks", "ordinary tokens", "separators", "text"]


def test_tokens_without_a_place_are_a_list(enter: Callable[..., Tab], listed: tuple[str, sg.VLM], wide: Path) -> None:
    address, vlm = listed
    tab = enter(address, size=WINDOW)
    frame = ask_about(tab, wide)
    assert_shows(tab, frame, direct(vlm, wide, QUESTION, frame["gates"], MOST_TOKENS))
    assert frame["grid"] == [QUERIES // 16, 16] and not frame["placed"]
    assert not tab.page.locator("#lens .sheet").is_visible()
    note = "Every visual token gathers from many patches, so none has a place in the picture."
    assert tab.page.locator("#maps .remark").text_content() == note
    assert (tab.page.locator("#maps .caption").text_content() or "").endswith(" per token")

    colors = tab.page.evaluate(
        """() => {
          const canvas = document.querySelector("#maps canvas.before"), { before, top } = document.querySelector("#maps [data-tick]").frame;
          const [w, h] = [canvas.width / 16, canvas.height / 2], draw = canvas.getContext("2d");
          return before.map((share, i) => [
            [...draw.getImageData((i % 16 + 0.5) * w, (Math.floor(i / 16) + 0.5) * h, 1, 1).data.slice(0, 3)],
            window.sinkgate.shade(share / top).map(Math.round)]);
        }"""
    )
    assert all(drawn == shade for drawn, shade in colors)  # attention alone: no picture shines through

    box = tab.page.locator("#maps .screen").first.bounding_box()
    assert box
    tab.page.mouse.move(box["x"] + box["width"] * 5.5 / 16, box["y"] + box["height"] * 0.75)
    for reading, side in zip(
        tab.page.locator("#maps .trio output").all_text_contents()[:2], ("before", "after"), strict=True
    ):
        assert float(reading.removesuffix(" %")) == pytest.approx(100 * frame[side][21], rel=0.06)
    assert (tab.page.locator("#maps .reading").text_content() or "").startswith("Token 21: ")
    tab.page.mouse.move(2, 2)
    assert tab.page.locator("#maps .trio output").all_text_contents() == ["", "", ""]
    tab.page.wait_for_selector("#chart .key")
    assert "separators" not in tab.page.locator("#chart .key").all_text_contents()


def case_of(vlm: sg.VLM, prompt: sg.Prompt) -> QuestionState:
    sinks, gates = sg.find_sinks(vlm, prompt), sg.Gates.ones(vlm)
    trace = vlm.predict(prompt, None, sinks)
    return QuestionState(sg.Session(vlm, prompt, sinks), trace, gates, trace, 0, 0)


def expected_frame(vlm: sg.VLM, prompt: sg.Prompt, sheet: int = 0) -> dict[str, Any]:
    """The frame of one sheet."""
    return view_model.frame(case_of(vlm, prompt), Lens.read({"sheet": sheet}, vlm, len(prompt.sheets)))


def test_several_images_have_a_sheet_each() -> None:
    vlm = sg.load(tiny_llava())
    images = [noise_image(0), noise_image(1).resize((56, 28))]
    prompt = vlm.prompt(images, QUESTION)
    frame = expected_frame(vlm, prompt, 1)
    assert frame["sheets"] == ["image 1: picture", "image 2: picture"]
    assert frame["lens"]["sheet"] == 1 and expected_frame(vlm, prompt, 9)["lens"]["sheet"] == 1
    drawn = vlm.predict(prompt).visual(0, sheet=1)
    assert frame["before"] == pytest.approx(drawn.flatten().tolist(), abs=CLOSE)
    first, second = view_urls(prompt)
    assert first and second
    part = prompt.sheets[1].view(images)
    assert part is not None and np.abs(picture_of(second) - np.asarray(part).astype(int)).mean() < 40  # JPEG of noise
    assert np.abs(picture_of(second)[:, :28] - picture_of(first)[:, : part.width]).mean() > 40


def test_holes_are_left_open_and_sinks_outside_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = sg.load(tiny_llava())
    prompt = vlm.prompt(noise_image(), QUESTION)
    tokens = prompt.sheets[0].tokens.clone()
    tokens[:, 3] = -1
    prompt = replace(prompt, sheets=(replace(prompt.sheets[0], tokens=tokens),))
    case = case_of(vlm, prompt)
    sinks = torch.zeros(16, dtype=torch.bool)
    sinks[[5, 7, 11]] = True  # 7 and 11 lie in the column that was taken out
    case.prompt_session = sg.Session(vlm, case.prompt, replace(case.sinks, v_sink=sinks, loudest=torch.arange(16)))
    monkeypatch.setattr(view_model, "evidence_values", lambda *_: ["because"])
    frame = view_model.frame(case, Lens())
    holes = [share is None for share in frame["before"]]
    assert holes == [False, False, False, True] * 4
    assert [list(base64.b64decode(film)[3::4]) for film in frame["films"]] == [[view_model.HOLE] * 4] * vlm.num_layers
    assert frame["top"] == max(share for share in frame["before"] if share is not None)
    assert [(mark["token"], mark["cell"]) for mark in frame["marks"]] == [(5, (1, 1))]
    assert frame["elsewhere"] == "2 more sinks outside of the picture"


def test_a_list_without_a_reason_says_so(demo: sg.VLM) -> None:
    prompt = demo.prompt(noise_image(), QUESTION)
    bare = demo.read(prompt.inputs)
    frame = expected_frame(demo, bare)
    assert frame["sheets"] == ["list of tokens"] and not frame["placed"]
    assert frame["note"] == view_model.sentence(view_model.UNPLACED)
    assert view_urls(bare) == [None]
    approximate = replace(prompt, note="this large picture is resized")
    assert expected_frame(demo, approximate)["note"] == "This large picture is resized."


def test_a_slider_moves_the_maps_through_a_video(tab: Tab) -> None:
    first = tab.after(lambda: tab.page.get_by_role("button", name="Example picture 6").click())
    slider, pixels = tab.page.get_by_label("Time"), tab.pixels("before")
    assert first["video"] and slider.is_visible() and not tab.page.locator("#lens .sheet").is_visible()
    slider.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.sheet === 1")
    second = tab.frame()
    assert tab.page.locator("#lens .time output").text_content() == "frame 1"
    assert tab.pixels("before") != pixels and second["before"] != first["before"]
    tab.after(lambda: tab.page.get_by_role("button", name="Example picture 1").click())
    assert not slider.is_visible()


def test_sheets_are_named_by_what_they_are() -> None:
    def sheet(rows: int, image: int = 0) -> Sheet:
        return Sheet(torch.arange(rows * rows).view(rows, rows), image, (0.0, 0.0, 1.0, 1.0))

    assert view_model.sheet_names((sheet(4),)) == ["picture"]
    assert view_model.sheet_names((sheet(8), sheet(4))) == ["tiles 8 x 8", "overview 4 x 4"]
    assert view_model.sheet_names((sheet(4), sheet(8), sheet(4, 1))) == [
        "image 1: overview 4 x 4",
        "image 1: tiles 8 x 8",
        "image 2: picture",
    ]


def test_questions_are_offered_that_the_model_has_words_for(
    demo: sg.VLM, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offered() -> list[str]:
        ones = [1.0] * demo.num_layers
        returned = Handlers(Engine(demo)).new_picture(
            UserSession(), {"path": str(wide)}, "", {"v_sink": ones, "rest": ones}, LENS
        )
        return [chip["question"] for chip in returned["questions"]["chips"]]

    assert offered() == list(PLAIN_QUESTIONS)
    monkeypatch.setattr(demo, "unknown_words", lambda question: [])  # as of a tokenizer that spells words out
    assert offered() == list(GENERAL_QUESTIONS)
