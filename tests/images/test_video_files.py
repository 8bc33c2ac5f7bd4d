"""Videos: frames chosen evenly from animations and files, and what is refused."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from tiny import noise_image

import sinkgate as sg
from sinkgate.images.video import even_indices, open_animation

GREYS = [20 * index for index in range(10)]


def grey(level, size=(32, 16)):
    return Image.new("RGB", size, (level,) * 3)


def animation(kind, duration=250):
    file = io.BytesIO()
    frames = [grey(level) for level in GREYS]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=duration, **options)
    return file.getvalue()


def mp4(count=20, rate=10):
    """A file whose frame i is grey of level 10 i."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for level in range(count):
            for packet in stream.encode(av.VideoFrame.from_image(grey(10 * level))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def levels(video):
    return [float(np.asarray(frame).mean()) for frame in video.frames]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_are_chosen_evenly(kind):
    video = sg.open_video(animation(kind), 5)
    assert levels(video) == pytest.approx([GREYS[index] for index in (0, 2, 4, 6, 8)], abs=1)
    assert video.fps == pytest.approx(2) and video.frames[0].size == (32, 16)
    assert len(sg.open_video(animation(kind), 40).frames) == 10


def test_frames_of_a_file_are_chosen_evenly(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4())
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        video = sg.open_video(source, 4)
        assert levels(video) == pytest.approx([0, 50, 100, 150], abs=8)
        assert video.fps == pytest.approx(2)
    assert len(sg.open_video(path).frames) == 8
    assert sg.open_video(path, 4, max_pixels=128).frames[0].size == (16, 8)


def test_a_damaged_file_gets_a_sentence():
    whole = mp4()
    for data in (b"no video at all" * 50, whole[: len(whole) // 3]):
        with pytest.raises(sg.ImageError, match=r"no video|damaged"):
            sg.open_video(data)
    with pytest.raises(sg.ImageError, match="empty"):
        sg.open_video(b"")


def test_without_pyav_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("sinkgate.images.video.find_spec", lambda name: None)
    with pytest.raises(sg.ImageError, match=r'pip install "sinkgate\[video\]"'):
        sg.open_video(b"\0\0\0\x18ftypmp42" + bytes(100))


def test_parts_of_equal_length_begin_with_the_chosen_frames():
    assert even_indices(10, 4) == [0, 2, 5, 7] and even_indices(3, 9) == [0, 1, 2] and even_indices(7, 1) == [0]


def test_frames_are_pictures_of_one_size():
    video = sg.Video([np.zeros((8, 8, 3), np.uint8), noise_image(0, (8, 8)).convert("L")], fps=0.5)
    assert all(frame.mode == "RGB" for frame in video.frames) and "2 frames of 8 x 8 pixels, 0.5 a second" in repr(
        video
    )
    for frames, fps, message in (
        ([], 1, "no frame"),
        ([noise_image(), noise_image(0, (8, 8))], 1, "frame 1 has 8 x 8 pixels and frame 0 28 x 28"),
        ([noise_image()], 0, "fps is 0"),
    ):
        with pytest.raises(sg.ImageError, match=message):
            sg.Video(frames, fps)
    for wrong in (0, True, 2.0, "4"):
        with pytest.raises(sg.ImageError, match="whole number from 1"):
            sg.open_video(video, wrong)


def test_long_animations_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("sinkgate.images.video.MAX_ANIMATION_PIXELS", 5000)
    with pytest.raises(sg.ImageError, match="10 frames of 32 x 16 pixels"):
        sg.open_video(animation("GIF"))


def test_pictures_are_no_animations():
    file = io.BytesIO()
    grey(9).save(file, "PNG")
    assert open_animation(file.getvalue(), 4) is None and open_animation(b"GIF89a cut", 4) is None
    whole = animation("GIF")
    with pytest.raises(sg.ImageError, match="damaged"):
        sg.open_video(whole[: len(whole) // 2] + bytes(40) + whole[len(whole) // 2 :], 10)
