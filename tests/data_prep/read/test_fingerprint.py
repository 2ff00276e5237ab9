import os
import shutil
from pathlib import Path

import pytest

from data_prep.prepare import prepare
from tests.data_prep.conftest import make_texts, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    return write_jsonl(path, [{"text": text} for text in make_texts(50)])


def test_touch_move_and_reading_options_are_hits(source: Path, tmp_path: Path, recipe):
    first = prepare(*recipe(source))
    assert not first.store_cached
    os.utime(source, (1, 1))
    assert prepare(*recipe(source)).store_cached
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(source, moved)
    again = prepare(*recipe(moved, {"seq_len": 64, "packing": "wrapped", "seed": 5, "num_proc": 2}, weight=2.0))
    assert again.store_cached
    assert again.store_dir == first.store_dir


@pytest.mark.parametrize("at", [0.0, 0.5, 0.99])
def test_one_byte_is_a_miss(source: Path, recipe, at: float):
    lenient = {"on_bad_record": "skip", "max_bad_share": 1.0}
    first = prepare(*recipe(source, lenient))
    data = source.read_bytes()
    letter = data.index(b"a", int(len(data) * at) - 50 if at else 0)
    source.write_bytes(data[:letter] + b"b" + data[letter + 1 :])
    os.utime(source, (1, 1))
    second = prepare(*recipe(source, lenient))
    assert not second.store_cached
    assert second.store_dir != first.store_dir


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"validation_share": 0.3}, {}),
        ({"train_on": "all"}, {}),
        ({"chat_template": "chatml"}, {}),
        ({}, {"split": "train"}),
        ({}, {"max_tokens": 100}),
        ({}, {"max_documents": 10}),
    ],
)
def test_an_option_that_changes_the_store_is_a_miss(source: Path, recipe, data: dict, options: dict):
    first = prepare(*recipe(source))
    assert prepare(*recipe(source, data, **options)).store_dir != first.store_dir


def test_another_tokenizer_is_a_miss(source: Path, recipe, tokenizer_dir: Path, tmp_path: Path):
    data, tokenizer = recipe(source)
    first = prepare(data, tokenizer)
    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_dir, other)
    assert prepare(data, tokenizer.model_copy(update={"path": str(other)})).store_dir == first.store_dir
    config = other / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|endoftext|>", "</s>"))
    assert prepare(data, tokenizer.model_copy(update={"path": str(other)})).store_dir != first.store_dir
