"""Compares shingles with sets of word tuples that a regular expression finds."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.store.shingles import SHINGLE_WORDS, hash_shingles, sign_texts

SCRAPS = [
    "the ",
    "Cat",
    "cat",
    " ",
    ", ",
    "x1",
    "é",
    "ñandú",
    "猫",
    "坐在",
    "한국",
    "🐈",
    "\n",
    "_",
    "internationalization",
    "ж",
]
TEXT = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(SCRAPS), max_size=40).map("".join))
WORD = re.compile(r"[0-9a-z\u0080-\u07ff]+|[\u0800-\U0010ffff]")


def words_of(text: str) -> list[str]:
    lowered = re.sub("[A-Z]", lambda letter: letter[0].lower(), text)
    return WORD.findall(lowered)


def shingles_of(text: str) -> list[tuple[str, ...]]:
    words = words_of(text)
    if not words:
        return [(text.encode().strip().decode(),)]
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return [tuple(words[i : i + SHINGLE_WORDS]) for i in range(count)]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_shingles_are_those_of_the_words(texts: list[str]):
    expected = [shingles_of(text) for text in texts]
    hashes, offsets = hash_shingles([text.encode() for text in texts])
    assert np.diff(offsets.astype(int)).tolist() == [len(shingles) for shingles in expected]
    pairs = list(zip((s for shingles in expected for s in shingles), hashes.tolist(), strict=True))
    assert len(set(pairs)) == len({shingle for shingle, _ in pairs}) == len({number for _, number in pairs})


def test_every_byte_of_a_short_word_counts_and_long_ones_are_told_by_their_ends():
    def first(text: str) -> int:
        return int(hash_shingles([text.encode()])[0][0])

    letters = [
        first("".join(word)) for word in ("abcdefgh", "abcdefgx", "xbcdefgh", "abcdefg", "abcdefghi", "bcdefghi")
    ]
    assert len(set(letters)) == len(letters)
    middle = [first(f"{'a' * 8}{middle}{'b' * 8}") for middle in ("", "c", "cc")]
    assert len(set(middle)) == 3


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_signatures_estimate_the_similarity_of_the_sets(similarity: float):
    size = 400
    shared = round(size * 2 * similarity / (1 + similarity))
    texts = []
    for pair in range(60):
        for side in (0, 1):
            own = [f"w{pair}x{side}x{i}" for i in range(size)]
            common = [f"w{pair}x{i}" for i in range(size)]
            texts.append(" ".join(common[:shared] + own[shared:]).encode())
    signatures = sign_texts(texts)
    exact = [jaccard(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    estimates = (signatures[::2] == signatures[1::2]).mean(axis=1)
    spread = np.sqrt(similarity * (1 - similarity) / 128)
    assert abs(estimates.mean() - np.mean(exact)) < 4 * spread / np.sqrt(60)
    assert estimates.std() < 1.4 * spread


def jaccard(one: bytes, two: bytes) -> float:
    a, b = set(shingles_of(one.decode())), set(shingles_of(two.decode()))
    return len(a & b) / len(a | b)


def test_a_text_without_words_is_like_itself_only():
    signatures = sign_texts([b"----", b"====", b"----", b" ---- "])
    same = (signatures[:, None] == signatures[None]).all(axis=2)
    assert same.tolist() == [[True, False, True, True], [False, True, False, False], *[[True, False, True, True]] * 2]
