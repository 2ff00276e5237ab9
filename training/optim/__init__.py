"""Optimizers: one object each in `optimizers.OPTIMIZERS`, and the one that a run has. Imports no torch.

Adding an optimizer means adding an object there and its test: checks, planner, roofline, advice and documentation
iterate over it.
"""
