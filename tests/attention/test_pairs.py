"""Query-key pairs by hand."""

from training.attention.pairs import Attended, causal_pairs, square_pairs


def test_pairs_of_a_document():
    # 1 + 2 + 3 + 4 + 5; with a window of 2: 1 + 2 + 2 + 2 + 2
    assert (causal_pairs(5), causal_pairs(5, 2), causal_pairs(5, 9)) == (15, 9, 15)
    assert (square_pairs(5), square_pairs(5, 2), square_pairs(5, 9)) == (25, 10, 25)


def test_whole_rows():
    whole = Attended(pairs=2 * 36, documents=2, rows=2, seq_len=8, window=None)
    assert whole.is_whole_rows and whole.square == 128
    assert Attended(2 * 36, 2, 2, 8, window=8).is_whole_rows
    assert not Attended(2 * 33, 2, 2, 8, window=6).is_whole_rows
    assert not Attended(36 + 10 + 10, 3, 2, 8, window=None).is_whole_rows  # two documents of 4 in the second row
    assert not Attended(36 + 21, 2, 2, 8, window=None).is_whole_rows  # 6 tokens and padding
