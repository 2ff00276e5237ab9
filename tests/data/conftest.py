"""Stores of given documents, without tokenizing anything."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_prep.encode.encoding import EncodedBatch
from data_prep.store.build import build_record_batch
from data_prep.store.store import MANIFEST, Manifest, Shard, Split, SplitCounts, Store
from data_prep.store.writing import ShardWriter, write_atomically

Documents = Sequence[Sequence[int]]


def write_split(directory: Path, split: Split, documents: Documents, runs: Sequence | None) -> Shard | None:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    loss_runs = [None if r is None else np.asarray(r, np.int32) for r in runs or [None] * len(documents)]
    encoded = EncodedBatch(np.concatenate(documents).astype(np.int32), offsets, loss_runs)
    hashes = [np.random.default_rng(i).bytes(16) for i in range(len(documents))]
    with ShardWriter(directory, split, 0) as writer:
        writer.write(build_record_batch(encoded, 0, hashes), 0)
        return writer.close()


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """`make_store(train, validation=(), runs=None)`: each document a list of ids; `runs` as in the store."""

    def build(train: Documents, validation: Documents = (), runs: Sequence | None = None) -> Store:
        written = [write_split(tmp_path, "train", train, runs)]
        written += [write_split(tmp_path, "validation", validation, None)] if validation else []
        shards = [shard for shard in written if shard]
        splits = {"train": SplitCounts(), "validation": SplitCounts()}
        manifest = Manifest(1, "f", "t", "", 1000, 0, "gigatoken", {}, splits, [], 0, None, None, shards)
        write_atomically(tmp_path / MANIFEST, manifest.to_json())
        return Store.open(tmp_path)

    return build
