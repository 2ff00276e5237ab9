"""Whether the weights of a model directory are whole, told from names, sizes and headers, before data is prepared.

A safetensors file is 8 bytes with the length of its header, the header (JSON: name -> dtype, shape, byte range), and
the tensors: a file that was cut short, or a pointer of Git LFS in its place, is seen without reading any tensor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.errors import UserError

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LFS_POINTER = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # the limit of the format itself


def check_weight_files(directory: Path) -> None:
    """Raises UserError that names the file that is missing or damaged."""
    index = next((directory / name for name in INDEX if (directory / name).is_file()), None)
    single = next((directory / name for name in SINGLE if (directory / name).is_file()), None)
    if single is not None:
        files = [single]
    elif index is not None:
        files = [directory / name for name in sorted(set(_read_index(index).values()))]
    else:
        raise UserError(f"model.path: {str(directory)!r} holds no weights (model.safetensors): fetch the whole model")
    for file in files:
        if not file.is_file():
            raise UserError(f"model.path: {file} is missing, which {index and index.name} names: fetch the whole model")
        _check_file(file)


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return dict(weight_map)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"model.path: {index} is damaged: fetch the model again") from None


def _check_file(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(max(8, len(LFS_POINTER)))
        if start.startswith(LFS_POINTER):
            raise UserError(f"model.path: {file} is a pointer of Git LFS, not the weights: run `git lfs pull` there")
        if file.suffix != ".safetensors":
            return
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > min(size, LONGEST_HEADER):
            raise UserError(f"model.path: {file} is damaged (no header of safetensors): fetch it again")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"model.path: {file} is damaged (its header is no JSON): fetch it again") from None
    if size != 8 + length + end:
        raise UserError(
            f"model.path: {file} has {size:,} bytes, its header says {8 + length + end:,}: cut short, fetch it again"
        )
