import math

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.store.document_table import DocumentTable
from data_prep.store.statistics import BLOCK, count_ids, measure_cross_entropy, measure_entropy, measure_oddness


def test_entropy_by_hand():
    assert measure_entropy(np.array([1, 1, 2, 0])) == pytest.approx(1.5 * math.log(2))
    assert measure_entropy(np.array([7])) == 0.0
    assert measure_entropy(np.zeros(3, np.int64)) is None


def test_cross_entropy_by_hand():
    # Smoothed frequencies of (3, 0, 0) over 3 words: 4/6, 1/6, 1/6.
    value = measure_cross_entropy(np.array([1, 1, 0]), np.array([3, 0, 0]))
    assert value == pytest.approx((math.log(6 / 4) + math.log(6)) / 2)
    assert measure_cross_entropy(np.zeros(3, np.int64), np.array([3, 0, 0])) is None


@pytest.mark.filterwarnings("error")
def test_an_empty_split_has_no_odd_documents():
    means, richness = measure_oddness(DocumentTable(), np.empty(0, np.int64), np.zeros(5, np.int64))
    assert (len(means), len(richness)) == (0, 0)


def test_ids_are_counted_and_held_against_the_vocabulary():
    ids = np.random.default_rng(0).integers(0, 50, 2 * BLOCK + 7).astype(np.int32)
    assert count_ids(ids, 60).tolist() == [int((ids == i).sum()) for i in range(60)]
    assert count_ids(ids[:0], 3).tolist() == [0, 0, 0]
    for place, wrong in ((0, 60), (BLOCK + 1, -1), (len(ids) - 1, 10**6)):
        bad = ids.copy()
        bad[place] = wrong
        with pytest.raises(UserError, match="the vocabulary size is 60: check tokenizer.path"):
            count_ids(bad, 60)
