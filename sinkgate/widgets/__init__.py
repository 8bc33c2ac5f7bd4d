"""Widgets for notebooks: the mixer on a warm session, settings side by side, and a sweep's map to click on.

Plain ipywidgets around one Plotly figure each. Where these packages are missing, a call says so; the import does not fail.
"""

from sinkgate.widgets.comparison import Comparison, compare
from sinkgate.widgets.explorer import Explorer, explore
from sinkgate.widgets.sweep import SweepMap, sweep_map

__all__ = ["Comparison", "Explorer", "SweepMap", "compare", "explore", "sweep_map"]
