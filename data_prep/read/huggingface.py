"""Reads Hugging Face datasets: by name (`hf:NAME` or `hf:NAME:CONFIG`, with `hf_split`), saved on disk, or streamed.

By name: `datasets.load_dataset` downloads and converts the dataset once, and keeps Arrow files in its cache. These are
read like any other file, so fingerprints, errors and parts work as for files. NAME may also be a local directory that
`load_dataset` can read. A directory that `save_to_disk` wrote is recognised by its `state.json`.
With `max_documents`, only that many records are downloaded. They are streamed once and kept as JSONL in the same cache,
named by dataset, split and count, and are not downloaded again until that file is deleted. This does not apply offline
or to a local directory, where nothing is downloaded.
Streamed: nothing is kept, and a span is a range of the dataset's shards. Only the streaming mode uses this.

`datasets` is imported only when it is needed, because the import takes a second.
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
    """Find the files of a dataset by name; download and convert it if necessary. Raises UserError naming `key`."""
    from datasets import config  # imported here: takes 1 s

    path, split = section.path, section.hf_split
    to_download = not (config.HF_HUB_OFFLINE or Path(_split_name(path)[0]).exists())
    if to_download and section.max_documents is not None:
        return [_keep_head(path, split, key, section.max_documents, Path(config.HF_DATASETS_CACHE) / HEADS)]
    if to_download and section.max_tokens is not None:
        logger.info("%s: %s is downloaded completely, despite max_tokens; max_documents limits it", key, path)
    return [Path(file["filename"]) for file in _load(path, split, key).cache_files]


def _split_name(path: str) -> tuple[str, str | None]:
    name, _, config = path.removeprefix(HUB_PREFIX).partition(":")
    return name, config or None


def _keep_head(path: str, split: str, key: str, count: int, folder: Path) -> Path:
    """Keep the first records as JSONL. Values that JSON cannot express (bytes, images) become their Python str()."""
    target = folder / f"{quote(f'{path} {split} {count}', safe=' ')}.jsonl"
    if target.is_file():
        logger.info("%s: %s: its first %d records are in %s", key, path, count, target)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        head = islice(_load(path, split, key, streaming=True), count)
        lines = (orjson.dumps(drop_nulls(value), default=str) + b"\n" for value in head)
        write_atomically(target, lines, durable=False)
    except UserError:
        raise
    except Exception as error:  # from any client that the library uses
        raise UserError(
            f"{key}.path: {path}: the download was interrupted ({one_line(error)[:300]}): run again"
        ) from None
    logger.info("%s: %s: only its first %d records were downloaded, to %s", key, path, count, target)
    return target


def _load(path: str, split: str, key: str, **options: Any) -> Any:
    if not re.fullmatch(r"[\w.-]+", split):
        raise UserError(f"{key}.hf_split: {split!r} is not a plain split name: to read a part, set max_documents")
    from datasets import load_dataset  # imported here: takes 1 s

    try:
        return load_dataset(*_split_name(path), split=split, **options)
    except Exception as error:  # the library raises a dozen types; all mean the same to the user
        reason = one_line(error)[:300]
        raise UserError(
            f"{key}.path: {path}, split {split}, is neither in the cache of `datasets` nor available from the hub "
            f"({reason}): check the name, the configuration and hf_split of the source, or download it first"
        ) from None


def find_saved_files(directory: Path, split: str, key: str) -> list[Path] | None:
    """Find the Arrow files of a directory that `save_to_disk` wrote; None for any other. Raises UserError."""
    if (directory / SPLITS).is_file():
        if not (directory / split / STATE).is_file():
            names = ", ".join(_read(directory / SPLITS).get("splits", []))
            raise UserError(f"{key}.hf_split: {directory} has no split {split!r}; it has: {names}")
        directory = directory / split
    if not (directory / STATE).is_file():
        return None
    files = _read(directory / STATE).get("_data_files")
    return None if files is None else [directory / file["filename"] for file in files]


def _read(path: Path) -> dict[str, Any]:
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({one_line(error)}): save the dataset again") from None


def stream_path(path: str, split: str) -> str:
    """Return the path by which a span names a streamed dataset."""
    return f"{path}#{split}"


@lru_cache(maxsize=8)
def _open_stream(path: str) -> "IterableDataset":
    name, _, split = path.rpartition("#")
    return cast("IterableDataset", _load(name, split, "data.sources", streaming=True))


def count_shards(path: str) -> int:
    """Count the shards of a streamed dataset, the largest number of readers that can share it. Raises UserError."""
    return _open_stream(path).num_shards


def read_streamed(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the records of a range of shards. Raises UserError when the connection fails, which is not a bad record."""
    span = reading.span
    stream = _open_stream(span.path)
    end = stream.num_shards if span.end is None else span.end
    for shard in range(span.start, end):
        reading.unit, reading.number = f"shard {shard}, record", 0
        try:
            # Batches of one record: a plain `for` would divide the shard again among the workers of torch's DataLoader.
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
            reason = f"cannot be read; the rest of the shard is skipped ({type(error).__name__}: {one_line(error)})"
            yield reading.refuse(reason, reading.number + 1)
        except Exception as error:  # from any client that the library uses
            place = f"{span.path}, {reading.unit} {reading.number + 1}"
            raise UserError(
                f"{place}: the download was interrupted ({one_line(error)}): run again to continue"
            ) from None
