"""Kernels of our own. `cpu/`: C++ on libtorch, built once per machine."""
