"""Errors in a user's input; every message is a sentence to show as it is."""


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
