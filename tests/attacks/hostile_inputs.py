"""Hypothesis strategies for bodies, values, names and pictures that no regular client sends."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

from hypothesis import strategies as st
from PIL import Image

XSS = (
    "<img src=x onerror=\"document.title='pwned'\">", "<script>document.title='pwned'</script>", "javascript:alert(1)",
    "${document.title='pwned'}", "{{constructor.constructor('document.title=1')()}}", "</textarea><svg onload=alert(1)>",
    "`${alert(1)}`", "'\"><iframe srcdoc='<script>parent.document.title=1</script>'>",
)  # fmt: skip
TRAVERSAL = (
    "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "..%2f..%2fetc%2fpasswd", "....//....//etc/passwd",
    "/proc/self/environ", "C:\\windows\\win.ini", "\0/etc/passwd", "/dev/zero", "~/.ssh/id_rsa", ".", "..", "/",
)  # fmt: skip
ODD = (
    "", " ", "\0", "\u202e", "\ufeff", "é" * 400, "a" * 501, "a" * 5000, "<image>", "<image>" * 50, "<|im_end|>", "%s%n", "🦩" * 90,
    "[" * 3000, "null", "NaN", "1e999", "True", "{0.__class__}", "\n" * 600,
)  # fmt: skip


def texts(listener: str) -> st.SearchStrategy[str]:
    """Hostile and odd texts; among them the address of a listener."""
    addresses = [f"{listener}/x.png", f"{listener.replace('http', 'ftp')}/x", f"{listener}@evil.example/"]
    return st.sampled_from([*XSS, *TRAVERSAL, *ODD, *addresses]) | st.text(max_size=60)


def numbers() -> st.SearchStrategy[Any]:
    """Numbers at and beyond the edges."""
    edges = [0, -1, 1, 2, 4, 4.000001, 1e308, -1e308, 1e-320, 2**31, 2**63, -(2**63), 10**30, True, False]
    return st.sampled_from(edges) | st.integers(-20, 20) | st.floats(allow_nan=False, allow_infinity=False)


def junk(listener: str) -> st.SearchStrategy[Any]:
    """Any JSON, with hostile leaves."""
    keys = st.sampled_from(["__type__", "constructor", "__proto__", "scene", "choice", "v_sink", "share"]) | st.text(
        max_size=8
    )
    return st.recursive(
        st.none() | numbers() | texts(listener),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )


def poison(listener: str) -> st.SearchStrategy[Any]:
    """Junk that holds files, or lies too deep."""
    inner = junk(listener)
    return files(listener) | nested(inner) | st.lists(files(listener), max_size=3)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists in lists, sometimes too many."""

    def wrap(value: Any, depth: int) -> Any:
        for _ in range(depth):
            value = [value]
        return value

    return st.builds(wrap, inner, st.sampled_from([3, 20, 60, 400]))


def files(listener: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that Gradio takes for files, of files that nobody uploaded."""
    return st.fixed_dictionaries(
        {"path": st.none() | texts(listener), "meta": st.just({"_type": "gradio.FileData"}) | texts(listener)},
        optional={
            "url": texts(listener)
            | st.just("data:image/png;base64,AAAA")
            | st.just("data:text/html,<script>1</script>"),
            "orig_name": texts(listener) | numbers(),
            "is_stream": st.booleans(),
            "size": numbers(),
            "mime_type": texts(listener),
        },
    )


def spoiled(value: Any, junk: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A valid value in which any part may be gone, doubled or something else."""
    whole = st.just(value)
    if isinstance(value, dict):
        parts = {key: spoiled(part, junk) for key, part in value.items()}
        return whole | st.fixed_dictionaries(parts) | st.fixed_dictionaries({}, optional=parts) | junk
    if isinstance(value, list):
        parts = [spoiled(part, junk) for part in value[:3]] or [junk]
        return whole | st.lists(st.one_of(parts), max_size=40) | junk
    return st.one_of(whole, whole, junk)


def spoiled_json(value: Any, junk: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """The JSON of a spoiled value, perhaps cut short or with bytes turned over."""
    written = spoiled(value, junk).map(json.dumps)
    cut = st.builds(lambda text, share: text[: int(len(text) * share)], written, st.floats(0, 1))
    bent = written.map(lambda text: text.replace("1.0", "NaN", 1).replace("[", "[[", 1))
    return written | cut | bent


@st.composite
def pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file that might be a picture, with a name: formats and modes of all kinds, broken in all ways."""
    kind = draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "ICNS"]))
    mode = draw(st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LA", "YCbCr"]))
    size = draw(st.sampled_from([(1, 1), (32, 32), (1, 3000), (3000, 1), (300, 17), (700, 700)]))
    data = io.BytesIO()
    image = Image.new(mode, size)
    try:
        image.save(data, kind, exif=exif(draw(st.binary(max_size=40))))
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, struct.error):
        data = io.BytesIO()
        image.convert("RGB").save(data, "PNG")
    content = bytearray(data.getvalue())
    for _ in range(draw(st.sampled_from([0, 1, 3, 20]))):  # bytes turned over
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    content = content[: draw(st.sampled_from([len(content), len(content) // 2, 20, 3]))]
    if draw(st.booleans()):
        content += draw(st.binary(max_size=100))
    if draw(st.integers(0, 9)) == 0:
        content = bytearray(bomb(*draw(st.sampled_from([(60_000, 60_000), (2**31 - 1, 1), (0, 5), (20_000, 20_000)]))))
    name = draw(
        st.sampled_from(
            [
                "a.png",
                "a.jpg",
                "a.webp",
                "a.jpeg",
                "<b onclick=1>.png",
                "..png",
                "a.PNG",
                "a.gif",
                "a.tiff",
                "é" * 90 + ".png",
            ]
        )
    )
    return name, bytes(content)


def exif(content: bytes) -> bytes:
    """Metadata that a camera never wrote."""
    return b"Exif\0\0" + content


def bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be a huge PNG."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(60_000))) + chunk(b"IEND", b"")
    )
