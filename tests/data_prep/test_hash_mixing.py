"""Compares SplitMix64 with published values."""

import numpy as np

from data_prep.hash_mixing import GOLDEN_RATIO, mix


def test_the_first_values_of_seed_0():
    """The values are those of Java's SplittableRandom and of the reference C code."""
    with np.errstate(over="ignore"):
        states = np.arange(1, 4, dtype=np.uint64) * GOLDEN_RATIO
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
