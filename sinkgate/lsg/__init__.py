"""Layer-wise Sink Gating, the paper's learned gate (section 4)."""

from sinkgate.lsg.config import LSGConfig
from sinkgate.lsg.gate import SinkGate
from sinkgate.lsg.model import LSG, Groups, Trail

__all__ = ["LSG", "Groups", "LSGConfig", "SinkGate", "Trail"]
