"""Layer-wise Sink Gating, the paper's learned gate (section 4)."""

from sinkgate.methods.lsg.config import LSGConfig
from sinkgate.methods.lsg.gate import SinkGate
from sinkgate.methods.lsg.model import LSG, GateTrace, Groups

__all__ = ["LSG", "GateTrace", "Groups", "LSGConfig", "SinkGate"]
