import numpy as np
import pytest
import torch

from training.data.order import BLOCK, WINDOW, LengthGroupedRows, ShuffledRows, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_is_a_permutation(size: int):
    assert sorted(permute(np.arange(size), size, (1, 2)).tolist()) == list(range(size))


def test_looks_random():
    size = 20_000
    order = permute(np.arange(size), size, (0, 0))
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert (np.abs(np.diff(order)) < 10).mean() < 0.005
    other = permute(np.arange(size), size, (0, 1))
    assert (order == other).mean() < 0.002
    assert (order == permute(np.arange(size), size, (1, 0))).mean() < 0.002


def test_never_changes():
    """Values of the first release: a change here reorders the data of every run that resumes."""
    assert permute(np.arange(8), 100, (0, 0)).tolist() == FROZEN


FROZEN = [46, 71, 54, 95, 90, 76, 34, 41]


def test_rows_are_a_function_of_seed_and_position():
    order = ShuffledRows(1000, seed=7)
    torch.manual_seed(1)
    stream = order.rows_at(np.arange(2500))
    torch.manual_seed(2)
    again = ShuffledRows(1000, seed=7)
    for begin, end in ((0, 1), (990, 1010), (1999, 2500)):
        assert again.rows_at(np.arange(begin, end)).tolist() == stream[begin:end].tolist()
    epochs = stream[:1000], stream[1000:2000]
    assert all(sorted(epoch.tolist()) == list(range(1000)) for epoch in epochs)
    assert (epochs[0] == epochs[1]).mean() < 0.02
    assert (ShuffledRows(1000, seed=8).rows_at(np.arange(1000)) == epochs[0]).mean() < 0.02
    assert epochs[0].tolist() == permute(np.arange(1000), 1000, (7, 0)).tolist()


def test_position_costs_nothing():
    some = np.arange(5) + 10**14 + 10**8
    assert ShuffledRows(10**9, seed=0).rows_at(some).tolist() == permute(some % 10**9, 10**9, (0, 10**5)).tolist()


def test_length_groups_hold_each_row_once_an_epoch_and_neighbours_are_equally_long():
    size = 2 * WINDOW + 1000
    lengths = np.random.default_rng(0).lognormal(5, 1, size).astype(np.int32)
    order = LengthGroupedRows(lengths, seed=3)
    rows = order.rows_at(np.arange(2 * size))
    for epoch in (rows[:size], rows[size:]):
        assert sorted(epoch.tolist()) == list(range(size))
    assert (rows[:size] == rows[size:]).mean() < 0.02

    def padding(order_of_rows: np.ndarray) -> float:
        groups = lengths[order_of_rows[: size // 16 * 16]].reshape(-1, 16)
        return 1 - groups.sum() / (16 * groups.max(axis=1)).sum()

    assert padding(rows[:size]) < 0.06 < 0.5 < padding(np.arange(size))
    firsts = lengths[rows[: size // BLOCK * BLOCK : BLOCK]].astype(float)  # blocks come in random order, not by length
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.2
    fresh = LengthGroupedRows(lengths, seed=3)
    assert fresh.rows_at(np.arange(WINDOW + 5, WINDOW + 9)).tolist() == rows[WINDOW + 5 : WINDOW + 9].tolist()
