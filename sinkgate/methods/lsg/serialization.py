"""Files of learned gates, ``gate_config.json`` and ``gates.safetensors``, in a folder or on the Hub."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from sinkgate.errors import GateError, UnsupportedModelError, with_remedy
from sinkgate.methods.lsg.config import LSGConfig
from sinkgate.methods.lsg.model_card import MARK
from sinkgate.models.load_errors import first_sentence, in_words

CONFIG, WEIGHTS, CARD = "gate_config.json", "gates.safetensors", "README.md"


def find(location: str | Path, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Return the folder of the gates: the given one, or the local copy of a Hub repository, of which only the two files are fetched.

    Raises:
        GateError: there is no such folder, and no such repository or no way to reach it; or a revision of a folder.
    """
    folder = Path(location).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise GateError(
                f"revision is {revision!r}, and {location} is a folder, which has none; leave it out, or give a Hub id"
            )
        return folder
    if not isinstance(location, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", location):
        raise GateError(f"learned gates cannot be read from {location}: no such folder; a Hub id reads owner/name")
    try:
        with in_words(f"learned gates cannot be read from {location}: no such folder here, and on the Hub", location):
            return Path(snapshot_download(location, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS]))
    except UnsupportedModelError as error:
        raise GateError(str(error)) from error


def read(folder: Path, location: str | Path) -> tuple[LSGConfig, dict[str, Tensor]]:
    """Read configuration and tensors of a folder, named ``place`` in errors.

    Raises:
        GateError: a file is missing or broken.
    """
    try:
        config = LSGConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
        return config, safetensors.load((folder / WEIGHTS).read_bytes())
    except OSError as error:
        name, remedy = Path(error.filename or "").name, f"give a folder with {CONFIG} and {WEIGHTS}"
        if (folder / "gates" / CONFIG).is_file():
            remedy = f"{Path(location) / 'gates'} holds gates"
        raise GateError(
            f"learned gates cannot be read from {location}: {name}: {with_remedy(error, remedy)}"
        ) from error
    except (UnicodeDecodeError, SafetensorError) as error:
        raise GateError(
            f"learned gates cannot be read from {location}: a file is broken or cut short: {first_sentence(error)}"
        ) from error


def check(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], location: str | Path, strict: bool = True
) -> None:
    """Refuse tensors other than the expected ones.

    Raises:
        GateError: one is missing, unknown (where not ``strict`` a warning), of another shape, or holds no finite numbers.
    """
    unknown = sorted(weights.keys() - wanted.keys())
    if unknown and not strict:
        warnings.warn(f"{location}: ignored {', '.join(unknown)}, unknown to these gates", stacklevel=3)
    for name in sorted(wanted) + (unknown if strict else []):
        got = "missing" if name not in weights else tuple(weights[name].shape)
        expected = tuple(wanted[name].shape) if name in wanted else "no such tensor (strict=False ignores it)"
        if got != expected:
            raise GateError(f"{WEIGHTS} of {location}: {name} is {got}, expected {expected}")
        if not weights[name].is_floating_point() or not torch.isfinite(weights[name]).all():
            raise GateError(f"{WEIGHTS} of {location}: {name} holds something else than finite floating-point numbers")


def write(folder: str | Path, config: LSGConfig, weights: Mapping[str, Tensor], card: str) -> None:
    """Write the two files and the card; each appears whole or not at all. A README.md of the user's own stays.

    Raises:
        GateError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    contents = {
        WEIGHTS: safetensors.save({name: value.detach().cpu().contiguous() for name, value in weights.items()}),
        CONFIG: (config.to_json() + "\n").encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = folder / CARD
        if not old.exists() or MARK in old.read_text(encoding="utf-8", errors="replace"):
            contents[CARD] = card.encode()
        for name, content in contents.items():
            (folder / f".{name}.part").write_bytes(content)
        for name in contents:
            (folder / f".{name}.part").replace(folder / name)
    except OSError as error:
        raise GateError(f"learned gates cannot be written to {folder}: {with_remedy(error)}") from error


def push(
    repo_id: str,
    config: LSGConfig,
    weights: Mapping[str, Tensor],
    card: Callable[[str], str],
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload what ``write`` writes to a Hub repository, created if missing; its card is replaced. Returns the address.

    ``card`` returns the card, given the full id of the repository.

    Raises:
        GateError: the Hub cannot be reached or refuses.
    """
    try:
        with in_words(f"learned gates cannot be sent to {repo_id}", repo_id), TemporaryDirectory() as folder:
            hub = HfApi(token=token)
            url = hub.create_repo(repo_id, private=private, exist_ok=True)
            write(folder, config, weights, card(url.repo_id))
            hub.upload_folder(
                repo_id=url.repo_id, folder_path=folder, revision=revision, commit_message="Learned gates"
            )
            return str(url)
    except UnsupportedModelError as error:
        raise GateError(str(error)) from error
