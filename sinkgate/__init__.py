"""sinkgate: find attention sinks in vision-language models and gate their Keys, layer by layer."""

from typing import TYPE_CHECKING, Any

from sinkgate.attention import attached
from sinkgate.criteria import CRITERIA, SinkDimensions, discover_dimensions, gather_evidence
from sinkgate.discovery import Discovery, discover
from sinkgate.errors import (
    GateError,
    ImageError,
    PromptError,
    SceneError,
    SinkgateError,
    TrainingError,
    UnsupportedModelError,
)
from sinkgate.evaluation import Marks, evaluate
from sinkgate.gates import PRESETS, Gates
from sinkgate.images import open_image
from sinkgate.known_dimensions import known
from sinkgate.loading import load
from sinkgate.lsg import LSG, LSGConfig
from sinkgate.patches import Sheet
from sinkgate.prompts import Prompt
from sinkgate.recorder import Recorder
from sinkgate.reports import Report, report
from sinkgate.samples import Sample
from sinkgate.session import Session
from sinkgate.sinks import SinkMap, SinkMasks
from sinkgate.stacking import stack
from sinkgate.sweep import Setting, choose, oracle
from sinkgate.trace import Trace
from sinkgate.vlm import VLM, find_sinks

if TYPE_CHECKING:
    from sinkgate.training import train
    from sinkgate.widgets import compare, explore, sweep_map

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "LSG",
    "PRESETS",
    "VLM",
    "Discovery",
    "GateError",
    "Gates",
    "ImageError",
    "LSGConfig",
    "Marks",
    "Prompt",
    "PromptError",
    "Recorder",
    "Report",
    "Sample",
    "SceneError",
    "Session",
    "Setting",
    "Sheet",
    "SinkDimensions",
    "SinkMap",
    "SinkMasks",
    "SinkgateError",
    "Trace",
    "TrainingError",
    "UnsupportedModelError",
    "attached",
    "choose",
    "compare",
    "discover",
    "discover_dimensions",
    "evaluate",
    "explore",
    "find_sinks",
    "gather_evidence",
    "known",
    "load",
    "open_image",
    "oracle",
    "report",
    "stack",
    "sweep_map",
    "train",
]


def __getattr__(name: str) -> Any:
    """``train`` and the widgets when they are asked for: what they import takes a second."""
    if name == "train":
        from sinkgate.training import train

        return train
    if name in ("compare", "explore", "sweep_map"):
        from sinkgate import widgets

        return getattr(widgets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
