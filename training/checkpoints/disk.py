"""Whether a disk is full, before a save or by an error in it."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# safetensors (Rust) and torch (C++) say it in words.
_NUMBER = re.compile(r"os error (\d+)")
_TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "unexpected pos", "file write failed")
RESERVE_BYTES = 16 << 20  # records, events and a report are written beside the checkpoints


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that no more can be written: disk, quota or file size."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        text = str(error)
        if (found := _NUMBER.search(text)) and int(found.group(1)) in FULL:
            return True
        if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_CANNOT_WRITE):
            return True
        error = error.__cause__ or error.__context__
    return False


def find_lack(directory: Path, needed_bytes: float) -> str | None:
    """What is wrong where a checkpoint of this size does not fit; None where it does."""
    free = shutil.disk_usage(directory).free
    if free >= needed_bytes + RESERVE_BYTES:
        return None
    return f"{free / 1e6:,.0f} MB are free in {directory}, a checkpoint takes about {needed_bytes / 1e6:,.0f} MB"
