"""Curves through points: forms, estimators, intervals, crossovers, frontiers, forecasts."""
