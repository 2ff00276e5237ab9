"""One stream of rows, whoever shares it: ranks, micro-batches and restarts change who trains a row, never which."""

from itertools import islice, takewhile

import numpy as np
import pytest

from data_prep.errors import UserError
from training.data.batch import padded_width
from training.data.batching import Batching, BudgetBatches, FixedBatches
from training.data.order import LengthGroupedRows, ShuffledRows

LENGTHS = np.random.default_rng(1).integers(2, 200, 20_000).astype(np.int32)
BUDGET, MULTIPLE, SEQ_LEN = 1024, 16, 192


def budget_batches(lengths: np.ndarray = LENGTHS, max_tokens: int = BUDGET) -> BudgetBatches:
    return BudgetBatches(np.minimum(lengths, SEQ_LEN), 5, max_tokens=max_tokens, multiple=MULTIPLE, seq_len=SEQ_LEN)


def take(batching: Batching, position: int, world_size: int, rounds: int) -> tuple[list[list[int]], int]:
    """Rows of each round over all ranks, sorted, and the position after the last."""
    ranks = [list(islice(batching.cut(position, rank, world_size), rounds)) for rank in range(world_size)]
    assert len({tuple(batch.end for batch in batches) for batches in ranks}) == 1
    return [sorted(sum((batch.rows for batch in round), [])) for round in zip(*ranks, strict=True)], ranks[0][-1].end


def make_order(name: str):
    return ShuffledRows(101, 3) if name == "shuffled" else LengthGroupedRows(LENGTHS[:101], 3)


@pytest.mark.parametrize("order", ["shuffled", "grouped"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_global_batch_holds_the_same_rows_for_any_number_of_ranks(order: str, world_size: int):
    stream = make_order(order).rows_at(np.arange(12 * 40)).tolist()
    rounds, end = take(FixedBatches(make_order(order), 12 // world_size), 0, world_size, 40)
    assert end == len(stream)
    assert rounds == [sorted(stream[i : i + 12]) for i in range(0, len(stream), 12)]


@pytest.mark.parametrize("order", ["shuffled", "grouped"])
def test_another_world_and_another_micro_batch_go_on_without_repeating_or_leaving_out_a_row(order: str):
    """Stops in the middle of epochs; micro-batches that do not divide an epoch."""
    seen: list[int] = []
    position = 0
    for micro_batch_size, world_size, rounds in ((3, 2, 7), (2, 3, 5), (5, 1, 4), (1, 2, 4), (7, 3, 5), (1, 1, 80)):
        batching = FixedBatches(make_order(order), micro_batch_size)  # as another launch would
        rows, position = take(batching, position, world_size, rounds)
        seen += sum(rows, [])
        assert position == len(seen)
    for epoch in range(len(seen) // 101):
        assert set(seen[epoch * 101 :]) == set(range(101)) or epoch == len(seen) // 101 - 1
    counts = np.bincount(seen, minlength=101)
    assert counts.min() == len(seen) // 101 and counts.max() <= -(-len(seen) // 101)


def test_budget_batches_are_within_the_budget_and_hold_each_row_once_an_epoch():
    batching = budget_batches()
    lengths = np.minimum(LENGTHS, SEQ_LEN)
    rows: list[list[int]] = []
    for batch in batching.cut(0, 0, 1):
        rows.append(batch.rows)
        assert len(batch.rows) * padded_width(int(lengths[batch.rows].max()), MULTIPLE, SEQ_LEN) <= BUDGET
        if batch.end >= 2 * len(LENGTHS):
            break
    assert np.bincount(sum(rows, [])).tolist() == [2] * len(LENGTHS)
    assert batching.count_rounds(0, 2 * len(LENGTHS), 1) == len(rows)
    useful = sum(int(lengths[batch].sum()) for batch in rows)
    padded = sum(len(batch) * padded_width(int(lengths[batch].max()), MULTIPLE, SEQ_LEN) for batch in rows)
    assert useful / padded > 0.9
    sizes = np.array([len(batch) for batch in rows], float)
    assert abs(np.corrcoef(sizes[:-1], sizes[1:])[0, 1]) < 0.1  # short and long batches mixed


@pytest.mark.parametrize("world_size", [2, 3])
def test_budget_batches_resume_with_another_world(world_size: int):
    straight, end = take(budget_batches(), 0, 6, 60)
    first, middle = take(budget_batches(), 0, 6, 40)
    rest, last = take(budget_batches(), middle, world_size, 20 * 6 // world_size)
    assert last == end
    assert sorted(sum(first + rest, [])) == sorted(sum(straight, []))


@pytest.mark.parametrize("num_rows", [1, 100, 8192, 8193, 20_000])
def test_rounds_are_counted_without_cutting_them(num_rows: int):
    """Against the cut itself, from and to anywhere in several epochs."""
    batching = budget_batches(LENGTHS[:num_rows])
    ends = [batch.end for batch in takewhile(lambda batch: batch.end < 3.5 * num_rows + 50, batching.cut(0, 0, 1))]
    for begin in (0, *ends[:: max(1, len(ends) // 3)]):
        for end in (begin + 1, begin + num_rows // 3 + 1, num_rows, 2 * num_rows, 3 * num_rows):
            if begin < end < ends[-1]:
                batches = sum(begin < at < end for at in ends) + 1  # with the one that reaches the end
                assert batching.count_rounds(begin, end, 2) == batches / 2


def test_a_row_over_the_budget_is_an_error():
    with pytest.raises(UserError, match=r"max_tokens_per_batch = 100: the longest row takes 192 tokens"):
        budget_batches(max_tokens=100)
