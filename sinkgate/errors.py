"""Errors in a user's input; every message is a sentence to show as it is."""

import errno

_NO_RIGHT = "change its permissions, or give another path"
_NO_SPACE = "free some, or give a path on another disk"
_NO_FILES = "close files, or raise the process's limit with `ulimit -n`"
_REMEDIES = {
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a part of the path is a file, give another path",
    **dict.fromkeys((errno.EACCES, errno.EPERM), _NO_RIGHT),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _NO_SPACE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _NO_FILES),
}


class SinkgateError(ValueError):
    """Base of all errors that a user can correct."""


class ImageError(SinkgateError):
    """A file or object that is no usable picture."""


class PromptError(SinkgateError):
    """A prompt that the model cannot take."""


class SceneError(SinkgateError):
    """Data that do not describe a scene of the demo world."""


class GateError(SinkgateError):
    """Scales that are no valid gates, or gates of another model."""


class ModelMismatchError(GateError):
    """Gates, or another small method, of another model. ``reason`` is the message without the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason


class UnsupportedModelError(SinkgateError):
    """A model that sinkgate cannot read, or that failed a check on load."""


class TrainingError(SinkgateError):
    """Training that cannot begin or continue."""


class BenchmarkError(SinkgateError):
    """A benchmark that cannot be fetched or read."""


def with_remedy(error: BaseException, remedy: str = "check the path") -> str:
    """Return the operating system's words for an error of a file with the remedy; of any other error its own words.

    Args:
        error: the error.
        remedy: where the file is missing, or is not what was expected; other errors of the system have their own.

    Example:
        >>> with_remedy(PermissionError(13, "Permission denied", "gates.json"))
        'Permission denied; change its permissions, or give another path'
    """
    number = error.errno if isinstance(error, OSError) else None
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{words}; {_REMEDIES.get(number, remedy) if number else remedy}"
