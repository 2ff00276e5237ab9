"""The constants and the finalizer of SplitMix64 (Steele, Lea, Flood 2014), on arrays of uint64.

Orders of rows, choices of documents and signatures on disk follow from these numbers: they never change.
"""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, made odd: what SplitMix64 adds from one state to the next."""
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(values: Words) -> Words:
    """The finalizer: each input bit flips about half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(27))) * MULTIPLIERS[1]
    return values ^ (values >> np.uint64(31))
