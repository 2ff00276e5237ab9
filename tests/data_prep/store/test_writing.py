"""Tests full disks with a limit on the size of files, and with /dev/full."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_prep.encode.encoding import EncodedBatch
from data_prep.prepare import prepare
from data_prep.store.build import build_record_batch
from data_prep.store.store import Store
from data_prep.store.writing import (
    ShardWriter,
    WriteError,
    explain_write_errors,
    place_copy,
    remove_temporaries,
    write_atomically,
)  # fmt: skip
from tests.data_prep.conftest import hash_shards, make_texts, prepare_store, write_jsonl

LIMITED = """
import resource, signal, sys
from data_prep.read import chunks
from data_prep import executor
from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.prepare import prepare
chunks.MIN_BYTES, chunks.MAX_BYTES = 2000, 6000
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    prepare(*(c.model_validate_json(t) for c, t in zip((DataSection, TokenizerSection), sys.argv[2:])))
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def batch():
    ids = np.arange(10_000, dtype=np.int32)
    return build_record_batch(EncodedBatch(ids, np.array([0, 10_000]), [None]), 0, [bytes(16)])


@contextmanager
def small_files():
    """Limit files to 5 kB, with EFBIG instead of a signal; only for a short time, because it also limits pytest."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, kept[0][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept[0])
        signal.signal(signal.SIGXFSZ, kept[1])


def test_a_shard_that_does_not_fit_leaves_nothing(tmp_path: Path, batch):
    with (
        small_files(),
        pytest.raises(WriteError, match=rf"{tmp_path}: no space to write \(File too large; [\d.]+ GB are free there\)"),
        ShardWriter(tmp_path, "train", "x") as writer,
    ):
        writer.write(batch, 1)
    with small_files(), pytest.raises(WriteError, match="no space"):
        write_atomically(tmp_path / "a", b"x" * 6000)
    assert not list(tmp_path.iterdir())


def test_a_full_device(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("data_prep.atomic_files.name_temporary", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(WriteError, match=r"No space left on device.*make space.*finished parts are kept"):
        write_atomically(tmp_path / "a", b"x")


def test_other_reasons_are_told_apart(tmp_path: Path):
    read_only = r"cannot be written to \(Read-only file system\): set data\.store_dir"
    with pytest.raises(WriteError, match=read_only), explain_write_errors(tmp_path):
        raise OSError(errno.EROFS, "x")
    with pytest.raises(WriteError, match=r"cannot be written to \(No such file or directory\)"):
        write_atomically(tmp_path / "missing" / "a", b"x")


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_build_goes_on_when_there_is_space_again(tmp_path: Path, recipe, small_parts, num_proc: int):
    """The small parts fit, but one large line does not."""
    texts = make_texts(100) + ["a long document " * 1300]
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    sections = recipe(source, {"num_proc": num_proc})
    command = [sys.executable, "-c", LIMITED, "30000", *(section.model_dump_json() for section in sections)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (directory,) = (path.parent for path in (tmp_path / "stores").glob("*/parts"))
    assert done.stdout.startswith(f"{directory}: no space to write (File too large; ")
    assert "GB more are needed" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not list(directory.rglob(".*.tmp"))
    assert list((directory / "parts").iterdir())
    assert not (directory / "manifest.json").exists()
    again = prepare(*sections)
    assert not again.store_cached and again.store_dir
    assert Store.open(again.store_dir).manifest.num_documents == 101
    other, tokenizer = recipe(source, {"store_dir": str(tmp_path / "fresh")})
    assert hash_shards(again.store_dir) == hash_shards(prepare_store(other, tokenizer))


def test_a_store_that_cannot_be_made_is_one_error(tmp_path: Path, recipe):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=rf"{tmp_path}/file.*cannot be written to"):
        prepare(*recipe(source, {"store_dir": str(tmp_path / "file" / "stores")}))


def test_place_copy_replaces_and_temporaries_are_removed(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    place_copy(one, two)
    assert (two.read_text(), os.stat(two).st_ino) == ("1", os.stat(one).st_ino)
    with pytest.raises(FileNotFoundError):
        place_copy(tmp_path / "missing", two)
    (tmp_path / ".x.1.tmp").write_text("")
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
