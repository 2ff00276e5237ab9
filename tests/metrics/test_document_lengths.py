"""Against lengths counted by hand."""

import numpy as np
import pytest
import torch

from training.metrics.document_lengths import BatchShape, find_document_lengths


def array(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        ({}, [6, 6]),
        ({"attention_mask": array([1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1])}, [4, 3]),
        ({"attention_mask": array([1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0])}, [4]),
        ({"position_ids": array([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5])}, [3, 3, 6]),
        ({"position_ids": array([0, 0, 0, 0, 1, 2], [0, 1, 0, 1, 0, 1])}, [1, 1, 1, 3, 2, 2, 2]),
        ({"position_ids": array([0, 1, 2, 3, 4, 5])}, [6, 6]),  # one row of positions for all rows
        # padding on the left: HF gives padded positions 1
        (
            {
                "position_ids": array([1, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]),
                "attention_mask": array([0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
            },
            [4, 6],
        ),
        # padding on the right of packed rows
        (
            {
                "position_ids": array([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]),
                "attention_mask": array([1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]),
            },
            [2, 2, 5],
        ),
        ({"cu_seq_lens": np.array([0, 4, 4, 12])}, [4, 8]),
        ({"position_ids": np.zeros((3, 2, 6), dtype=np.int64)}, [6, 6]),
        ({"attention_mask": np.ones((2, 1, 6, 6), dtype=np.int64)}, [6, 6]),
    ],
)
def test_lengths(given, lengths):
    assert find_document_lengths(2, 6, **given) == lengths


def test_cumulative_lengths_come_first():
    batch = BatchShape(
        {
            "input_ids": torch.zeros(1, 10, dtype=torch.long),
            "position_ids": torch.arange(10)[None],
            "cu_seq_lens_q": torch.tensor([0, 3, 10], dtype=torch.int32),
        }
    )
    assert (batch.rows, batch.seq_len, batch.document_lengths()) == (1, 10, [3, 7])


def test_a_batch_may_be_changed_afterwards():
    mask = torch.ones(2, 5, dtype=torch.long)
    batch = BatchShape({"inputs_embeds": torch.zeros(2, 5, 8), "attention_mask": mask})
    mask.zero_()
    assert batch.document_lengths() == [5, 5]


def test_a_float_mask_and_one_of_pairs_say_nothing():
    batch = BatchShape({"input_ids": torch.zeros(1, 4, dtype=torch.long), "attention_mask": torch.zeros(1, 1, 4, 4)})
    assert batch.document_lengths() == [4]
    with pytest.raises(KeyError):
        BatchShape({"pixel_values": torch.zeros(1)})
