"""Errors of transformers, the Hub and torch while a model is loaded, as one sentence with the remedy."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from errno import EACCES, EMFILE, ENOSPC

import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from sinkgate.errors import SinkgateError, UnsupportedModelError, with_remedy

LESS_MEMORY = 'take a smaller model, dtype="bfloat16", quantize="4bit" or device_map="auto"'
_BY_KIND: list[tuple[type[Exception], str]] = [
    (
        GatedRepoError,
        "it is gated: accept its terms on https://huggingface.co/{location}, then log in with `hf auth login`",
    ),
    (
        RepositoryNotFoundError,
        "the Hub has no public model of that name; look at the spelling, or log in with `hf auth login` if it is private",
    ),
    (RevisionNotFoundError, "it has no such revision; https://huggingface.co/{location}/commits/main lists them"),
    (
        LocalEntryNotFoundError,
        "it is not in the local cache and the Hub cannot be reached: run `hf download {location}` where there is a network, "
        "or give a folder that holds it",
    ),
    (SafetensorError, "a file of its weights is broken or cut short; copy or download it again"),
    (torch.OutOfMemoryError, "there is not enough memory: " + LESS_MEMORY),
    (MemoryError, "there is not enough memory: " + LESS_MEMORY),
]
_BY_WORDS = {
    "can't allocate memory": "there is not enough memory: " + LESS_MEMORY,
    "torchvision": f'it needs a torchvision that fits torch {torch.__version__}: run `pip install "sinkgate[vision]"`',
    "num2words": 'it needs num2words: run `pip install "sinkgate[vision]"`',
    "bitsandbytes": "quantization needs bitsandbytes: run `pip install -U bitsandbytes`",
    "`kernels` is": 'kernels of the Hub need a package: run `pip install -U kernels`, or load it with attn_implementation="sdpa"',
    "package for flashattention": (
        'the flash kernel is not installed: run `pip install flash-attn` or `pip install -U kernels`, or load it with attn_implementation="sdpa"'
    ),
    "`accelerate`": "a device map needs accelerate: run `pip install accelerate`",
    "does not recognize this architecture": (
        f"transformers {transformers.__version__} has no class for its architecture; run `pip install -U transformers`, or "
        "take a copy in transformers' own format (its name often ends in -hf)"
    ),
    "custom code": "it brings code of its own; read that code, then pass trust_remote_code=True to `sinkgate.load`",
}


@contextmanager
def in_words(failure: str, location: str, remedy: str = "") -> Generator[None]:
    """Turn exceptions within the block into one sentence.

    Args:
        failure: what failed, the beginning of the sentence.
        location: Hub id or folder.
        remedy: what to do where nothing more is known than the error's own words.

    Raises:
        UnsupportedModelError: the block raised something; a SinkgateError passes through as it is.
    """
    try:
        yield
    except SinkgateError:
        raise
    except Exception as error:
        raise UnsupportedModelError(f"{failure}: {_reason(error, location, remedy)}") from error


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message, without its full stop; its type where there is no message."""
    words = " ".join(str(error).split())
    return re.split(r"[.!?](?: (?=[A-Z])|$)", words, maxsplit=1)[0] or type(error).__name__


def _reason(error: BaseException, location: str, remedy: str) -> str:
    for cause in _chain(error):
        for kind, sentence in _BY_KIND:
            if isinstance(cause, kind):
                return sentence.format(location=location)
        if isinstance(cause, OSError) and cause.errno in (EACCES, EMFILE, ENOSPC):
            return f"{cause.filename or 'its files'}: {with_remedy(cause)}"
    message = str(error).lower()
    for words, sentence in _BY_WORDS.items():
        if words in message:
            return sentence
    return "; ".join(part for part in (first_sentence(error), remedy) if part)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
