import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep.encode.encoding import EncodedBatch, Encoder
from data_prep.encode.loss_runs import find_loss_runs
from data_prep.encode.tokenizer import LoadedTokenizer, byte_symbols
from data_prep.read.records import Record
from data_prep.render.documents import Document
from data_prep.render.rendering import CharSpan

ORIGIN = Record(None, "a.txt", "line", 1)
SCRAPS = ["<|im_end|>", " ", "\n", "\t", "'s", "12", "é", "猫", "🐈", "the", "\x00", "<|"]
TRICKY = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(SCRAPS)).map("".join))


def documents(texts: list[str]) -> list[Document]:
    return [Document(text, text.encode(), ORIGIN) for text in texts]


def chats(texts: list[str], losses: Sequence[list[CharSpan] | None]) -> list[Document]:
    pairs = zip(texts, losses, strict=True)
    return [Document(text, text.encode(), ORIGIN, is_chat=True, loss=loss) for text, loss in pairs]


def assert_same(fast: EncodedBatch, exact: EncodedBatch) -> None:
    assert fast.ids.tolist() == exact.ids.tolist()
    assert fast.offsets.tolist() == exact.offsets.tolist()
    for mine, theirs in zip(fast.loss_runs, exact.loss_runs, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or mine.tolist() == theirs.tolist()


Encoders = tuple[Encoder, Encoder]


def both(tokenizer: LoadedTokenizer) -> Encoders:
    return Encoder(tokenizer, "gigatoken"), Encoder(tokenizer, "tokenizers")


@pytest.fixture(scope="module")
def encoders(tokenizer: LoadedTokenizer) -> Encoders:
    return both(tokenizer)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TRICKY, min_size=1, max_size=5))
def test_gigatoken_gives_the_ids_of_tokenizers(encoders: Encoders, texts: list[str]):
    fast, exact = (encoder.encode_documents(documents(texts)) for encoder in encoders)
    assert_same(fast, exact)
    assert fast.fallbacks == 0


@st.composite
def text_with_spans(draw: st.DrawFn) -> tuple[str, list[CharSpan] | None]:
    text = draw(TRICKY)
    if draw(st.integers(0, 9)) == 0:
        return text, None
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]


@settings(max_examples=150, deadline=None)
@given(conversations=st.lists(text_with_spans(), min_size=1, max_size=4), normalize=st.booleans())
def test_masks_are_those_of_the_exact_offsets(
    encoders: Encoders, normalizing: Encoders, conversations, normalize: bool
):
    batch = chats(*(list(column) for column in zip(*conversations, strict=True)))
    fast, exact = (encoder.encode_documents(batch) for encoder in (normalizing if normalize else encoders))
    assert_same(fast, exact)
    if not normalize:
        assert fast.fallbacks == 0


@pytest.fixture(scope="module")
def normalizing(tokenizer: LoadedTokenizer) -> Encoders:
    """A tokenizer that first converts Unicode to normal form C, as that of Qwen does."""
    value = json.loads(tokenizer.backend.to_str())
    return both(replace(tokenizer, backend=Tokenizer.from_str(json.dumps({**value, "normalizer": {"type": "NFC"}}))))


def test_only_what_a_normalizer_changes_goes_the_slow_way(normalizing: Encoders):
    batch = chats(["the caf\u00e9", "the cafe\u0301 cat", "cat"], [[(4, 6)], [(4, 6)], [(0, 3)]])
    encoded, exact = (encoder.encode_documents(batch) for encoder in normalizing)
    assert encoded.fallbacks == 1
    assert_same(encoded, exact)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TRICKY | st.sampled_from(["\x04", "a\x13b", "\U000e0001", "caf\u00e9"]), min_size=1, max_size=4))
def test_a_vocabulary_without_all_bytes_falls_back_where_one_is_met(gapped: Encoders, texts: list[str]):
    fast, exact = (encoder.encode_documents(documents(texts)) for encoder in gapped)
    assert_same(fast, exact)
    met = [text for text in texts if {4, 0x13, 0xF3} & set(text.encode())]
    assert fast.fallbacks == len(met)


@pytest.fixture(scope="module")
def gapped(tokenizer: LoadedTokenizer) -> Encoders:
    """A tokenizer without tokens for bytes that its training text did not contain, as that of SmolLM2."""
    value = json.loads(tokenizer.backend.to_str())
    missing = {byte_symbols()[byte] for byte in (4, 0x13, 0xF3, 0xFF)}
    value["model"]["vocab"] = {word: i for word, i in value["model"]["vocab"].items() if word not in missing}
    value["model"]["merges"] = [pair for pair in value["model"]["merges"] if not missing & set("".join(pair))]
    return both(replace(tokenizer, backend=Tokenizer.from_str(json.dumps(value))))


def test_a_panic_of_the_library_costs_one_batch(tokenizer: LoadedTokenizer, monkeypatch, caplog):
    class PanicException(BaseException):
        pass

    def panic(text: str) -> None:
        raise PanicException("index out of bounds")

    encoder, batch = Encoder(tokenizer, "gigatoken"), documents(["the cat", "said"])
    expected = encoder.encode_documents(batch)
    assert encoder._giga is not None
    monkeypatch.setattr(encoder._giga._tokenizer, "encode", panic)
    encoded = encoder.encode_documents(batch)
    assert_same(encoded, expected)
    assert encoded.fallbacks == 2
    assert "index out of bounds" in caplog.text
    assert encoder.encode_documents(batch).fallbacks == 0


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_texts_end_with_the_end_token(tokenizer: LoadedTokenizer, name: Any):
    texts = ["the cat", "said", "hello to its dog"]
    encoded = Encoder(tokenizer, name).encode_documents(documents(texts))
    for i, text in enumerate(texts):
        ids = encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]].tolist()
        assert ids == [*tokenizer.backend.encode(text).ids, tokenizer.eos_id]
    assert encoded.loss_runs == [None] * 3


def test_beginning_token_goes_first(tokenizer: LoadedTokenizer):
    encoded = Encoder(replace(tokenizer, bos_id=9), "gigatoken").encode_documents(documents(["the", "cat sat"]))
    the, cat = ([9, *tokenizer.backend.encode(text).ids, 0] for text in ("the", "cat sat"))
    assert encoded.ids.tolist() == the + cat
    assert encoded.offsets.tolist() == [0, len(the), len(the) + len(cat)]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_loss_runs_against_a_loop_over_tokens(data: st.DataObject):
    edges = sorted(data.draw(st.lists(st.integers(0, 30), min_size=2, max_size=12)))
    # Tokens are adjacent; all bytes of a character have the range of the character.
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
