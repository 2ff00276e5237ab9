"""Tests the loss of pieces of documents, in batches and in slices of batches, which a stream uses for its splits."""

import numpy as np
import pyarrow as pa
import pytest

from data_prep.store.document_table import _view_batch

LENGTHS = [6, 4, 8, 5, 7]
RUNS = [[1, 3, 4, 6], [0, 2], [3, 5], [1, 2], [2, 4, 5, 7]]


@pytest.fixture
def batch() -> pa.RecordBatch:
    columns = {
        "ids": pa.array([list(range(length)) for length in LENGTHS], pa.list_(pa.int32())),
        "runs": pa.array(RUNS, pa.list_(pa.int32())),
        "sources": pa.array([0] * len(LENGTHS), pa.int32()),
        "hashes": pa.array([bytes([i]) * 16 for i in range(len(LENGTHS))], pa.binary(16)),
    }
    return pa.record_batch(columns)


@pytest.mark.parametrize(("first", "count"), [(0, 5), (0, 3), (2, 3), (1, 2), (4, 1)])
def test_pieces_of_a_slice_carry_the_loss_that_their_runs_say(batch, first, count):
    view = _view_batch(batch.slice(first, count))
    for row in range(count):
        runs = np.array(RUNS[first + row]).reshape(-1, 2)
        for begin in range(LENGTHS[first + row]):
            for end in range(begin + 1, LENGTHS[first + row] + 1):
                expected = any(start < end and stop > begin for start, stop in runs)
                found = view.find_loss(*(np.array([value]) for value in (row, begin, end)))
                assert found.tolist() == [expected], (row, begin, end)
