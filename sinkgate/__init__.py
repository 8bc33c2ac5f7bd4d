"""sinkgate: find attention sinks in vision-language models and gate their Keys, layer by layer."""

from typing import TYPE_CHECKING, Any

import sinkgate._threads  # noqa: F401 - first, before anything imports torch
from sinkgate._version import __version__ as __version__
from sinkgate.analysis.logit_lens import LogitLens, logit_lens
from sinkgate.analysis.relevancy import Relevancy, relevancy
from sinkgate.analysis.report import Report, report
from sinkgate.analysis.sweep import Setting, choose, oracle
from sinkgate.attention.patch import attached
from sinkgate.attention.recorder import Recorder
from sinkgate.data import Sample
from sinkgate.errors import (
    GateError,
    ImageError,
    PromptError,
    SceneError,
    SinkgateError,
    TrainingError,
    UnsupportedModelError,
)
from sinkgate.images.io import open_image
from sinkgate.images.layout import Sheet
from sinkgate.methods.lsg import LSG, LSGConfig
from sinkgate.models.dimensions import discover, sink_criteria
from sinkgate.models.loading import load
from sinkgate.models.prompts import Prompt
from sinkgate.models.session import Session
from sinkgate.models.trace import Trace
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.sinks.criteria import CRITERIA, SinkCriteria, SinkDimensions
from sinkgate.sinks.discovery import Discovery
from sinkgate.sinks.evidence import discover_dimensions, gather_evidence
from sinkgate.sinks.fine_gates import FineGates
from sinkgate.sinks.gates import PRESETS, Gates
from sinkgate.sinks.known_dimensions import known
from sinkgate.sinks.sink_map import SinkMap, SinkMasks
from sinkgate.training.evaluation import EvaluationResult, Marks, evaluate
from sinkgate.training.stacking import stack

if TYPE_CHECKING:
    from sinkgate.training.trainer import train
    from sinkgate.widgets import compare, explore, sweep_map

__all__ = [
    "CRITERIA",
    "LSG",
    "PRESETS",
    "VLM",
    "Discovery",
    "EvaluationResult",
    "FineGates",
    "GateError",
    "Gates",
    "ImageError",
    "LSGConfig",
    "LogitLens",
    "Marks",
    "Prompt",
    "PromptError",
    "Recorder",
    "Relevancy",
    "Report",
    "Sample",
    "SceneError",
    "Session",
    "Setting",
    "Sheet",
    "SinkCriteria",
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
    "logit_lens",
    "open_image",
    "oracle",
    "relevancy",
    "report",
    "sink_criteria",
    "stack",
    "sweep_map",
    "train",
]


def __getattr__(name: str) -> Any:
    """``train`` and the widgets when they are asked for: what they import takes a second."""
    if name == "train":
        from sinkgate.training.trainer import train

        return train
    if name in ("compare", "explore", "sweep_map"):
        from sinkgate import widgets

        return getattr(widgets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
