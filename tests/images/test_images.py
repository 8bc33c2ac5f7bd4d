import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

import sinkgate as sg
from sinkgate.images.io import MAX_PIXELS, open_images


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
        png_that_claims(12_000, 11_000): "12000 x 11000 pixels; at most 120 million",
        b"\0\0\0\x18ftypheic" + bytes(20): "HEIC",
    }
    for data, message in cases.items():
        with pytest.raises(sg.ImageError, match=message):
            sg.open_image(data)
    for path, message in (
        (tmp_path / "empty.png", "empty"),
        (tmp_path / "none.png", "none.png cannot be opened: No such file or directory; check the path"),
        (tmp_path, f"{tmp_path} cannot be opened: Is a directory; give a file"),
        ("a\0b", "cannot be opened"),
        ("iVBORw0KGgo" * 1000, "characters cannot be opened"),
        ("https://example.org/cat.jpg", "addresses are not read"),
        ("data:image/png;base64,iVBORw0KGgo=", "no picture that can be read"),
        ("data:image/png;base64,iVBORw0KGgo", "this data URL is no base64"),
        ("data:image/svg+xml,<svg/>", "this data URL is no base64"),
    ):
        with pytest.raises(sg.ImageError, match=message):
            sg.open_image(path)


QUICK = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}}  # of the encoders, where they are slow


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_a_phones_photograph_is_made_smaller_and_stands_upright(kind):
    """48 megapixels, held upright: the sensor's picture lies on its side, EXIF says so. A sixteenth of all sizes in other files than JPEG."""
    part = 1 if kind == "JPEG" else 4
    photograph = Image.linear_gradient("L").resize((8064 // part, 6048 // part), Image.Resampling.NEAREST)  # dark above
    exif = photograph.getexif()
    exif[0x0112] = 6  # turn clockwise
    options = {"exif": exif, **QUICK.get(kind, {})}
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [photograph]}
    most = MAX_PIXELS // part**2
    opened = sg.open_image(encoded(photograph, kind, **options), max_pixels=most)
    assert 0.99 * most < opened.width * opened.height <= most
    assert opened.width / opened.height == pytest.approx(6048 / 8064, rel=1e-3)
    left, right = (opened.getpixel((x, opened.height // 2)) for x in (0, opened.width - 1))
    assert left == (255, 255, 255) and right == (0, 0, 0)


def test_a_large_photograph_is_decoded_at_the_size_that_is_needed(monkeypatch):
    photograph, sizes = encoded(Image.linear_gradient("L").resize((4000, 3000)), "JPEG"), []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", lambda image: (load(image), sizes.append(image.size))[0])
    assert sg.open_image(photograph, max_pixels=400_000).size == (730, 547)
    assert set(sizes) == {(1000, 750)}  # a quarter: 16 times less memory


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F"])
def test_every_mode_can_be_made_smaller(mode):
    light = np.full((300, 200), 40000 if mode == "I;16" else 200, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(light) if mode == "I;16" else Image.fromarray(light).convert(mode)
    opened = sg.open_image(image, max_pixels=5000)
    assert opened.mode == "RGB" and opened.size == (57, 86)
    assert np.ptp(np.asarray(opened), axis=(0, 1)).max() <= 1 or mode == "1"  # dithered
    assert sg.open_image(Image.new("RGB", (30_000, 1)), max_pixels=5000).size == (5000, 1)


RED = np.zeros((5, 7, 3), np.uint8)
RED[..., 0] = 255


def red_file(tmp_path):
    Image.fromarray(RED).save(tmp_path / "red.png")
    return (tmp_path / "red.png").open("rb")


def written_to_its_end(_tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, "PNG")
    return buffer


READABLE = {
    "bytearray": lambda _: bytearray(encoded(Image.fromarray(RED))),
    "memoryview": lambda _: memoryview(encoded(Image.fromarray(RED))),
    "a buffer at its end": written_to_its_end,
    "an open file": red_file,
    "datasets, bytes": lambda _: {"bytes": encoded(Image.fromarray(RED)), "path": None},
    "datasets, path": lambda folder: {"bytes": None, "path": red_file(folder).name},
    "a file name": lambda folder: red_file(folder).name,
    "a lazily opened picture": lambda _: Image.open(io.BytesIO(encoded(Image.fromarray(RED)))),
    "numpy": lambda _: RED,
    "numpy, whole numbers": lambda _: RED.astype(np.int64),
    "numpy, fractions": lambda _: RED / 255,
    "numpy, channels first": lambda _: RED.transpose(2, 0, 1),
    "numpy, transparent": lambda _: np.dstack([RED, np.full((5, 7), 255, np.uint8)]),
    "torch": lambda _: torch.from_numpy(RED).permute(2, 0, 1),
    "torch, bfloat16": lambda _: (torch.from_numpy(RED).permute(2, 0, 1) / 255).bfloat16().requires_grad_(),
}


@pytest.mark.parametrize("kind", READABLE)
def test_pictures_come_in_many_forms(kind, tmp_path):
    opened = open_images(READABLE[kind](tmp_path))
    assert len(opened) == 1 and np.array_equal(np.asarray(opened[0]), RED)


def test_grey_arrays_and_collections_of_pictures():
    grey = np.array([[0, 128], [255, 0]], np.uint8)
    for array in (grey, grey[..., None], grey[None], torch.from_numpy(grey), grey / 255):
        assert np.array_equal(np.asarray(sg.open_image(array))[..., 1], grey)
    assert np.asarray(sg.open_image(np.array([[True, False]])))[..., 0].tolist() == [[255, 0]]
    for several in ([RED, RED], (RED, RED), np.stack([RED, RED]), iter([RED, RED])):
        assert [image.size for image in open_images(several)] == [(7, 5), (7, 5)]


def closed_picture() -> Image.Image:
    image = Image.open(io.BytesIO(encoded(Image.fromarray(RED))))
    image.close()
    return image


def left_behind(tmp_path) -> Image.Image:
    with Image.open(red_file(tmp_path)) as image:
        pass
    return image


def closed_file(tmp_path):
    file = red_file(tmp_path)
    file.close()
    return file


NOISE = encoded(Image.effect_noise((64, 64), 50))
REFUSED = {
    "truncated, lazily opened": (lambda _: Image.open(io.BytesIO(NOISE[: len(NOISE) // 2])), "damaged or cut short"),
    "closed": (lambda _: closed_picture(), "was closed"),
    "left its with block": (left_behind, "was closed"),
    "a closed file": (closed_file, "closed file"),
    "text": (lambda _: io.StringIO("picture"), "mode 'rb'"),
    "an empty dictionary": (lambda _: {"bytes": None, "path": None}, "'bytes', 'path'"),
    "another dictionary": (lambda _: {"url": "x"}, "'url'"),
    "nothing": (lambda _: None, "got NoneType"),
    "a number": (lambda _: 3, "got int"),
    "normalised pixels": (lambda _: torch.linspace(-2, 2, 75).view(3, 5, 5), "from -2 to 2"),
    "not a number": (lambda _: np.full((4, 4), np.nan), "from nan"),
    "a vector": (lambda _: np.zeros(9), r"shape \(9,\)"),
    "seven channels": (lambda _: np.zeros((7, 5, 7)), r"shape \(7, 5, 7\)"),
    "no pixels": (lambda _: np.zeros((0, 5)), r"shape \(0, 5\)"),
    "words": (lambda _: np.array([["a"]]), "<U1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_in_words(kind, tmp_path):
    make, message = REFUSED[kind]
    with pytest.raises(sg.ImageError, match=message):
        open_images(make(tmp_path))
    with pytest.raises(sg.ImageError, match=f"picture 2 of 2: .*{message}"):
        open_images([RED, make(tmp_path)])


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
