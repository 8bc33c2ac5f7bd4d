"""Opening pictures that strangers hand in: checked first, then plain RGB, upright, of bounded size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sinkgate.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 25_000_000


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """A picture as upright RGB, without metadata.

    Transparency is laid on white, 16 bits become 8, CMYK becomes RGB, of an animation the first frame is taken.

    Raises:
        ImageError: not a picture, empty, truncated, of another format, or of more than 25 million pixels.
    """
    if isinstance(source, Image.Image):
        _check_size(source)
        return _to_rgb(source)
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise ImageError("the image file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image)
                image.load()
                return _to_rgb(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"this is no picture that can be read; expected one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture is too large; at most {MAX_PIXELS // 10**6} million pixels") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file drives them to
        raise ImageError(f"the picture is damaged or cut short: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"the image cannot be opened: {error.strerror or error} ({path})") from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the picture has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million can be used"
        )
    if not width or not height:
        raise ImageError(f"the picture has {width} x {height} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    clean = Image.new("RGB", image.size)
    clean.paste(image.convert("RGB"))
    return clean


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, posinf=0, neginf=0)
    top = 1.0 if values.max() <= 1 and image.mode == "F" else 255.0 if values.max() <= 255 else 65535.0
    return Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
