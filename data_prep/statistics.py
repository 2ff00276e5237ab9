"""Token frequencies of a store and the losses that they bound. All in nats per token.

A model that ignores context can do no better than the unigram cross-entropy, so a validation loss below it shows that
context is used.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.store import DocumentTable


def count_tokens(table: DocumentTable, vocab_size: int) -> NDArray[np.int64]:
    """Occurrences of each id, shape (vocab_size,). Raises UserError for ids that no vocabulary has."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in table.all_ids():
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise UserError(f"token ids up to {ids.max()} in a vocabulary of {vocab_size}: is it the right tokenizer?")
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def measure_entropy(counts: NDArray[np.int64]) -> float | None:
    """Entropy of the frequencies, -sum p ln p; None without tokens."""
    total = counts.sum()
    if not total:
        return None
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum())


def measure_cross_entropy(counts: NDArray[np.int64], model_counts: NDArray[np.int64]) -> float | None:
    """Mean -ln q of the tokens in `counts`, where q = (model_counts + 1) / (sum + vocabulary); None without tokens."""
    if not counts.sum():
        return None
    surprise = np.log(model_counts.sum() + len(model_counts)) - np.log(model_counts + 1.0)
    return float((counts * surprise).sum() / counts.sum())
