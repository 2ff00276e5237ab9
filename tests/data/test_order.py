import itertools

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from training.data.order import BLOCK, RowSampler, permute


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


def test_sampler_is_a_function_of_seed_epoch_and_position():
    sampler = RowSampler(BLOCK + 100, seed=7)
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(2)
    assert list(sampler) == list(RowSampler(BLOCK + 100, seed=7)) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == sorted(first) == list(range(BLOCK + 100))
    assert second != first
    sampler.position = BLOCK + 10
    sampler.set_epoch(1)  # the Trainer sets the epoch that it is in: the position stays
    assert list(sampler) == second[BLOCK + 10 :]
    assert len(sampler) == 90
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_position_costs_nothing():
    sampler = RowSampler(10**9, seed=0)
    sampler.position = 10**8
    some = list(itertools.islice(sampler, 5))
    assert some == permute(np.arange(10**8, 10**8 + 5), 10**9, (0, 0)).tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_of_accelerate_share_the_same_order(num_ranks: int):
    """A global batch of 8 holds the same rows for any number of ranks."""
    micro = 8 // num_ranks
    shards = [
        list(BatchSamplerShard(BatchSampler(RowSampler(64, 3), micro, drop_last=True), num_ranks, rank))
        for rank in range(num_ranks)
    ]
    global_batches = [sorted(sum((shard[step] for shard in shards), [])) for step in range(8)]
    order = list(RowSampler(64, 3))
    assert global_batches == [sorted(order[i : i + 8]) for i in range(0, 64, 8)]
