"""Computes token frequencies of a store, the entropies that follow from them, and how unusual documents are.

Entropies are in nats per token. A model that ignores context cannot have a loss below the unigram cross-entropy, so a
validation loss below it shows that the model uses context.
"""

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.store.document_table import DocumentTable

BLOCK = 2**16  # ids that fit in the cache, because they are read three times


def count_tokens(table: DocumentTable, vocab_size: int) -> NDArray[np.int64]:
    """Count each id in a table, shape (vocab_size,). Raises UserError for ids outside of the vocabulary."""
    return sum((count_ids(ids, vocab_size) for ids in table.all_ids()), np.zeros(vocab_size, np.int64))


def count_ids(ids: NDArray[np.int32], vocab_size: int) -> NDArray[np.int64]:
    """Count each id in an array, shape (vocab_size,). Raises UserError for ids outside of the vocabulary."""
    counts = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(ids), BLOCK):
        block = ids[begin : begin + BLOCK]
        if not 0 <= int(block.min()) <= int(block.max()) < vocab_size:
            raise UserError(
                f"token ids from {ids.min()} to {ids.max()}, but the vocabulary size is {vocab_size}: "
                "check tokenizer.path"
            )
        counts += np.bincount(block, minlength=vocab_size)
    return counts


def measure_oddness(
    table: DocumentTable, documents: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute how rare and how repetitive documents of two or more tokens are; both results have shape (documents,).

    1. The mean -ln p of the tokens, where p is their share in `counts`: high for words that are rare elsewhere.
    2. Herdan's C, ln(distinct tokens) / ln(tokens): low for repetitive text, and nearly independent of its length
       (G. Herdan, Type-Token Mathematics, 1960).
    """
    surprise = np.log(max(1, counts.sum())) - np.log(np.maximum(counts, 1))  # max avoids ln 0 for an empty split
    ids = [table.ids(document) for document in documents.tolist()]
    means = np.array([surprise[words].mean() for words in ids], np.float64)
    richness = np.array([np.log(len(np.unique(words))) / np.log(len(words)) for words in ids], np.float64)
    return means, richness


def measure_entropy(counts: NDArray[np.int64]) -> float | None:
    """Compute the entropy of the frequencies, -sum p ln p, in nats; None without tokens."""
    total = counts.sum()
    if not total:
        return None
    shares = counts[counts > 0] / total
    return float(-(shares * np.log(shares)).sum())


def measure_cross_entropy(counts: NDArray[np.int64], model_counts: NDArray[np.int64]) -> float | None:
    """Compute the mean -ln q of the tokens in `counts`, in nats; None without tokens.

    q = (model_counts + 1) / (sum of model_counts + vocabulary size).
    """
    if not counts.sum():
        return None
    surprise = np.log(model_counts.sum() + len(model_counts)) - np.log(model_counts + 1.0)
    return float((counts * surprise).sum() / counts.sum())
