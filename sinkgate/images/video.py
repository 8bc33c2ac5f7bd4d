"""Videos as frames: opened from files and chosen evenly."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from sinkgate.errors import ImageError
from sinkgate.images.io import MAX_PIXELS, open_image, open_images, read_bytes

FRAMES = 8  # of a file, where no number is given
SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".ts")
MAX_FILE_FRAMES = 100_000  # about an hour at 25 frames a second; longer files are to be cut first
MAX_ANIMATION_PIXELS = 500_000_000  # of all frames of an animation: Pillow decodes each, in seconds
#: Types that `open_video` reads.
VideoFile = str | Path | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True, repr=False)
class Video:
    """Frames of one size at even distances in time.

    Args:
        frames: pictures as `open_image` reads them, 1 or more.
        fps: of these frames in a second, above 0. Models that read times are given i / fps for frame i.

    Raises:
        ImageError: there is no frame, a frame cannot be read, they differ in size, or ``fps`` is not above 0.

    Example:
        >>> Video([Image.new("RGB", (64, 64))] * 4, fps=2)
        Video(4 frames of 64 x 64 pixels, 2 a second)
    """

    frames: Sequence[Image.Image]
    fps: float = 1.0

    def __post_init__(self) -> None:
        frames = tuple(open_images(self.frames))
        if not frames:
            raise ImageError("the video has no frame; expected at least one")
        for number, frame in enumerate(frames):
            if frame.size != frames[0].size:
                sizes = [f"{each.width} x {each.height}" for each in (frame, frames[0])]
                raise ImageError(
                    f"frame {number} has {sizes[0]} pixels and frame 0 {sizes[1]}; give frames of one size"
                )
        if not self.fps > 0:
            raise ImageError(f"fps is {self.fps!r}; expected the frames in a second, above 0")
        object.__setattr__(self, "frames", frames)

    def __repr__(self) -> str:
        width, height = self.frames[0].size
        noun = "frame" if len(self.frames) == 1 else "frames"
        return f"Video({len(self.frames)} {noun} of {width} x {height} pixels, {self.fps:g} a second)"

    def evenly(self, frames: int) -> Video:
        """Return so many of the frames at even distances, the first among them; all where there are not more."""
        indices = even_indices(len(self.frames), frames)
        return Video([self.frames[index] for index in indices], self.fps * len(indices) / len(self.frames))


def open_video(
    source: VideoFile | Video, frames: int = FRAMES, *, max_pixels: int = MAX_PIXELS, max_decoded: int | None = None
) -> Video:
    """Return frames of a video at even distances, upright RGB.

    Animated GIF, WebP and PNG files are read by Pillow, all others by PyAV: ``pip install "sinkgate[video]"``.

    Args:
        source: a file name, the bytes of a file, a file opened for reading bytes, or a `Video`.
        frames: how many, from 1; fewer where the file has fewer. Frame i of N is the first of the i-th of N equal parts.
        max_pixels: width times height of a frame at most; larger ones are reduced.
        max_decoded: pixels of all frames up to the last one returned, at most: PyAV decodes each; no limit where None.

    Raises:
        ImageError: not a video, empty, damaged, too long, PyAV is missing, or ``frames`` is no whole number from 1.

    Example:
        >>> open_video("clip.mp4", frames=16)
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ImageError(f"frames is {frames!r}; expected a whole number from 1")
    if isinstance(source, Video):
        return source.evenly(frames)
    data = read_bytes(source)
    if not data:
        raise ImageError("the video file is empty")
    return open_animation(data, frames, max_pixels=max_pixels) or _decoded(data, frames, max_pixels, max_decoded)


def open_animation(data: bytes, frames: int, *, max_pixels: int = MAX_PIXELS) -> Video | None:
    """Return frames of an animated GIF, WebP or PNG as `open_video` does; None for any other file.

    Args:
        data: the bytes of the file.
        frames: how many, from 1.
        max_pixels: width times height of a frame at most.

    Raises:
        ImageError: the animation is damaged or too long.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
        try:
            animation: Any = Image.open(io.BytesIO(data), formats=("GIF", "WEBP", "PNG"))
            count: int = getattr(animation, "n_frames", 1)
        except Exception:  # noqa: BLE001 - a broken file can raise any error in Pillow's readers
            return None
        with animation:
            if count < 2:
                return None
            if count * animation.width * animation.height > MAX_ANIMATION_PIXELS:
                raise ImageError(
                    f"the animation has {count:,} frames of {animation.width} x {animation.height} pixels, and at most "
                    f"{MAX_ANIMATION_PIXELS // 10**6} million pixels are read: cut it, or make it smaller"
                )
            return _animated(animation, count, frames, max_pixels)


def as_video(source: Any, frames: int | None) -> Video | None:
    """Return a video where the source is one or ``frames`` asks for one; None for pictures."""
    if isinstance(source, Video):
        return source if frames is None else source.evenly(frames)
    named = isinstance(source, str | Path) and str(source).lower().endswith(SUFFIXES)
    return open_video(source, FRAMES if frames is None else frames) if named or frames is not None else None


def even_indices(count: int, frames: int) -> list[int]:
    """Return the first index of each of ``frames`` equal parts of ``count``; all indices where there are not more."""
    frames = min(count, frames)
    return [index * count // frames for index in range(frames)]


def _animated(animation: Any, count: int, frames: int, max_pixels: int) -> Video:
    pictures: list[Image.Image] = []
    milliseconds = 0.0
    try:
        wanted = set(even_indices(count, frames))
        for index in range(count):
            animation.seek(index)
            if index in wanted:
                pictures.append(open_image(animation.copy(), max_pixels=max_pixels))
            else:
                animation.load()  # durations of later frames are read with the pixels
            milliseconds += animation.info.get("duration") or 100.0  # as browsers show frames without one
    except ImageError:
        raise
    except Exception as error:  # as above
        raise ImageError(f"the animation is damaged or cut short: {error}") from error
    return Video(pictures, len(pictures) / milliseconds * 1000)


def _decoded(data: bytes, frames: int, max_pixels: int, max_decoded: int | None) -> Video:
    if find_spec("av") is None:
        raise ImageError(
            'reading this video needs PyAV: run `pip install "sinkgate[video]"`; animated GIFs need nothing more'
        )
    av: Any = import_module("av")
    try:
        with closing(av.open(io.BytesIO(data))) as container:
            if not container.streams.video:
                raise ImageError("the file holds no video stream")
            stream = container.streams.video[0]
            times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            if len(times) > MAX_FILE_FRAMES:
                raise ImageError(
                    f"the video has {len(times):,} frames; at most {MAX_FILE_FRAMES:,} are read: cut it first"
                )
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            indices = even_indices(len(times), frames)
            wanted = {times[index] for index in indices}
        pictures: list[Image.Image] = []
        decoded = 0  # pixels
        with closing(av.open(io.BytesIO(data))) as container:
            for frame in container.decode(video=0):
                decoded += frame.width * frame.height
                if max_decoded is not None and decoded > max_decoded:
                    raise ImageError(
                        f"the video has {len(times):,} frames of {frame.width} x {frame.height} pixels, and at most "
                        f"{max_decoded // 10**6:,} million pixels are read: cut it, or make it smaller"
                    )
                if frame.pts in wanted:
                    wanted.discard(frame.pts)
                    upright = frame.to_image().rotate(getattr(frame, "rotation", 0), expand=True)
                    pictures.append(open_image(upright, max_pixels=max_pixels))
                if not wanted:
                    break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"this is no video that can be read, or it is damaged: {error}") from error
    if not pictures:
        raise ImageError("no frame of the video can be decoded; it may be damaged or cut short")
    return Video(pictures, rate * len(pictures) / len(times))
