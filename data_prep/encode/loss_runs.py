"""Finds the tokens that carry loss from the characters that do."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.render.rendering import CharSpan

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]


def find_loss_runs(token_offsets: Sequence[CharSpan] | Offsets, loss: Sequence[CharSpan]) -> Ids:
    """Return the flattened [start, end) ranges of tokens that overlap a loss span, shape (2 * ranges,).

    token_offsets: characters [start, end) of each token, shape (tokens, 2), ascending.
    A token that extends beyond a span carries loss, because the model must generate it to generate the turn.
    """
    offsets, spans = np.asarray(token_offsets, np.int64).reshape(-1, 2), np.array(loss, np.int64).reshape(-1, 2)
    # Offsets never decrease, so the tokens of a span form one range.
    firsts = np.searchsorted(offsets[:, 1], spans[:, 0], side="right").tolist()
    lasts = np.searchsorted(offsets[:, 0], spans[:, 1], side="left").tolist()
    runs: list[int] = []
    for first, last in zip(firsts, lasts, strict=True):
        if runs and first <= runs[-1]:
            runs[-1] = max(runs[-1], last)
        elif first < last:
            runs += [first, last]
    return np.array(runs, np.int32)
