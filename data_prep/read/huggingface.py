"""Hugging Face datasets: by name (`hf:NAME` or `hf:NAME:CONFIG`, and `hf_split`), saved on disk, or streamed.

By name: `datasets.load_dataset` downloads and converts once and keeps Arrow files in its own cache; those are read as
any other file, so naming by content, errors and parts are as everywhere. NAME may be a local directory that
`load_dataset` understands. A directory that `save_to_disk` wrote is recognised by its `state.json`.
With `max_documents` nothing else is downloaded: so many records are streamed once and kept as JSONL in the same cache,
under the name, the split and their number. They stay what they are until that file is deleted. Not so offline, and for
a local directory, where there is nothing to download.
Streamed: nothing is kept; a span is a range of the dataset's shards. Used by the streaming mode alone.

`datasets` is imported only where one of these is asked for: it takes a second.
"""

import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import orjson
import pyarrow as pa

from data_prep.atomic_files import write_atomically
from data_prep.errors import UserError
from data_prep.options import HUB_PREFIX, SourceSection
from data_prep.read.files import BadRecord, Reading, Record, one_line
from data_prep.read.tables import drop_nulls

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger("redline.data")

HEADS = "redline-2"
STATE = "state.json"
SPLITS = "dataset_dict.json"


def find_cached_files(section: SourceSection, key: str) -> list[Path]:
    """Files of a dataset by name, downloaded and converted if need be. Raises UserError naming `key`."""
    from datasets import config  # only here: 1 s

    path, split = section.path, section.hf_split
    to_download = not (config.HF_HUB_OFFLINE or Path(_split_name(path)[0]).exists())
    if to_download and section.max_documents is not None:
        return [_keep_head(path, split, key, section.max_documents, Path(config.HF_DATASETS_CACHE) / HEADS)]
    if to_download and section.max_tokens is not None:
        logger.info("%s: %s is downloaded whole, max_tokens or not: with max_documents it would not be", key, path)
    return [Path(file["filename"]) for file in _load(path, split, key).cache_files]


def _split_name(path: str) -> tuple[str, str | None]:
    name, _, config = path.removeprefix(HUB_PREFIX).partition(":")
    return name, config or None


def _keep_head(path: str, split: str, key: str, count: int, folder: Path) -> Path:
    """The first records as JSONL. What JSON has no form for (bytes, images) is in it as Python shows it."""
    target = folder / f"{quote(f'{path} {split} {count}', safe=' ')}.jsonl"
    if target.is_file():
        logger.info("%s: %s: its first %d records are kept at %s", key, path, count, target)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        head = islice(_load(path, split, key, streaming=True), count)
        lines = (orjson.dumps(drop_nulls(value), default=str) + b"\n" for value in head)
        write_atomically(target, lines, durable=False)
    except UserError:
        raise
    except Exception as error:  # of whichever client the library uses
        raise UserError(f"{key}.path: {path}: the stream broke ({one_line(error)[:300]}): run again") from None
    logger.info("%s: %s: only its first %d records were downloaded, to %s", key, path, count, target)
    return target


def _load(path: str, split: str, key: str, **options: Any) -> Any:
    if not re.fullmatch(r"[\w.-]+", split):
        raise UserError(f"{key}.hf_split: {split!r} is no plain name of a split: take a part by max_documents")
    from datasets import load_dataset  # only here: 1 s

    try:
        return load_dataset(*_split_name(path), split=split, **options)
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
                    objects = {key: drop_nulls(item) for key, item in value.items()}
                    yield Record(objects, span.path, reading.unit, reading.number)
        except (ValueError, pa.ArrowException) as error:
            reason = f"cannot be read on from here, the rest of it is lost ({type(error).__name__}: {one_line(error)})"
            yield reading.refuse(reason, reading.number + 1)
        except Exception as error:  # of whichever client the library uses
            place = f"{span.path}, {reading.unit} {reading.number + 1}"
            raise UserError(f"{place}: the stream broke ({one_line(error)}): run again to continue") from None
