"""The order of rows: a pure function of (seed, epoch, position), computed in place.

A keyed permutation (a Feistel network with cycle walking) maps any position of an epoch to its row without laying out
the epoch: no memory, no random state to save, the same on every rank, worker, machine and library version. Where a
run stands is one integer, and going on at row 10 million costs what going on at row 0 does.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

ROUNDS = 6
BLOCK = 4096
MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): each input bit flips half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * MIX[1]
    values = (values ^ (values >> np.uint64(27))) * MIX[2]
    return values ^ (values >> np.uint64(31))


def _round_keys(key: tuple[int, int]) -> NDArray[np.uint64]:
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mix(state + MIX[0] + np.uint64(word))
    return _mix(state + MIX[0] * np.arange(1, ROUNDS + 1, dtype=np.uint64))


def permute(positions: NDArray[np.int64], size: int, key: tuple[int, int]) -> NDArray[np.int64]:
    """Images of `positions` under the permutation of range(size) that `key` names.

    The network permutes the next even power of two; values that fall outside are sent through again, on average less
    than four times.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _round_keys(key)
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


class RowSampler(Sampler[int]):
    """Yields the rows of an epoch in its order, from `position` on.

    Needs no random state of torch: every rank that builds it gets the same order. accelerate and the Trainer call
    `set_epoch`; `position` (rows, over all ranks) is reset by it.
    """

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __iter__(self) -> Iterator[int]:
        for begin in range(self.position, self.num_rows, BLOCK):
            positions = np.arange(begin, min(begin + BLOCK, self.num_rows))
            yield from permute(positions, self.num_rows, (self.seed, self.epoch)).tolist()

    def __len__(self) -> int:
        return self.num_rows - self.position
