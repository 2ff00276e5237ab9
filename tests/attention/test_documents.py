"""Where documents lie, from whatever a batch says of them."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from training.attention.documents import find_documents


def read(rows: int, tokens: int, mask: torch.Tensor | None = None, **batch: torch.Tensor) -> list[tuple[int, int]]:
    found = find_documents(rows, tokens, mask, batch)
    return list(zip(found.starts.tolist(), found.lengths.tolist(), strict=True))


def test_each_row_is_one_where_nothing_is_said() -> None:
    assert read(3, 5) == [(0, 5), (5, 5), (10, 5)]


def test_boundaries_come_first() -> None:
    bounds = torch.tensor([0, 2, 5, 6, 10], dtype=torch.int32)
    positions = torch.arange(5).expand(2, 5)
    assert read(2, 5, cu_seq_lens_q=bounds, position_ids=positions) == [(0, 2), (2, 3), (5, 1), (6, 4)]


def test_a_mask_leaves_padding_out_on_either_side() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert read(4, 4, mask) == [(0, 2), (5, 3), (8, 4), (12, 0)]


def test_positions_that_start_again_begin_a_document() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]])
    assert read(2, 5, position_ids=positions) == [(0, 3), (3, 2), (5, 2), (7, 1), (8, 2)]
    # A row begins one whatever its positions are, and one row of positions serves all rows.
    assert read(2, 3, position_ids=torch.tensor([[4, 5, 6]])) == [(0, 3), (3, 3)]


def test_the_layers_of_a_pass_share_one_answer() -> None:
    positions = torch.tensor([[0, 1, 0]])
    first = find_documents(1, 3, None, {"position_ids": positions})
    assert find_documents(1, 3, None, {"position_ids": positions}) is first
    other = find_documents(1, 3, None, {"position_ids": torch.tensor([[0, 1, 2]])})
    assert other.lengths.tolist() == [3]


def test_of_a_longer_mask_the_last_tokens_count() -> None:
    assert read(1, 3, torch.tensor([[0, 0, 1, 1]])) == [(1, 2)]


def test_a_mask_with_a_gap_is_an_error() -> None:
    with pytest.raises(ValueError, match="padding between its tokens.*attn_implementation: sdpa"):
        read(2, 4, torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]))


def test_a_tensor_that_was_changed_is_read_again() -> None:
    mask = torch.ones(2, 4)
    assert read(2, 4, mask) == [(0, 4), (4, 4)]
    mask[0, 2:] = 0
    assert read(2, 4, mask) == [(0, 2), (4, 4)]
    with torch.inference_mode():
        assert read(1, 2, torch.ones(1, 2)) == [(0, 2)]  # has no count of its changes


@pytest.mark.parametrize("batch", [{}, {"position_ids": torch.tensor([[0, 1, 0, 1]])}], ids=str)
def test_fake_tensors_and_real_ones_are_not_mixed(batch: dict[str, Any]) -> None:
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(value) for name, value in batch.items()}
        found = find_documents(1, 4, None, fakes)
        assert isinstance(found.starts, FakeTensor) and len(found.starts) == 1
    found = find_documents(1, 4, None, batch)
    assert not isinstance(found.starts, FakeTensor)
    with FakeTensorMode():
        assert isinstance(find_documents(1, 4, None, {}).starts, FakeTensor)
