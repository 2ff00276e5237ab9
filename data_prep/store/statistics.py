"""Token frequencies of a store, the losses that they bound, and which documents stand out. All in nats per token.

A model that ignores context can do no better than the unigram cross-entropy, so a validation loss below it shows that
context is used.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.store.document_table import DocumentTable

BLOCK = 2**16  # ids that stay in the cache while they are looked at three times


def count_tokens(table: DocumentTable, vocab_size: int) -> NDArray[np.int64]:
    """Occurrences of each id in a table, shape (vocab_size,). Raises UserError for ids that no vocabulary has."""
    return sum((count_ids(ids, vocab_size) for ids in table.all_ids()), np.zeros(vocab_size, np.int64))


def count_ids(ids: NDArray[np.int32], vocab_size: int) -> NDArray[np.int64]:
    """As `count_tokens`, of an array."""
    counts = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(ids), BLOCK):
        block = ids[begin : begin + BLOCK]
        if not 0 <= int(block.min()) <= int(block.max()) < vocab_size:
            raise UserError(
                f"token ids {ids.min()} to {ids.max()} in a vocabulary of {vocab_size}: the right tokenizer?"
            )
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def measure_oddness(
    table: DocumentTable, documents: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each of some documents of two tokens and more, both (documents,): the mean -ln p of its tokens, where p is
    their share in `counts` (high: words that hardly occur elsewhere), and Herdan's C, ln(distinct tokens) / ln(tokens)
    (low: the same again and again; it hangs little on length. G. Herdan, Type-Token Mathematics, 1960)."""
    surprise = np.log(max(1, counts.sum())) - np.log(np.maximum(counts, 1))  # of an empty split no words are odd
    ids = [table.ids(document) for document in documents.tolist()]
    means = np.array([surprise[words].mean() for words in ids], np.float64)
    richness = np.array([np.log(len(np.unique(words))) / np.log(len(words)) for words in ids], np.float64)
    return means, richness


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
