"""sinkgate: find attention sinks in vision-language models and gate their Keys, layer by layer."""

from sinkgate.attention import attached
from sinkgate.criteria import CRITERIA, SinkDimensions, discover_dimensions, gather_evidence
from sinkgate.discovery import Discovery, discover
from sinkgate.errors import GateError, ImageError, PromptError, SceneError, SinkgateError, UnsupportedModelError
from sinkgate.gates import PRESETS, Gates
from sinkgate.images import open_image
from sinkgate.known_dimensions import known
from sinkgate.loading import load
from sinkgate.patches import Sheet
from sinkgate.prompts import Prompt
from sinkgate.recorder import Recorder
from sinkgate.reports import Report, report
from sinkgate.session import Session
from sinkgate.sinks import SinkMap, SinkMasks
from sinkgate.sweep import Setting, choose, oracle
from sinkgate.trace import Trace
from sinkgate.vlm import VLM, find_sinks

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "PRESETS",
    "VLM",
    "Discovery",
    "GateError",
    "Gates",
    "ImageError",
    "Prompt",
    "PromptError",
    "Recorder",
    "Report",
    "SceneError",
    "Session",
    "Setting",
    "Sheet",
    "SinkDimensions",
    "SinkMap",
    "SinkMasks",
    "SinkgateError",
    "Trace",
    "UnsupportedModelError",
    "attached",
    "choose",
    "discover",
    "discover_dimensions",
    "find_sinks",
    "gather_evidence",
    "known",
    "load",
    "open_image",
    "oracle",
    "report",
]
