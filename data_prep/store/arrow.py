"""NumPy to Arrow and back over the same memory.

Not by `pyarrow.array` and `to_numpy`: their first call imports pandas, 0.3 s and 30 MB in every process that opens or
writes a store.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_arrow(values: NDArray[Any]) -> pa.Array:
    """A primitive array without nulls; of booleans a copy, of one bit each."""
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, _pack(values)])
    contiguous = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(contiguous)])


def to_lists(values: NDArray[Any], offsets: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.ListArray:
    """Lists `values[offsets[i]:offsets[i + 1]]`, null where `missing`."""
    kind, items = pa.list_(pa.from_numpy_dtype(values.dtype)), to_arrow(values)
    buffers = [None if missing is None else _pack(~missing), pa.py_buffer(offsets.astype(np.int32))]
    return pa.ListArray.from_buffers(kind, len(offsets) - 1, buffers, children=[items])


def _pack(values: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def view(array: pa.Array) -> NDArray[Any]:
    """The values of a primitive array without nulls, read-only."""
    return np.from_dlpack(array)


def find_nulls(array: pa.Array) -> NDArray[np.bool_]:
    """Which values are null."""
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.zeros(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)] == 0
