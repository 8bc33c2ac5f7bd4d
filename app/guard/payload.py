"""Validation of request bodies: events that Gradio can read, and uploads of the kinds that the page uses.

The body for Gradio is built from the checked values, so that no later reader can interpret it differently.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import gradio as gr
import orjson
from gradio.utils import get_upload_folder
from gradio_client.utils import construct_args, strip_invalid_filename_characters
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sinkgate.images.video import SUFFIXES as VIDEOS

JSON = dict[str, Any]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
SUFFIXES = (*PICTURES, *VIDEOS, ".json", ".safetensors")
MAX_FILES = 4  # in an upload; the page sends at most two
MAX_DEPTH = 32  # levels of JSON; a scene has four
MAX_VALUES = 20_000
MAX_TEXT = 250_000  # characters of a value other than a picture; the longest is a file of gates
SESSION = r"[A-Za-z0-9-]{1,64}"
PICTURE = r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}"
META = {"_type": "gradio.FileData"}


def stored_pattern(folder: PurePath) -> str:
    """Return the regular expression of the paths of uploads in a folder, with the separators that its system uses."""
    between = r"[\\/]" if isinstance(folder, PureWindowsPath) else "/"
    parts = [re.escape(part.rstrip("\\/")) for part in folder.parts]
    return between.join([*parts, "[0-9a-f]{64}", rf"[^{between.strip('[]')}\x00-\x1f]{{1,200}}"])


@cache
def stored() -> str:
    """Return the regular expression of the paths of uploads in Gradio's folder."""
    return stored_pattern(Path(get_upload_folder()))


class Refused(Exception):  # noqa: N818
    """A refused request: the HTTP status, a sentence for the client, and headers."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def read_json(body: bytes) -> Any:
    """Return JSON of bounded depth and size in which every file is an upload.

    Raises:
        Refused: it is anything else.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(400, "The body of this request is not valid JSON.") from None
    left = MAX_VALUES

    def checked(part: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            raise Refused(400, f"The JSON is too large, limit {MAX_DEPTH} levels and {MAX_VALUES:,} values.")
        if isinstance(part, list):
            return [checked(item, depth + 1) for item in part]
        if isinstance(part, dict):
            part = {key: checked(item, depth + 1) for key, item in part.items()}
            return file(part) if "path" in part or "meta" in part or "url" in part else part
        if isinstance(part, str) and len(part) > MAX_TEXT and not re.fullmatch(PICTURE, part):
            raise Refused(413, f"A text has {len(part):,} characters, limit {MAX_TEXT:,}.")
        return part

    return checked(value, 1)


def file(value: JSON) -> JSON:
    """Return a file value: an upload, or a picture as a data URL. Nothing is fetched."""
    path, url, name = value.get("path"), value.get("url"), value.get("orig_name")
    drawn = isinstance(url, str) and re.fullmatch(PICTURE, url) is not None
    if path is None and not drawn:
        raise Refused(
            400, "A file must be uploaded first, or be a PNG, JPEG or WebP as a data URL: addresses are not fetched."
        )
    if path is not None and not (isinstance(path, str) and is_stored(path)):
        raise Refused(400, "This file is not on the server, or no longer: upload it again. Other paths are not read.")
    name = name[:200] if isinstance(name, str) else None
    return {"path": path, "url": url if drawn else None, "orig_name": name, "is_stream": False, "meta": META}


def is_stored(path: str) -> bool:
    """Return whether this is the path of an upload that still exists."""
    return bool(re.fullmatch(stored(), path)) and Path(path).name not in ("", ".", "..") and Path(path).is_file()


def event(value: Any, page: gr.Blocks) -> JSON:
    """Return the checked body of ``queue/join``: an event and its values."""
    index, session = _whole(value, "fn_index"), _session(value)
    if index not in page.fns or page.fns[index].fn is None:  # events that run in the browser alone
        raise Refused(404, f"There is no event {index} on this page: reload it.")
    trigger = value.get("trigger_id")
    return {
        "data": _arguments(value, page.fns[index].inputs),
        "event_data": None,  # no handler reads it
        "fn_index": index,
        "trigger_id": trigger if type(trigger) is int else None,
        "session_hash": session,
    }


def server_call(value: Any, page: gr.Blocks) -> JSON:
    """Return the checked body of ``component_server``: a function of a component, and its arguments."""
    index, session, name = _whole(value, "component_id"), _session(value), value.get("fn_name")
    functions = getattr(page.blocks.get(index), "server_fns", [])
    if name not in [function.__name__ for function in functions]:
        raise Refused(404, "There is no such function on this page: reload it.")
    return {"data": value.get("data"), "component_id": index, "fn_name": name, "session_hash": session}


def call(value: Any, page: gr.Blocks) -> JSON:
    """Return the checked body of ``call/answer``: the values, in a session for this call alone."""
    endpoint = next(fn for fn in page.fns.values() if fn.api_name == "answer")
    return {"data": _arguments(value, endpoint.inputs), "session_hash": secrets.token_hex(16)}


def call_by_name(value: Any, page: gr.Blocks) -> JSON:
    """Return the body of ``call/v2/answer``, whose values have names, as one of ``call/answer``."""
    try:
        data = construct_args(_parameters(page), (), _object(value))
    except TypeError:
        names = ", ".join(parameter["parameter_name"] for parameter in _parameters(page))
        raise Refused(400, f"The values must be named {names}.") from None
    return call({"data": data}, page)


@lru_cache(maxsize=1)
def _parameters(page: gr.Blocks) -> list[Any]:
    described: Any = page.get_api_info()
    return described["named_endpoints"]["/answer"]["parameters"]


def cancel(value: Any, page: gr.Blocks) -> JSON:  # noqa: ARG001
    """Return the checked body of ``cancel``: session, handler and event."""
    index, session = _whole(value, "fn_index"), _session(value)
    return {"session_hash": session, "fn_index": index, "event_id": _event_id(value)}


def reset(value: Any, page: gr.Blocks) -> JSON:  # noqa: ARG001
    """Return the checked body of ``reset``, which clients still send, without effect."""
    return {"event_id": _event_id(value)}


def message(value: Any, page: gr.Blocks) -> Any:  # noqa: ARG001
    """Return a message of the Model Context Protocol, which its own server checks."""
    return value if isinstance(value, list) else _object(value)


Reader = Callable[[Any, gr.Blocks], Any]


class Form:
    """Incremental check of an upload: up to four files of bounded size with known suffixes.

    The parser is the one that Gradio uses, so that both see the same parts.
    """

    def __init__(self, content_type: str, file_bytes: int) -> None:
        self.file_bytes = file_bytes
        self.files = 0
        self._header, self._value, self._disposition = b"", b"", b""
        self._size, self._ended = 0, False
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            raise Refused(415, "An upload must be sent as multipart/form-data.")
        self.boundary = options.get(b"boundary", b"")
        try:
            self._parser = MultipartParser(self.boundary, self._callbacks())  # pyright: ignore[reportArgumentType]
        except (FormParserError, ValueError):
            raise Refused(400, "This upload declares no valid boundary between its parts.") from None

    def write(self, data: bytes) -> None:
        """Check the next bytes; raises `Refused` at the first error."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise Refused(400, "This upload is malformed.") from None

    def finish(self) -> None:
        """Check the end; raises `Refused` if the upload is incomplete or empty."""
        if not self.files or not self._ended:
            raise Refused(400, "This upload is incomplete, or has no file.")

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._content,
            "on_header_end": self._header_end,
            "on_headers_finished": self._named,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._size = b"", 0

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _named(self) -> None:
        _, options = parse_options_header(self._disposition)
        self.files += 1
        if options.get(b"name") != b"files" or self.files > MAX_FILES:
            raise Refused(400, f"An upload has one to {MAX_FILES} files, each in a part named “files”.")
        name = options.get(b"filename", b"").decode("utf-8", errors="replace")
        stored = strip_invalid_filename_characters(PurePosixPath(name).name)
        if "\0" in name or PurePosixPath(stored).suffix.lower() not in SUFFIXES:
            raise Refused(
                415,
                "Use a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture, or a video; gates come as .json and .safetensors files.",
            )

    def _data(self, data: bytes, start: int, end: int) -> None:  # noqa: ARG002
        self._size += end - start
        if self._size > self.file_bytes:
            raise Refused(413, f"The file is too large, limit {self.file_bytes / 2**20:.0f} MiB.")

    def _end(self) -> None:
        self._ended = True


def _arguments(value: Any, components: Sequence[Any]) -> list[Any]:
    """Return one value for every input of an event."""
    data = _object(value).get("data")
    if not isinstance(data, list) or len(data) != len(components):
        count = len(data) if isinstance(data, list) else "no list of"
        raise Refused(400, f"This event takes {len(components)} values, got {count}.")
    return [_field(component, part) for component, part in zip(components, data, strict=True)]


def _field(component: Any, value: Any) -> Any:
    model = getattr(component, "data_model", None)
    if isinstance(component, gr.Textbox):
        if not isinstance(value, str | None):
            raise Refused(400, "A text input has a value of another type.")
        return value or ""
    if model is not None and value is not None:
        try:
            model.model_validate(value, context={"validate_meta": True})
        except ValidationError:
            raise Refused(400, "A file input has a value of another type.") from None
    return value


def _object(value: Any) -> JSON:
    if not isinstance(value, dict):
        raise Refused(400, "The body of this request must be a JSON object.")
    return value


def _whole(value: Any, name: str) -> int:
    number = _object(value).get(name)
    if type(number) is not int or not 0 <= number < math.inf:
        raise Refused(400, f"{name} must be an integer.")
    return number


def _session(value: JSON) -> str:
    session = value.get("session_hash")
    if not isinstance(session, str) or not re.fullmatch(SESSION, session):
        raise Refused(400, "session_hash must be up to 64 letters, digits or hyphens.")
    return session


def _event_id(value: Any) -> str:
    event_id = _object(value).get("event_id")
    if not isinstance(event_id, str) or not re.fullmatch(SESSION, event_id):
        raise Refused(400, "event_id must be up to 64 letters, digits or hyphens.")
    return event_id
