"""Gates as JSON text and files: format, version, model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sinkgate.errors import GateError, with_remedy

FORMAT = "sinkgate-gates"
VERSION, FINE_VERSION = 1, 2  # of the JSON format: fixed gates, and those limited to rows or heads


def to_json(version: int, model: str | None, layers: int, content: Mapping[str, Any]) -> str:
    """Return gates as JSON text."""
    return json.dumps({"format": FORMAT, "version": version, "model": model, "layers": layers, **content}, indent=1)


def read_content(text: str, version: int) -> dict[str, Any]:
    """Return the JSON object of gates of this version.

    Raises:
        GateError: no JSON, or another format or version.
    """
    content = _json_object(text)
    if not isinstance(content.get("scales"), dict):
        raise GateError('gates are a JSON object with "scales" by group; write one with Gates.to_json()')
    if content.get("format", FORMAT) != FORMAT:
        raise GateError(f"the file's format is {content['format']!r}, expected {FORMAT!r}")
    got = content.get("version", VERSION)
    if got == version:
        return content
    readers = {
        VERSION: "fixed gates: read them with Gates",
        FINE_VERSION: "limited to rows or heads: read them with FineGates",
    }
    known = isinstance(got, int) and got in readers
    why = (
        f"are {readers[got]}"
        if known
        else f"need another release of sinkgate; this one reads versions {VERSION} and {FINE_VERSION}"
    )
    raise GateError(f"gates of version {got!r} {why}")


def version_of(text: str) -> Any:
    """Return the version that JSON text names; None if it names none or is no JSON object."""
    return _json_object(text).get("version")


def model_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of the model that gates were made for.

    Raises:
        GateError: it is no name.
    """
    model = content.get("model")
    if model is not None and not isinstance(model, str):
        raise GateError(f'"model" is a name or null, got {model!r}')
    return model


def save_text(text: str, path: str | Path) -> None:
    """Write gates to a file, whose folder is created if it is missing.

    Raises:
        GateError: the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise GateError(f"the gates cannot be written to {path}: {with_remedy(error)}") from error


def load_text(path: str | Path) -> str:
    """Read a file of gates.

    Raises:
        GateError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise GateError(f"the gates file {path} cannot be read: {with_remedy(error)}") from error


def _json_object(text: str) -> dict[str, Any]:
    """Return a JSON object; an empty one for JSON of another kind."""
    try:
        content = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise GateError(f"the gates are no valid JSON: {error}") from error
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}
