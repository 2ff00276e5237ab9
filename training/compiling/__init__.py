"""Compiling a model with torch.compile: `perf.compile`."""
