"""Figures for notebooks, the page and reports: numbers in, a Plotly figure out; one file a study.

They know nothing of models and compute no statistics: intervals and corrected p come with the tables.
"""

from sinkgate.plots.shares import shares_figure
from sinkgate.plots.style import GROUP_COLORS, GROUP_NAMES, export

__all__ = ["GROUP_COLORS", "GROUP_NAMES", "export", "shares_figure"]
