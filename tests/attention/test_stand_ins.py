"""What stand-ins keep for the backward pass; `tests/memory/test_trace.py` compares whole steps with PyTorch's."""

import pytest
import torch

from training.attention.kernels import KERNELS
from training.attention.stand_ins import EAGER, FLASH, MASKED

ROWS, HEADS, SEQ_LEN, WIDTH = 2, 4, 16, 8


def count_kept_bytes(stand_in, groups: int) -> int:
    query = torch.zeros(ROWS, HEADS, SEQ_LEN, WIDTH, requires_grad=True)
    key, value = (torch.zeros(ROWS, HEADS // groups, SEQ_LEN, WIDTH, requires_grad=True) for _ in range(2))
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out, _ = stand_in.attend(None, query, key, value, None, drops_out_by_itself=True)
    assert out.shape == (ROWS, SEQ_LEN, HEADS, WIDTH)
    return sum(kept.values())


def test_flash_keeps_a_number_per_head_and_query():
    element = 4 * ROWS * SEQ_LEN * WIDTH  # of one head, fp32
    # queries and output of four heads, keys and values of two, and the log-sum-exp
    assert count_kept_bytes(FLASH, groups=2) == element * (4 + 4 + 2 + 2) + 4 * ROWS * HEADS * SEQ_LEN


def test_a_mask_repeats_keys_and_adds_a_bias():
    element = 4 * ROWS * SEQ_LEN * WIDTH
    bias = 4 * ROWS * SEQ_LEN**2
    assert count_kept_bytes(MASKED, groups=2) == element * 4 * 4 + 4 * ROWS * HEADS * SEQ_LEN + bias


@pytest.mark.parametrize(
    ("name", "packed", "whole"),
    [("eager", EAGER, EAGER), ("sdpa", MASKED, FLASH), ("flash_attention_2", FLASH, FLASH)],
)
def test_stand_ins_of_kernels(name, packed, whole):
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    assert (kernel.stand_in(masked=True), kernel.stand_in(masked=False)) == (packed, whole)
