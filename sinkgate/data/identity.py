"""Checksums that identify the samples of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sinkgate.data.sample import Sample
from sinkgate.errors import ImageError
from sinkgate.images.io import Picture, open_image


def facts_of_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the number of samples, and a checksum of pictures, questions and answers."""
    content = [
        (each.kind, *sum(each.earlier, ()), each.question, each.answer, *each.options, *map(mark_of, each.images))
        for each in samples
    ]
    return {"samples": len(samples), "checksum": checksum(content)}


def picture_of(sample: Sample) -> str:
    """Return an identity of a sample's images, equal for questions about the same ones."""
    return checksum([mark_of(image) for image in sample.images])


def mark_of(picture: Picture) -> str:
    """Return an identity of a picture: the hash of its bytes, or name and size of its file."""
    try:
        if isinstance(picture, str | Path):
            path = Path(picture)
            return f"{path.name} {path.stat().st_size if path.is_file() else 'missing'}"
        data = picture if isinstance(picture, bytes) else open_image(picture).tobytes()
    except (ImageError, OSError):  # reported when the sample is prepared
        return "unreadable"
    return hashlib.sha256(data).hexdigest()


def checksum(content: Any) -> str:
    """Return the first 16 digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
