"""A small tokenizer and recipes over files of the test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.options import DataSection, TokenizerSection
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer, train_tokenizer

WORDS = "the cat sat on a mat and said hello to its dog; what is two plus two? four, of course. search weather in Paris"
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "</s>",
]  # fmt: skip


def make_texts(count: int, salt: str = "") -> list[str]:
    """Distinct short texts."""
    words = WORDS.split() * 3
    return [f"{salt}Text {i}: " + " ".join(words[i % 20 : i % 20 + 5 + i % 37]) for i in range(count)]


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "trained"
    train_tokenizer(make_texts(200), TokenizerSection(vocab_size=500, special_tokens=SPECIAL_TOKENS), directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> LoadedTokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_dir: Path) -> Callable[..., tuple[DataSection, TokenizerSection]]:
    """`recipe(path, source options…, data={…})`: one source, stored below the test's directory."""

    def build(path: Path | str, data: dict[str, Any] | None = None, **source: Any):
        values = {
            "sources": [{"path": str(path), **source}],
            "store_dir": str(tmp_path / "stores"),
            "num_proc": 1,
            "validation_share": 0.2,
            **(data or {}),
        }
        return DataSection.model_validate(values), TokenizerSection(path=str(tokenizer_dir))

    return build
