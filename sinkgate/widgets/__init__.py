"""Notebook widgets: faders on a session, settings side by side, the map of a sweep.

Each is ipywidgets around one Plotly figure. If these packages are missing, a call raises SinkgateError; the import does not fail.
"""

from sinkgate.widgets.comparison import Comparison, compare
from sinkgate.widgets.explorer import Explorer, explore
from sinkgate.widgets.sweep import SweepMap, sweep_map

__all__ = ["Comparison", "Explorer", "SweepMap", "compare", "explore", "sweep_map"]
