"""A clip of the gallery and an uploaded animation: frames in time, and what is no animation."""

import io

import pytest

import sinkgate as sg
from app import pictures
from app.engine import Engine
from app.examples import CLIP, CLIP_NOTICE, GALLERY, SCENES_ONLY, example_clip
from app.lens import Lens
from app.pictures import FRAMES
from app.share_links import python
from app.user_session import UserSession

QUESTION = "How many objects are there?"
LENS = {"layer": 2, "sheet": 1}
FRAME_NAMES = [f"frame {number}" for number in range(FRAMES)]


@pytest.fixture
def handlers(demo):
    from app.handlers import Handlers  # with gradio, which processes that only collect tests need not import

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
    frame, status = values["maps"], values["status"]
    assert frame["sheets"] == FRAME_NAMES and frame["video"] and frame["lens"]["sheet"] == 1
    assert status["text"] == CLIP_NOTICE and "in the other frames" in frame["elsewhere"]
    assert len(values["questions"]["other_views"]) == FRAMES - 1, "a picture under the maps of each frame"
    marks = {mark["token"] for mark in frame["marks"]}
    assert marks <= set(session.state.prompt.sheets[1].tokens.flatten().tolist())
    assert session.nbytes >= FRAMES * 448 * 448 * 4


def test_an_animation_is_uploaded_and_a_picture_follows(handlers, mixer, tmp_path):
    session = UserSession()
    path = tmp_path / "clip.gif"
    path.write_bytes(saved(example_clip().frames * 2))
    values = handlers.new_picture(session, {"path": str(path)}, QUESTION, mixer, LENS)
    assert values["status"]["text"] == CLIP_NOTICE, "not that of photographs"
    frame = values["maps"]
    assert frame["sheets"] == FRAME_NAMES and isinstance(session.image, sg.Video)
    program = python(session, Lens(layer=2, sheet=1), handlers.engine.vlm).replace("clip.gif", str(path))
    names = {}
    exec(program, names)
    assert [sheet.frames for sheet in names["prompt"].sheets] == [sheet.frames for sheet in session.state.prompt.sheets]
    example_clip().frames[0].save(tmp_path / "still.png")
    values = handlers.new_picture(session, {"path": str(tmp_path / "still.png")}, QUESTION, mixer, LENS)
    assert values["status"]["text"] == SCENES_ONLY
    frame = values["maps"]
    assert frame["sheets"] == ["picture"] and not frame["video"] and frame["lens"]["sheet"] == 0


@pytest.fixture(params=["mp4", "webm"])
def video_file(request, tmp_path):
    """The gallery's clip as a video file."""
    av = pytest.importorskip("av")
    path = tmp_path / f"clip.{request.param}"
    codec = {"mp4": "mpeg4", "webm": "libvpx"}[request.param]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width = stream.height = 448
        stream.pix_fmt = "yuv420p"
        for picture in example_clip().frames * 2:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def test_a_video_file_is_uploaded(handlers, mixer, video_file):
    session = UserSession()
    values = handlers.new_picture(session, {"path": str(video_file)}, QUESTION, mixer, LENS)
    assert values["status"]["text"] == CLIP_NOTICE
    assert values["maps"]["sheets"] == FRAME_NAMES and values["maps"]["video"]
    assert session.image.fps == pytest.approx(2) and values["picture"] is session.image.frames[0]


@pytest.mark.parametrize("reason", ["PyAV", "pixels", "damaged", "model"])
def test_a_video_that_cannot_be_used_is_refused_and_the_page_stays(
    handlers, mixer, video_file, reason, monkeypatch, tmp_path
):
    session = handlers.begin(mixer, LENS)["session"]
    shown = session.shown
    if reason == "PyAV":
        monkeypatch.setattr("sinkgate.images.video.find_spec", lambda name: None)
    elif reason == "pixels":
        monkeypatch.setattr(pictures, "MAX_DECODED", 3 * 448 * 448)
    elif reason == "damaged":
        video_file.write_bytes(video_file.read_bytes()[:200])
    else:

        def refuse(picture, question):
            raise sg.PromptError("this model takes one picture")

        monkeypatch.setattr(handlers.engine.backend, "prompt", refuse)
    words = {"PyAV": "PyAV", "pixels": "cut it", "damaged": "video", "model": "one picture"}[reason]
    values = handlers.new_picture(session, {"path": str(video_file)}, QUESTION, mixer, LENS)
    assert values["picture"] is shown and session.shown is shown and session.scene is not None
    status = values["status"]
    assert status["tone"] == "warning" and words in status["text"] and "Unexpected" not in status["text"]
