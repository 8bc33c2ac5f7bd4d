"""Plotly figures of tables, one module for each study.

They depend on no model and compute no statistics: intervals and corrected p come with the tables.
"""

from sinkgate.plots.maps import maps_figure, words_figure
from sinkgate.plots.shares import frames_figure, shares_figure
from sinkgate.plots.style import GROUP_COLORS, GROUP_NAMES, export

__all__ = ["GROUP_COLORS", "GROUP_NAMES", "export", "frames_figure", "maps_figure", "shares_figure", "words_figure"]
