"""Fixtures: a small tokenizer, and recipes for files that a test writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import xxhash

from data_prep import executor
from data_prep.encode.tokenizer import LoadedTokenizer, load_tokenizer, train_tokenizer
from data_prep.options import DataSection, TokenizerSection
from data_prep.prepare import prepare
from data_prep.read import chunks
from data_prep.store.store import Store

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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return path


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "trained"
    train_tokenizer(
        make_texts(200),
        TokenizerSection.model_validate({"vocab_size": 500, "special_tokens": SPECIAL_TOKENS}),
        directory,
    )
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> LoadedTokenizer:
    return load_tokenizer(tokenizer_dir)


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_dir: Path) -> Callable[..., tuple[DataSection, TokenizerSection]]:
    """Make recipes: `recipe(path, source options…, data={…})` has one source and a store in the test's directory."""

    def build(path: Path | str, data: dict[str, Any] | None = None, **source: Any):
        values = {
            "sources": [{"path": str(path), **source}],
            "store_dir": str(tmp_path / "stores"),
            "num_proc": 1,
            "validation_share": 0.2,
            **(data or {}),
        }
        return DataSection.model_validate(values), TokenizerSection.model_validate({"path": str(tokenizer_dir)})

    return build


def set_part_bytes(patch: pytest.MonkeyPatch, least: int, most: int) -> None:
    """Set the size of parts, so that small inputs have many, and use a pool for any input."""
    patch.setattr(chunks, "MIN_BYTES", least)
    patch.setattr(chunks, "MAX_BYTES", most)
    patch.setattr(executor, "POOL_START_SECONDS", 0)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_part_bytes(monkeypatch, 2000, 6000)


def prepare_store(data: DataSection, tokenizer: TokenizerSection) -> Path:
    """The directory of the store that `prepare` builds or finds."""
    directory = prepare(data, tokenizer).store_dir
    assert directory is not None
    return directory


def hash_shards(directory: Path) -> list[str]:
    """Hash all shards, in the order of the manifest."""
    shards = Store.open(directory).manifest.shards
    return [f"{shard.split} {xxhash.xxh3_128_hexdigest((directory / shard.name).read_bytes())}" for shard in shards]
