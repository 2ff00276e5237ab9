import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_prep.encode.encoding import EncodedBatch
from data_prep.errors import UserError
from data_prep.store.build import build_record_batch
from data_prep.store.document_table import DocumentTable
from data_prep.store.store import Shard, Store
from data_prep.store.writing import ShardWriter
from tests.data_prep.conftest import make_texts, prepare_store, write_jsonl

RUNS = [None, np.array([1, 3], np.int32), np.array([0, 1, 2, 4], np.int32)]
IDS = [[1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def write(directory: Path, index: int = 0, batches: int = 1) -> Shard:
    flat = np.concatenate(IDS).astype(np.int32)
    encoded = EncodedBatch(flat, np.array([0, 3, 7, 11]), RUNS)
    with ShardWriter(directory, "train", index) as writer:
        for _ in range(batches):
            writer.write(build_record_batch(encoded, 5, [bytes([i] * 16) for i in range(3)]), 30)
        shard = writer.close()
    assert shard is not None
    return shard


def test_table_gives_back_what_was_written_over_shards_and_batches(tmp_path: Path):
    paths = [tmp_path / write(tmp_path, index, batches=2).name for index in range(2)]
    table = DocumentTable.open(paths, np.array([6, 6]))
    assert len(table) == 12
    assert table.lengths.tolist() == [3, 4, 4] * 4
    assert table.sources.tolist() == [5] * 12
    assert table.hashes[:3].tolist() == [0, 0x0101010101010101, 0x0202020202020202]
    assert table.has_loss_runs.tolist() == [False, True, True] * 4
    for i in range(12):
        assert table.ids(i).tolist() == IDS[i % 3]
        runs, expected = table.loss_runs(i), RUNS[i % 3]
        assert (runs is None) == (expected is None)
        assert runs is None or runs.tolist() == expected.tolist()  # type: ignore[union-attr]
    with pytest.raises(IndexError):
        table.ids(12)


def test_ids_are_views_of_the_file_and_read_only(tmp_path: Path):
    table = DocumentTable.open([tmp_path / write(tmp_path).name], np.array([3]))
    ids = table.ids(1)
    assert not ids.flags.owndata
    assert ids.base is table.ids(2).base or np.shares_memory(next(table.all_ids()), ids)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_datasets_reads_a_shard(tmp_path: Path):
    shard = write(tmp_path)
    rows = datasets.Dataset.from_file(str(tmp_path / shard.name))
    assert rows["ids"][:] == IDS
    assert rows["loss_runs"][:] == [None, [1, 3], [0, 1, 2, 4]]
    assert rows["source"][:] == [5, 5, 5]
    assert (shard.documents, shard.tokens, shard.text_bytes) == (3, 11, 30)


def test_nothing_is_written_without_documents_and_nothing_left_after_a_failure(tmp_path: Path):
    with ShardWriter(tmp_path, "train", 0) as writer:
        assert writer.close() is None
    encoded = EncodedBatch(np.arange(2, dtype=np.int32), np.array([0, 2]), [None])
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, "train", 0) as writer:
        writer.write(build_record_batch(encoded, 0, [bytes(16)]), 2)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.fixture
def store(tmp_path: Path, recipe) -> Store:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(50)])
    return Store.open(prepare_store(*recipe(path)))


def test_pickles_as_a_path(store: Store):
    store.split("train")
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data).split("train").ids(3).tolist() == store.split("train").ids(3).tolist()


def test_a_shard_that_is_gone_or_cut_is_seen_at_opening(store: Store):
    path = store.path / store.manifest.shards[0].name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=path.name):
        Store.open(store.path)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        Store.open(store.path)


def test_no_manifest_is_no_store(store: Store):
    (store.path / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a complete token store"):
        Store.open(store.path)
