"""`python -m training.benchmark overhead`: what measuring costs, on and off in turn within one training."""
