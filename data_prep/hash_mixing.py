"""Implements the finalizer of SplitMix64 (Steele, Lea, Flood 2014) on arrays of uint64, with its constants.

The order of rows, the choice of documents and signatures on disk depend on these constants, so they must not change.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, made odd: the increment of SplitMix64."""
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(values: Words) -> Words:
    """Mix bits: each input bit affects about half of the output bits; the shape stays."""
    values = (values ^ (values >> np.uint64(30))) * MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))
