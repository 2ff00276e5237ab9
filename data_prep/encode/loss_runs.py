"""Characters that carry loss to tokens that do."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.render.rendering import CharSpan

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]


def find_loss_runs(token_offsets: Sequence[CharSpan] | Offsets, loss: Sequence[CharSpan]) -> Ids:
    """Flattened [start, end) ranges of the tokens, (tokens, 2), that share a character with a loss span.

    A token across a span's edge carries loss: the model has to write it to write the turn's first character.
    """
    offsets, spans = np.asarray(token_offsets, np.int64).reshape(-1, 2), np.array(loss, np.int64).reshape(-1, 2)
    # Offsets never decrease, so the tokens of a span are one range.
    firsts = np.searchsorted(offsets[:, 1], spans[:, 0], side="right").tolist()
    lasts = np.searchsorted(offsets[:, 0], spans[:, 1], side="left").tolist()
    runs: list[int] = []
    for first, last in zip(firsts, lasts, strict=True):
        if runs and first <= runs[-1]:
            runs[-1] = max(runs[-1], last)
        elif first < last:
            runs += [first, last]
    return np.array(runs, np.int32)
