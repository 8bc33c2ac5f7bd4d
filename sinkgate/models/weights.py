"""Checksums of checkpoint weights, which identify the model of learned gates and studies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import huggingface_hub

SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
STANDARD = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
ANYWAY = "say any_model=True (--any-model) to use it all the same"
SAMPLE = 64  # bytes
BLOCKS = 256  # samples of a file whose tensors are not listed


def model_checksum(config: Any) -> str | None:
    """Return the checksum of the files that a model was loaded from; None where there are none on this machine.

    Weights changed in memory afterwards are not noticed.
    """
    source, commit = config._name_or_path, getattr(config, "_commit_hash", None)
    with suppress(OSError, ValueError):  # files that went away, or no name of a repository
        if source and not Path(source).is_dir() and commit:
            source = cast(Any, huggingface_hub).snapshot_download(source, revision=commit, local_files_only=True)
        return checksum(Path(source)) if source else None
    return None


def origin_mismatch(vlm: Any, base_model: str | None, weights: str | None) -> str | None:
    """Return in words why gates or results of one model do not belong to another; None where they may.

    Checksums decide where both models have one; otherwise names do, as in files written before there were checksums.

    Args:
        vlm: the model at hand.
        base_model: name of the other model, None where it is not known.
        weights: checksum of the other model's weights, None where it is not known.
    """
    own = vlm.weights_checksum if weights else None
    if weights and own:
        other = "other weights under the same name" if base_model == vlm.name else f"{vlm.name}"
        return None if weights == own else f"trained on {base_model} (weights {weights}), this is {other} ({own})"
    return None if base_model in (None, vlm.name) else f"trained on {base_model}, this is {vlm.name}"


def checksum(folder: Path) -> str | None:
    """Return a checksum of a checkpoint's weights; None where the folder holds none.

    It covers the name, dtype and shape of every tensor and ``SAMPLE`` bytes of its beginning, middle and end, so that a
    7-billion-parameter checkpoint costs a few thousand short reads. Names of files and the division into shards do not count;
    another dtype does. Files without a safetensors header count with name, size and ``BLOCKS`` samples.
    """
    entries: list[tuple[Any, ...]] = []
    for file in _files(folder):
        entries += _tensors(file) if file.suffix == ".safetensors" else _blocks(file)
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()[:16] if entries else None


def size_on_disk(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights; 0 where the folder does not hold them all, in files of the usual names."""
    files = _files(folder)
    if not any(file.name.startswith(("model", "pytorch_model")) for file in files) or not all(map(Path.is_file, files)):
        return 0
    return sum(file.stat().st_size for file in files)


def _files(folder: Path) -> list[Path]:
    """Return the files that transformers reads of a folder, an adapter's included."""
    adapters = sorted(folder.glob("adapter_model.*"))
    for name in STANDARD:
        if (folder / name).is_file():
            return [folder / name, *adapters]
        if (index := folder / f"{name}.index.json").is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [*(folder / shard for shard in sorted(set(shards))), *adapters]
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES)


def _tensors(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            begin, end = (start + offset for offset in tensor["data_offsets"])
            yield name, tensor["dtype"], tensor["shape"], *_samples(file, begin, end, 3)


def _blocks(path: Path) -> Iterator[tuple[Any, ...]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        yield path.name, size, *_samples(file, 0, size, BLOCKS)


def _samples(file: Any, begin: int, end: int, count: int) -> Iterator[bytes]:
    """Yield ``count`` samples at equal distances, the first at the beginning, the last at the end."""
    last = max(begin, end - SAMPLE)
    for index in range(count):
        file.seek(begin + (last - begin) * index // (count - 1))
        yield file.read(min(SAMPLE, end - begin))
