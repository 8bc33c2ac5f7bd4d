"""Provenance of results: model, data, versions, commit."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sinkgate.models.dimensions import WEIGHTS
from sinkgate.models.vlm import VLM

PACKAGES = ("sinkgate", "torch", "transformers", "scikit-learn", "numpy", "pyarrow")


def facts_of(vlm: VLM) -> dict[str, Any]:
    """Return what identifies a model: name, revision, class, layers, precision.

    The revision is the commit on the Hub; for a folder the checksum of its weights (`sinkgate.models.weights.checksum`).
    """
    config = vlm.model.config
    return {
        "name": vlm.name,
        "revision": getattr(config, "_commit_hash", None) or vlm.weights_checksum,
        "class": type(vlm.model).__name__,
        "layers": vlm.num_layers,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        **({"quantization": _plain(quantized)} if (quantized := getattr(config, "quantization_config", None)) else {}),
        "attention": config.get_text_config()._attn_implementation,
    }


def _plain(quantized: Any) -> Any:
    return json.loads(json.dumps(quantized if isinstance(quantized, dict) else quantized.to_dict(), default=str))


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that numbers depend on, and the commit of the sources if they are a checkout."""
    commit = _commit()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        **({"git commit": commit} if commit else {}),
    }


def _commit() -> str | None:
    """Return the commit of the sources, with "+" if they have changes; None if they are no checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        outputs = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "sinkgate"))
        ]
        return outputs[0].strip() + ("+" if outputs[1].strip() else "")
    return None


def checksum_of(path: Path, suffixes: Sequence[str] = WEIGHTS, most: int = 1 << 20) -> str | None:
    """Return a checksum of a file, or of the files in a folder: names, sizes, first and last bytes.

    Args:
        path: file or folder.
        suffixes: endings of the files in a folder.
        most: bytes to read at the beginning and at the end of each file.

    Returns:
        16 hexadecimal digits, None if there is no such file.

    Example:
        >>> checksum_of(Path("gates.json"))
    """
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in suffixes)
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            digest.update(weights.read(most))
            weights.seek(max(0, size - most))
            digest.update(weights.read(most))
    return digest.hexdigest()[:16]
