from collections.abc import Sequence
from typing import Any

import pytest

from data_prep.encode.encoder_choice import SAMPLE_CHARACTERS, choose_encoder, sample_documents
from data_prep.encode.encoding import Encoder
from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord, Record
from data_prep.render.documents import Document
from tests.data_prep.conftest import make_texts
from tests.data_prep.encode.test_encoding import chats, documents


def test_the_library_that_differs_or_fails_is_not_used(tokenizer: LoadedTokenizer, monkeypatch, caplog):
    caplog.set_level("INFO")
    sample = documents(make_texts(20)) + chats(["the cat said"], [[(4, 7)]])
    assert choose_encoder(tokenizer, sample) == "gigatoken"
    assert choose_encoder(tokenizer, []) == "gigatoken"
    assert "same ids and masks" in caplog.text
    exact = Encoder.encode_documents

    def other_ids(self: Encoder, batch: Sequence[Document]) -> Any:
        encoded = exact(self, batch)
        if self.name == "gigatoken":
            encoded.ids[-1] += 1
        return encoded

    def other_masks(self: Encoder, batch: Sequence[Document]) -> Any:
        encoded = exact(self, batch)
        if self.name == "gigatoken":
            next(runs for runs in encoded.loss_runs if runs is not None)[-1] += 1
        return encoded

    for other in (other_ids, other_masks):
        caplog.clear()
        monkeypatch.setattr(Encoder, "encode_documents", other)
        assert choose_encoder(tokenizer, sample) == "tokenizers"
        assert "different ids or masks" in caplog.text


class PanicException(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, PanicException])
def test_a_tokenizer_that_cannot_be_loaded(tokenizer: LoadedTokenizer, monkeypatch, caplog, error: type[BaseException]):
    caplog.set_level("INFO")

    def fail(data: str) -> None:
        raise error("unsupported")

    monkeypatch.setattr("data_prep.encode.encoding.gigatoken.Tokenizer.from_json", fail)
    assert choose_encoder(tokenizer, documents(make_texts(20))) == "tokenizers"
    assert "unsupported" in caplog.text
    monkeypatch.setattr(
        "data_prep.encode.encoding.gigatoken.Tokenizer.from_json", lambda data: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        choose_encoder(tokenizer, documents(make_texts(20)))


def test_sample_holds_the_first_and_last_parts_of_every_source_and_what_is_not_ascii():
    contents = {
        (source, part): [f"{source} {part} {i} " + "x" * 5000 for i in range(150)]
        for source in (0, 1)
        for part in range(70)
    }
    contents[1, 69][100] += "猫"
    contents[0, 0][0] = "y" * SAMPLE_CHARACTERS
    parts = [Part(i, source, ()) for i, (source, _) in enumerate(contents)]

    def read(part: Part) -> list[Document | BadRecord]:
        return [BadRecord("a", "line", 1, "bad"), *documents(list(contents.values())[part.index])]

    sample = [document.text for document in sample_documents(parts, read)]
    assert sum(map(len, sample)) < 2.5 * SAMPLE_CHARACTERS
    for source in (0, 1):
        assert any(text.startswith(f"{source} 69 0 ") for text in sample)
    assert any("猫" in text for text in sample)
    assert len({text.split()[1] for text in sample if text.startswith("1")}) > 20


def test_a_long_conversation_is_cut_with_its_mask():
    text = "the cat said " * SAMPLE_CHARACTERS
    (cut,) = sample_documents(
        [Part(0, 0, ())], lambda part: chats([text], [[(4, 7), (10, len(text)), (len(text), len(text))]])
    )
    assert len(cut.text) <= SAMPLE_CHARACTERS
    assert cut.loss == [(4, 7), (10, len(cut.text))]
    assert Record is type(cut.origin)
