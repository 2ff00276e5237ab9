"""`python -m training.benchmark overhead`: profiling overhead, on and off in turn within one training."""
