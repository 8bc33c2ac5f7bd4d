"""Analyses of one model: sink dimensions, reports, sweeps over gate settings, statistics."""
