"""Photographs that come with the package: examples for models that read more than scenes."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("photographs")  # its README.md names authors and terms


def photographs() -> dict[str, Path]:
    """Return the files of eight photographs in the public domain or under CC0, by name, at most 400 pixels wide and high.

    Example:
        >>> vlm.answer(vlm.prompt(photographs()["cat"], "What animal is this?"))
    """
    return {path.stem: path for path in sorted(FOLDER.glob("*.jpg"))}
