"""A damaged shard is found at the start: always in full, and in a sample by one of the next starts."""

from types import SimpleNamespace

import pytest

from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.prepare import prepare
from data_prep.store import verification
from data_prep.store.store import Store
from data_prep.store.verification import verify_shards


@pytest.fixture
def store(tmp_path):
    data = DataSection.model_validate({"sources": [{"path": "embedded", "max_documents": 12}], "num_proc": 1,
                                       "store_dir": str(tmp_path), "validation_share": 0.5})  # fmt: skip
    return data, Store.open(prepare(data, TokenizerSection(vocab_size=400)).store_dir or "")


def damage(store):
    path = store.path / store.manifest.shards[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


def test_a_flipped_bit_stops_the_start(store, caplog):
    caplog.set_level("INFO")
    data, built = store
    again = prepare(data, TokenizerSection(vocab_size=400))
    assert again.store_cached and "2 of 2 shards" in caplog.text and "data.verify: sample" in caplog.text
    name = damage(built)
    for how in ("sample", "full"):
        with pytest.raises(UserError, match=f"1 of 2 shards differ from their hash .*{name}.*: delete the store"):
            prepare(data.model_copy(update={"verify": how}), TokenizerSection(vocab_size=400))
    assert prepare(data.model_copy(update={"verify": "off"}), TokenizerSection(vocab_size=400)).store_cached


def test_a_sample_takes_no_longer_than_it_may_and_finds_it_some_time(store, monkeypatch):
    monkeypatch.setattr(verification, "SAMPLE_SECONDS", -1.0)
    assert verify_shards(store[1], "sample") == (0, 0)
    now = iter(range(1000))  # a second for each question: time for one shard
    monkeypatch.setattr(verification, "SAMPLE_SECONDS", 1.0)
    monkeypatch.setattr(verification, "time", SimpleNamespace(monotonic=lambda: float(next(now))))
    damage(store[1])
    found = 0
    for _ in range(40):
        try:
            assert verify_shards(store[1], "sample")[0] == 1
        except UserError:
            found += 1
    assert 0 < found < 40
