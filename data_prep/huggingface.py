"""Hugging Face datasets: by name (`hf:NAME` or `hf:NAME:CONFIG`, and `hf_split`), saved on disk, or streamed.

By name: `datasets.load_dataset` downloads and converts once and keeps Arrow files in its own cache; those are read as
any other file, so naming by content, errors and parts are as everywhere. NAME may be a local directory that
`load_dataset` understands. A directory that `save_to_disk` wrote is recognised by its `state.json`.
Streamed: nothing is kept; a span is a range of the dataset's shards. Used by the streaming mode alone.

`datasets` is imported only where one of these is asked for: it takes a second.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
import pyarrow as pa

from data_prep.errors import UserError
from data_prep.files import BadRecord, Reading, Record, one_line

if TYPE_CHECKING:
    from datasets import IterableDataset

PREFIX = "hf:"
STATE = "state.json"
SPLITS = "dataset_dict.json"


def find_cached_files(path: str, split: str, key: str) -> list[Path]:
    """Arrow files of a dataset by name, downloaded and converted if need be. Raises UserError naming `key`."""
    dataset = _load(path, split, key)
    return [Path(file["filename"]) for file in dataset.cache_files]


def _load(path: str, split: str, key: str, **options: Any) -> Any:
    if not re.fullmatch(r"[\w.-]+", split):
        raise UserError(f"{key}.hf_split: {split!r} is no plain name of a split: take a part by max_documents")
    name, _, config = path.removeprefix(PREFIX).partition(":")
    from datasets import load_dataset  # only here: 1 s

    try:
        return load_dataset(name, config or None, split=split, **options)
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the user
        reason = one_line(error)[:300]
        raise UserError(
            f"{key}.path: {path}, split {split}, is neither in the cache of `datasets` nor to be had from the hub "
            f"({reason}): check the name, the configuration and data.sources hf_split, or download it first"
        ) from None


def find_saved_files(directory: Path, split: str, key: str) -> list[Path] | None:
    """Arrow files that `save_to_disk` wrote to a directory; None where it did not. Raises UserError."""
    if (directory / SPLITS).is_file():
        if not (directory / split / STATE).is_file():
            names = ", ".join(_read(directory / SPLITS).get("splits", []))
            raise UserError(f"{key}.hf_split: {directory} holds no split {split!r}, but: {names}")
        directory = directory / split
    if not (directory / STATE).is_file():
        return None
    files = _read(directory / STATE).get("_data_files")
    return None if files is None else [directory / file["filename"] for file in files]


def _read(path: Path) -> dict[str, Any]:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({one_line(error)}): save the dataset again") from None


def stream_path(path: str, split: str) -> str:
    """What stands for a streamed dataset in a span."""
    return f"{path}#{split}"


@lru_cache(maxsize=8)
def _open_stream(path: str) -> "IterableDataset":
    name, _, split = path.rpartition("#")
    return cast("IterableDataset", _load(name, split, "data.sources", streaming=True))


def count_shards(path: str) -> int:
    """Shards of a streamed dataset: how far it can be dealt out. Raises UserError."""
    return _open_stream(path).num_shards


def read_streamed(reading: Reading) -> Iterator[Record | BadRecord]:
    """Records of a range of shards. Raises UserError when the connection breaks: that is no fault of a record."""
    span = reading.span
    stream = _open_stream(span.path)
    end = stream.num_shards if span.end is None else span.end
    for shard in range(span.start, end):
        reading.unit, reading.number = f"shard {shard}, record", 0
        try:
            # One at a time, as batches: a plain `for` would deal the shard out again over torch's data workers.
            for batch in stream.shard(stream.num_shards, shard).iter(batch_size=1):
                value = {key: column[0] for key, column in batch.items()}
                reading.number += 1
                size = sum(len(item) for item in value.values() if isinstance(item, str))
                if size > reading.limit:
                    yield reading.refuse(reading.explain_size("a record", size))
                else:
                    yield Record(value, span.path, reading.unit, reading.number)
        except (ValueError, pa.ArrowException) as error:
            reason = f"cannot be read on from here ({type(error).__name__}: {one_line(error)})"
            yield reading.refuse(reason, reading.number + 1)
        except Exception as error:  # of whichever client the library uses
            place = f"{span.path}, {reading.unit} {reading.number + 1}"
            raise UserError(f"{place}: the stream broke ({one_line(error)}): run again to go on") from None
