"""Uploaded pictures and videos, as small as the model and the memory need them."""

from __future__ import annotations

from PIL import Image

import sinkgate as sg
from sinkgate.images.io import read_bytes
from sinkgate.images.video import SUFFIXES as VIDEOS
from sinkgate.images.video import open_animation

MAX_PIXELS = 2_000_000  # of the picture that the model gets: larger ones are made smaller
FRAMES = 6  # of an uploaded video: more leave the demo model no positions for the question
MAX_DECODED = 2_000_000_000  # pixels of all frames of an uploaded video, which are decoded in about half a minute


def open_picture(picture: str) -> Image.Image:
    """Return an uploaded file (its path) or a data URL as an RGB image of at most `MAX_PIXELS`.

    Raises:
        ImageError: it is none of the formats that `sinkgate.open_image` reads, or it is broken.
    """
    return sg.open_image(_content(picture), max_pixels=MAX_PIXELS)


def open_upload(picture: str) -> Image.Image | sg.Video:
    """Return the same as `open_picture`, and of a video or an animation `FRAMES` frames at even distances, `MAX_PIXELS` together.

    Raises:
        ImageError: as `open_picture`, and as `sinkgate.open_video`.
    """
    data, limit = _content(picture), MAX_PIXELS // FRAMES
    if picture.lower().endswith(VIDEOS):
        return sg.open_video(data, FRAMES, max_pixels=limit, max_decoded=MAX_DECODED)
    return open_animation(data, FRAMES, max_pixels=limit) or sg.open_image(data, max_pixels=MAX_PIXELS)


def _content(picture: str) -> bytes:
    try:
        return read_bytes(picture)
    except sg.ImageError:
        raise sg.ImageError("The picture cannot be decoded, or its file is no longer here: upload it again.") from None
