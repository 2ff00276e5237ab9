from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document
from data_prep.encoding import Encoder, choose_encoder, find_loss_runs
from data_prep.records import Record
from data_prep.tokenizer import LoadedTokenizer
from tests.data_prep.conftest import make_texts

ORIGIN = Record(None, "a.txt", "line", 1)
SCRAPS = ["<|im_end|>", " ", "\n", "\t", "'s", "12", "é", "猫", "🐈", "the", "\x00", "<|"]
TRICKY = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(SCRAPS)).map("".join))


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, text.encode(), ORIGIN) for text in texts]


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TRICKY, min_size=1, max_size=5))
def test_gigatoken_gives_the_ids_of_tokenizers(tokenizer: LoadedTokenizer, texts: list[str]):
    fast, exact = (Encoder(tokenizer, name).encode_texts(texts) for name in ("gigatoken", "tokenizers"))
    assert fast[0].tolist() == exact[0].tolist()
    assert fast[1].tolist() == exact[1].tolist()


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_texts_end_with_the_end_token(tokenizer: LoadedTokenizer, name: Any):
    texts = ["the cat", "said", "hello to its dog"]
    encoded = Encoder(tokenizer, name).encode_documents(documents(texts))
    for i, text in enumerate(texts):
        ids = encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
        assert ids == [*tokenizer.backend.encode(text).ids, tokenizer.eos_id]
    assert encoded.loss_runs == [None] * 3
    assert encoded.head(1).ids.tolist() == encoded.ids[: encoded.offsets[1]].tolist()


def test_beginning_token_goes_first(tokenizer: LoadedTokenizer):
    from dataclasses import replace

    encoded = Encoder(replace(tokenizer, bos_id=9), "gigatoken").encode_documents(documents(["the", "cat sat"]))
    the, cat = ([9, *tokenizer.backend.encode(text).ids, 0] for text in ("the", "cat sat"))
    assert encoded.ids.tolist() == the + cat
    assert encoded.offsets.tolist() == [0, len(the), len(the) + len(cat)]


def test_the_library_that_differs_or_fails_is_not_used(tokenizer: LoadedTokenizer, monkeypatch, caplog):
    caplog.set_level("INFO")
    assert choose_encoder(tokenizer, make_texts(20)) == "gigatoken"
    assert "same ids" in caplog.text
    exact = Encoder.encode_texts

    def differ(self: Encoder, texts: Any) -> Any:
        ids, offsets = exact(self, texts)
        return (ids[::-1], offsets) if self.name == "gigatoken" else (ids, offsets)

    monkeypatch.setattr(Encoder, "encode_texts", differ)
    assert choose_encoder(tokenizer, make_texts(20)) == "tokenizers"
    assert "other ids" in caplog.text

    def fail(data: str) -> None:
        raise ValueError("unsupported")

    monkeypatch.setattr("data_prep.encoding.gigatoken.Tokenizer.from_json", fail)
    assert choose_encoder(tokenizer, make_texts(20)) == "tokenizers"
    assert "unsupported" in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_loss_runs_against_a_loop_over_tokens(data: st.DataObject):
    edges = sorted(data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=12)))
    # Tokens in a row; the bytes of one character share its range.
    pairs = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
    tokens = [pair for pair in pairs for _ in range(data.draw(st.integers(1, 3)))]
    cuts = sorted(data.draw(st.lists(st.integers(0, 30), max_size=6)))
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
    expected = [any(a < end and b > start for start, end in spans) for a, b in tokens]
    mask = np.zeros(len(tokens), bool)
    runs = find_loss_runs(tokens, spans)
    for first, last in runs.reshape(-1, 2):
        mask[first:last] = True
    assert mask.tolist() == expected
    assert (np.diff(runs) > 0).all()
