"""Comparison of runs: sides, intervals, losses, settings, page and picture."""
