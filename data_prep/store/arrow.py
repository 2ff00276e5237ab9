"""Converts between NumPy and Arrow arrays without copying.

`pyarrow.array` and `to_numpy` are avoided: their first call imports pandas, which costs 0.3 s and 30 MB in every
process that opens or writes a store.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_arrow(values: NDArray[Any]) -> pa.Array:
    """Convert to a primitive array without nulls; booleans are copied to one bit each."""
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, _pack(values)])
    contiguous = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(contiguous)])


def to_lists(values: NDArray[Any], offsets: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.ListArray:
    """Convert to lists `values[offsets[i]:offsets[i + 1]]`, null where `missing`, shape (lists,)."""
    kind, items = pa.list_(pa.from_numpy_dtype(values.dtype)), to_arrow(values)
    buffers = [None if missing is None else _pack(~missing), pa.py_buffer(offsets.astype(np.int32))]
    return pa.ListArray.from_buffers(kind, len(offsets) - 1, buffers, children=[items])


def _pack(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def view(array: pa.Array) -> NDArray[Any]:
    """View a primitive array without nulls as a read-only NumPy array."""
    return np.from_dlpack(array)


def find_nulls(array: pa.Array) -> NDArray[np.bool_]:
    """Mark the null values, shape (values,)."""
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.zeros(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)] == 0
