"""Predicted against tracked memory of real training steps, over a grid of configurations.

grid.py: the configurations, as recipes. tracking.py: the peak of a real step, by PyTorch's own account of its
allocator. measuring.py: one configuration in a process of its own. report.py: the page.
"""
