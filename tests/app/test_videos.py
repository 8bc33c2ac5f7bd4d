"""A clip of the gallery and an uploaded animation: frames in time, and what is no animation."""

import io

import pytest

import sinkgate as sg
from app.handlers import CLIP, CLIP_NOTICE, GALLERY, Handlers, example_clip
from app.share_links import python
from app.state import FRAMES, Engine, UserSession
from app.view_model import Lens

QUESTION = "How many objects are there?"
LENS = {"layer": 2, "sheet": 1}
FRAME_NAMES = [f"frame {number}" for number in range(FRAMES)]


@pytest.fixture
def handlers(demo):
    return Handlers(Engine(demo))


@pytest.fixture
def mixer(demo):
    return {"v_sink": [1] * demo.num_layers, "rest": [1] * demo.num_layers}


def saved(frames, kind="GIF"):
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=200)
    return file.getvalue()


def test_the_gallerys_clip_is_a_video(handlers, mixer):
    session = UserSession()
    values = handlers.pick_example(session, {"choice": {"picture": GALLERY.index(CLIP)}}, mixer, LENS)
    frame, status = values[4], values[5]
    assert frame["sheets"] == FRAME_NAMES and frame["video"] and frame["lens"]["sheet"] == 1
    assert status["text"] == CLIP_NOTICE and "in the other frames" in frame["elsewhere"]
    assert len(values[3]["other_views"]) == FRAMES - 1, "a picture under the maps of each frame"
    marks = {mark["token"] for mark in frame["marks"]}
    assert marks <= set(session.state.prompt.sheets[1].tokens.flatten().tolist())
    assert session.nbytes >= FRAMES * 448 * 448 * 4


def test_an_animation_is_uploaded_and_a_picture_follows(handlers, mixer, tmp_path):
    session = UserSession()
    path = tmp_path / "clip.gif"
    path.write_bytes(saved(example_clip().frames * 2))
    frame = handlers.new_picture(session, {"path": str(path)}, QUESTION, mixer, LENS)[4]
    assert frame["sheets"] == FRAME_NAMES and isinstance(session.image, sg.Video)
    program = python(session, Lens(layer=2, sheet=1), handlers.engine.vlm).replace("clip.gif", str(path))
    names = {}
    exec(program, names)
    assert [sheet.frames for sheet in names["prompt"].sheets] == [sheet.frames for sheet in session.state.prompt.sheets]
    example_clip().frames[0].save(tmp_path / "still.png")
    frame = handlers.new_picture(session, {"path": str(tmp_path / "still.png")}, QUESTION, mixer, LENS)[4]
    assert frame["sheets"] == ["picture"] and not frame["video"] and frame["lens"]["sheet"] == 0
