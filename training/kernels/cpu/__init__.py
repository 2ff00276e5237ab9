"""Kernels for CPUs: attention over documents, RMSNorm with the residual, SwiGLU, cross-entropy in place.

`ops.py` declares the operators `torch.ops.redline.*`, which fake tensors run without any C++; `build.py` builds and
loads what computes them; `functions.py` are their autograd functions. Adding one: a C++ file, its schema and fake in
`ops.py`, its test.
"""
