"""sinkgate: find attention sinks in vision-language models and gate their Keys, layer by layer."""

from sinkgate.attention import Recorder, attached
from sinkgate.criteria import CRITERIA, discover_dimensions
from sinkgate.errors import GateError, ImageError, PromptError, SceneError, SinkgateError, UnsupportedModelError
from sinkgate.gates import PRESETS, Gates
from sinkgate.images import open_image
from sinkgate.loading import load
from sinkgate.sinks import SinkMap
from sinkgate.trace import Trace
from sinkgate.vlm import VLM, Prompt, find_sinks

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "PRESETS",
    "VLM",
    "GateError",
    "Gates",
    "ImageError",
    "Prompt",
    "PromptError",
    "Recorder",
    "SceneError",
    "SinkMap",
    "SinkgateError",
    "Trace",
    "UnsupportedModelError",
    "attached",
    "discover_dimensions",
    "find_sinks",
    "load",
    "open_image",
]
