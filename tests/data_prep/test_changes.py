"""Tests that a file that changes between hashing and reading does not damage a cache."""

from pathlib import Path

import pytest

from data_prep import prepare as module
from data_prep.errors import UserError
from data_prep.options import TokenizerSection
from data_prep.prepare import prepare
from data_prep.read.files import Span, read_stamp, refuse_changes
from data_prep.store.contents import find_contents
from tests.data_prep.conftest import make_texts, write_jsonl
from tests.data_prep.render.test_documents import build
from tests.data_prep.test_prepare import decode

OLD, NEW = make_texts(300, "old "), make_texts(300, "new ")


def write(path: Path, texts: list[str]) -> Path:
    return write_jsonl(path, [{"text": text} for text in texts])


@pytest.fixture
def changing(tmp_path: Path, monkeypatch, small_parts):
    """A source that is rewritten with the same size after it has been hashed, until `stop`."""
    source = write(tmp_path / "a.jsonl", OLD)

    def find(item, root):
        found = find_contents(item, root)
        write(source, NEW)
        return found

    monkeypatch.setattr(module, "find_contents", find)
    return source, lambda: monkeypatch.setattr(module, "find_contents", find_contents)


@pytest.mark.parametrize("options", [{"num_proc": 2}, {"deduplicate": "exact"}])
def test_nothing_is_kept_of_what_changed_while_it_was_read(changing, recipe, options: dict):
    source, stop = changing
    with pytest.raises(UserError, match=r"a\.jsonl: changed while it was read; run again"):
        prepare(*recipe(source, options))
    stop()
    for texts in (NEW, OLD):
        store = build(recipe(write(source, texts), options))
        assert sorted(decode(store) + decode(store, "validation")) == sorted(texts)


def test_nor_of_a_source_with_a_limit_that_is_not_read_to_its_end(changing, recipe):
    source, stop = changing
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(*recipe(source, {"validation_share": 0}, max_documents=3))
    stop()
    assert decode(build(recipe(write(source, OLD), {"validation_share": 0}, max_documents=3))) == OLD[:3]


def test_nor_a_tokenizer(changing, recipe, tmp_path: Path):
    source, _ = changing
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(recipe(source)[0], TokenizerSection.model_validate({"vocab_size": 400, "special_tokens": ["<|end|>"]}))
    assert not [path for path in (tmp_path / "stores" / "tokenizers").iterdir() if not path.name.startswith(".")]


def test_a_bad_record_of_a_file_that_changed_is_not_to_blame(changing, recipe, monkeypatch):
    source, _ = changing
    monkeypatch.setattr("tests.data_prep.test_changes.NEW", [" "] * 300)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(*recipe(source))


def test_nor_one_that_was_removed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", OLD)
    with (
        pytest.raises(UserError, match="changed while it was read"),
        refuse_changes([Span(str(path), "jsonl", stamp=read_stamp(path))]),
    ):
        path.unlink()
