"""Pictures as upright RGB of bounded size, from files, bytes, arrays and Pillow images."""

from __future__ import annotations

import base64
import io
import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from sinkgate.errors import ImageError, with_remedy

#: Types that `open_image` reads.
Picture = (
    str | Path | bytes | bytearray | memoryview | BinaryIO | Mapping[str, Any] | Image.Image | NDArray[Any] | Tensor
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # and HEIC, where pillow-heif is installed
MAX_PIXELS = 25_000_000  # of the result; larger pictures are reduced
MAX_SOURCE_PIXELS = 120_000_000  # of the source: the largest photographs of phones, within the limits of memory
_ARRAYS = "expected (height, width), (height, width, 1, 3 or 4) or (1, 3 or 4, height, width)"
_OVERVIEW = "`sinkgate.open_image` reads file names, bytes, open files, Pillow images, arrays and tensors"
_one_large = threading.Lock()  # decoding takes up to a gigabyte: large pictures are opened one by one


def open_image(source: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture as upright RGB, without metadata.

    Transparent pixels become white, 16 bits 8, CMYK RGB; the first frame of an animation is used. A larger picture is reduced without a
    change of its aspect ratio; photographs of up to 120 million pixels are read.

    Args:
        source: a file name, a data URL in base64, the bytes of a file, a file opened for reading bytes, a Pillow image, ``{"bytes": ..., "path": ...}`` as
            ``datasets`` stores images, or an array or tensor of shape (height, width), (height, width, channels) or (channels, height,
            width) with 1, 3 or 4 channels: whole numbers from 0 to 255, or fractions from 0 to 1.
        max_pixels: width times height of the result at most.

    Raises:
        ImageError: not a picture, empty, truncated, closed, of another format, or of more than 120 million pixels.

    Example:
        >>> open_image(np.zeros((40, 60, 3), np.uint8)).size
        (60, 40)
    """
    if isinstance(source, np.ndarray | Tensor):
        source = _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels)
    data = read_bytes(source)
    if not data:
        raise ImageError("the image file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
        try:
            image = Image.open(io.BytesIO(data), formats=(*FORMATS, *_heif(data)))
        except Image.UnidentifiedImageError as error:
            raise ImageError(_unreadable(data)) from error
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"the picture is too large; at most {MAX_SOURCE_PIXELS // 10**6} million pixels are read"
            ) from error
        except Exception as error:
            raise ImageError(f"the picture is damaged or cut short: {error}") from error
        with image:
            _check_size(image)
            width, height = _fitted(image.size, max_pixels)
            image.draft("RGB", (width, height))  # decodes JPEG files at a half, quarter or eighth if that suffices
            return _decode(image, max_pixels)


def open_images(sources: Picture | Iterable[Picture]) -> list[Image.Image]:
    """Return one picture, or several, as `open_image` does; an error in one of several has its number.

    Raises:
        ImageError: as `open_image`.
    """
    if is_one_picture(sources):
        return [open_image(cast(Picture, sources))]
    several, opened = list(cast(Iterable[Picture], sources)), []
    for number, source in enumerate(several, 1):
        try:
            opened.append(open_image(source))
        except ImageError as error:
            if len(several) == 1:
                raise
            raise ImageError(f"picture {number} of {len(several)}: {error}") from error
    return opened


def is_one_picture(sources: Any) -> bool:
    """Return whether this is one picture, not a collection of them."""
    if isinstance(sources, np.ndarray | Tensor):
        return sources.ndim < 4
    one = (str, bytes, bytearray, memoryview, Mapping)
    return isinstance(sources, one) or hasattr(sources, "read") or not isinstance(sources, Iterable)


def read_bytes(source: Any) -> bytes:
    """Return the bytes of a file from any source that `open_image` reads.

    Raises:
        ImageError: it cannot be opened.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Mapping):
        for name in ("bytes", "path"):
            if source.get(name):
                return read_bytes(source[name])
        keys = ", ".join(map(repr, source)) or "nothing"
        raise ImageError(f'a dictionary of a picture holds "bytes" or "path"; got {keys}')
    if hasattr(source, "read"):
        return _read_open(source)
    if not isinstance(source, str | Path):
        raise ImageError(f"got {type(source).__name__}, expected a picture: {_OVERVIEW}")
    if is_data_url(str(source)):
        return _from_data_url(str(source))
    if str(source).lower().startswith(("http:", "https:", "ftp:", "s3:", "gs:", "hf:")):
        address = str(source).partition(":")[0] + ": addresses are not read"
        raise ImageError(f"{address} ({_short(source)}); download the picture and give its file or bytes")
    try:
        return Path(source).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a zero byte; RuntimeError: an unknown ~user
        raise ImageError(f"the file {_short(source)} cannot be opened: {with_remedy(error)}") from error


def is_data_url(source: Any) -> bool:
    """Return whether a source is text that holds a file itself, ``data:...``."""
    return isinstance(source, str) and source[:5].lower() == "data:"


def _from_data_url(url: str) -> bytes:
    head, _, data = url.partition(",")
    try:
        if not head.lower().endswith(";base64"):
            raise ValueError
        return base64.b64decode("".join(data.split()), validate=True)
    except ValueError as error:
        raise ImageError(f"this data URL is no base64 ({_short(url)}); expected data:image/png;base64,...") from error


def _read_open(file: Any) -> bytes:
    try:
        if file.seekable():
            file.seek(0)  # a file just written is at its end
        data = file.read()
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"the open file cannot be read: {error}; open it anew, with mode 'rb'") from error
    if not isinstance(data, bytes):
        raise ImageError("the file is open as text; open it with mode 'rb'")
    return data


def _short(source: str | Path) -> str:
    name = str(source)
    return name if len(name) <= 200 else f"{name[:100]}... of {len(name):,} characters"


def _heif(data: bytes) -> tuple[str, ...]:
    """Return the format of HEIC pictures, which iPhones write, if this may be one and pillow-heif is there to read it."""
    if data[4:8] != b"ftyp" or find_spec("pillow_heif") is None:
        return ()
    import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)


def _unreadable(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "this is a HEIC picture, or a video; save it as JPEG or PNG, or install pillow-heif to read HEIC"
    return f"this is no picture that can be read; expected one of {', '.join(FORMATS)}"


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_SOURCE_PIXELS:
        raise ImageError(
            f"the picture has {width} x {height} pixels; at most {MAX_SOURCE_PIXELS // 10**6} million are read: make it smaller"
        )
    if not width or not height:
        raise ImageError(f"the picture has {width} x {height} pixels")


def _fitted(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return the size of a picture, reduced to ``max_pixels``."""
    width, height = size
    if width * height <= max_pixels:
        return size
    shrink = (max_pixels / (width * height)) ** 0.5
    fitted = max(1, int(width * shrink)), max(1, int(height * shrink))
    return min(fitted[0], max_pixels), min(fitted[1], max_pixels)  # strips


def _decode(image: Image.Image, max_pixels: int) -> Image.Image:
    """Load the pixels and convert them as `open_image` does."""
    _check_size(image)
    large = image.width * image.height > MAX_PIXELS
    with _one_large if large else nullcontext():
        try:
            image.load()
        except Exception as error:  # a broken file can raise any error in Pillow's decoders
            if isinstance(error, AssertionError) or "closed" in str(error):
                raise ImageError(
                    "the picture was closed before its pixels were read; open it again, or call its load() in time"
                ) from error
            raise ImageError(f"the picture is damaged or cut short: {error}") from error
        try:
            return _to_rgb(image, max_pixels)
        except Exception as error:
            raise ImageError(f"a picture of mode {image.mode} cannot be made RGB: {error}") from error


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = image.convert("I")
    clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if clear:
        image = image.convert("RGBA")
    elif not image.mode.startswith(("I", "F")):
        image = image.convert("RGB")  # pixels of a palette, or of one bit, cannot be averaged
    if (size := _fitted(image.size, max_pixels)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if image.mode in ("I", "F"):
        image = _to_8_bits(image)
    if clear:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    clean = Image.new("RGB", image.size)
    clean.paste(image.convert("RGB"))
    return clean


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    top = 1.0 if values.max() <= 1 and image.mode == "F" else 255.0 if values.max() <= 255 else 65535.0
    return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))


def _from_array(source: NDArray[Any] | Tensor) -> Image.Image:
    if isinstance(source, Tensor):
        values = source.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    else:
        values = source
    shape = tuple(values.shape)
    if values.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)) or not values.size:
        raise ImageError(f"an array of a picture has shape {shape}; {_ARRAYS}")
    if values.dtype.kind not in "buif":
        raise ImageError(f"an array of a picture holds {values.dtype}; expected numbers")
    low, high = values.min(), values.max()
    if values.dtype.kind == "b":
        values = values * np.uint8(255)
    elif not (low >= 0 and high <= 255):  # NaN compares false
        raise ImageError(
            f"an array of a picture holds values from {low:g} to {high:g}; expected 0 to 255, or fractions from 0 to 1 "
            "(pixels that a processor has normalised are no picture any more)"
        )
    elif values.dtype.kind == "f":
        values = (values * (255 if high <= 1 else 1)).round()
    values = values.astype(np.uint8)
    return Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values)
