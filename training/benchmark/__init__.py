"""Redline's benchmarks: `python -m training.benchmark NAME …`, each against its real alternative in the same run.

__main__      finds the benchmark by its name
interleave    repeats A B, B A, …; medians and ratios with intervals that assume no distribution
isolation     one call in a fresh process, with the peak memory of every process under it
data/         raw text to batches: what `data_prep` and `training.data` promise (docs/results/data.md)
"""
