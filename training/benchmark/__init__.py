"""Redline's benchmarks: `python -m training.benchmark NAME …`, each against its real alternative in the same run.

__main__      finds the benchmark by its name
interleave    repeats in turn; medians and ratios with intervals that assume no distribution
isolation     one call in a fresh process, with the peak memory of every process under it
page          machine, command and JSON of every benchmark's page
launching     one training in processes of its own, which end with it
advise/       one lever at a time, tried on a configuration (docs/advise.md)
compare       two configurations in turn (docs/compare.md)
memory/       the memory plan against real steps (docs/results/memory.md)
overhead      profiling overhead
peers/        the stock Trainer, TRL, LitGPT and nanoGPT on the same rows
data/         raw text to batches: what `data_prep` and `training.data` promise (docs/results/data.md)
"""
