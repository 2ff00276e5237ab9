"""A full disk is told from other errors, whoever raises it."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints import disk
from training.checkpoints.disk import find_lack, is_disk_full

WRITERS = {
    "python": "Path(path).write_bytes(bytes(1 << 20))",
    "torch": "torch.save(torch.zeros(1 << 18), path)",
    "torch through a file": "with open(path, 'wb') as file: torch.save(torch.zeros(1 << 18), file)",
    "safetensors": "save_file({'w': torch.zeros(1 << 18)}, path)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_each_writer_s_error_is_known(tmp_path, writer):
    """A file may be 64 KiB here: the same errors as of a full disk, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(Exception) as found:
            exec(
                WRITERS[writer], {"Path": Path, "torch": torch, "save_file": save_file, "path": str(tmp_path / "file")}
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_disk_full(found.value), found.value


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("shape"), OSError("os error 13")])
def test_other_errors_are_not(error):
    assert not is_disk_full(error)


def test_room_is_seen_beforehand(tmp_path, monkeypatch):
    free = 10**9
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert find_lack(tmp_path, free - disk.RESERVE_BYTES) is None
    assert "1,000 MB are free in" in str(find_lack(tmp_path, free))
