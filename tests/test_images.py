import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sinkgate as sg
from sinkgate.images import MAX_PIXELS


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that announce a huge picture: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 7), 40000, np.uint16))
    elif mode in ("LA", "HSV", "LAB", "YCbCr"):
        image = Image.new("RGB", (7, 9), "red").convert(mode) if mode != "LA" else Image.new("LA", (7, 9), (10, 0))
    else:
        image = Image.new(mode, (7, 9))
    opened = sg.open_image(image)
    assert opened.mode == "RGB" and opened.size == (7, 9)


def test_transparency_is_laid_on_white_and_16_bits_keep_their_light():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert sg.open_image(encoded(clear)).getpixel((1, 1)) == (255, 255, 255)
    grey = Image.fromarray(np.full((4, 4), 32896, np.uint16))
    assert sg.open_image(encoded(grey)).getpixel((1, 1)) == (128, 128, 128)


def test_cmyk_jpeg_and_animated_gif():
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = sg.open_image(cmyk).getpixel((4, 4))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > 200 and green < 60 and blue < 60
    frames = [Image.new("RGB", (8, 8), color) for color in ("blue", "red")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert sg.open_image(animated).getpixel((4, 4)) == (0, 0, 255)


def test_exif_orientation_is_applied_and_metadata_dropped():
    image = Image.new("RGB", (10, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    exif[0x010F] = "camera"
    opened = sg.open_image(encoded(image, "JPEG", exif=exif))
    assert opened.size == (20, 10) and not opened.getexif() and not opened.info


def test_what_is_no_picture(tmp_path):
    whole = encoded(Image.effect_noise((64, 64), 50))
    (tmp_path / "empty.png").touch()
    cases = {
        b"": "empty",
        b"hello": "no picture",
        b"%PDF-1.4": "no picture",
        whole[: len(whole) // 2]: "damaged or cut short",
        png_that_claims(60_000, 60_000): "60000 x 60000 pixels|too large",
        png_that_claims(6000, 5000): "6000 x 5000 pixels",
    }
    for data, message in cases.items():
        with pytest.raises(sg.ImageError, match=message):
            sg.open_image(data)
    for path, message in (
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "none.png", "No such file"),
        (tmp_path, "cannot be opened"),
    ):
        with pytest.raises(sg.ImageError, match=message):
            sg.open_image(path)
    assert MAX_PIXELS == 25_000_000


@given(st.binary(max_size=200), st.integers(0, 2000))
@settings(max_examples=80, deadline=None)
def test_garbage_never_raises_anything_else(noise, position):
    whole = encoded(Image.effect_noise((32, 32), 50).convert("RGB"), "JPEG")
    position %= len(whole)
    for data in (noise, whole[:position] + noise + whole[position + len(noise) :]):
        try:
            assert sg.open_image(data).mode == "RGB"
        except sg.ImageError as error:
            assert str(error)
