"""Attention kernels: one object each in `kernels.KERNELS`, and the choice among them.

Adding a kernel means adding an object there and its test: planner, FLOPs, advice and documentation iterate over it.
"""
