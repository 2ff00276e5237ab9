"""Reads rows of Parquet or Arrow IPC files as records.

Parquet is read page by page, Arrow through a memory map, and both become Python objects a few MB at a time. If only
one column of texts is needed, the others are not read.
Structs have the keys of all rows, with null for keys that a row does not have. So null keys of structs are dropped, at
any depth. Maps become objects; binary columns that contain UTF-8 become texts.
The place of a Parquet row is the byte at which its row group begins and the number of the row in the file. If a row
group cannot be decoded, each of its remaining rows is a bad record, so that counts stay exact; reading continues with
the next row group.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.read.files import (
    BLOCK_BYTES,
    COMPRESSIONS,
    READ_ERRORS,
    BadRecord,
    Reading,
    Record,
    one_line,
    open_binary,
)  # fmt: skip

ROWS_AT_A_TIME = 1024
BYTES_AT_A_TIME = 8 * 2**20
ARROW_FILE_MAGIC = b"ARROW1"
CONVERSION_ERRORS = (ValueError, KeyError, OverflowError, pa.ArrowException)
# Faults in the footer for which Arrow raises when it reads, but aborts the process when their metadata is requested.
ABORTING_FAULTS = ("histogram", "ColumnMetaData", "data bytes")


def read_parquet(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the rows of the span's row groups."""
    reading.unit = "row"
    span = reading.span
    with ExitStack() as stack:
        raw: Any = stack.enter_context(open_binary(span.path))
        if Path(span.path).suffix.lower() in COMPRESSIONS:  # the footer is at the end, so reading needs a seekable file
            whole = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(raw, whole, BLOCK_BYTES)
            raw = whole
        file = pq.ParquetFile(raw, buffer_size=BLOCK_BYTES, page_checksum_verification=True)
        rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows:
            raise pa.ArrowInvalid("the footer contradicts itself on the number of rows")
        columns = find_columns(file.schema_arrow.names, reading.column)
        end = file.num_row_groups if span.end is None else span.end
        reading.number = sum(rows[: span.start])
        for group in range(span.start, end):
            yield from _read_row_group(file, group, columns, reading)


def _read_row_group(
    file: pq.ParquetFile, group: int, columns: list[str] | None, reading: Reading
) -> Iterator[Record | BadRecord]:
    about = file.metadata.row_group(group)
    last = reading.number + about.num_rows
    batch_rows = min(ROWS_AT_A_TIME, max(1, BYTES_AT_A_TIME * about.num_rows // max(1, about.total_byte_size)))
    fault = "the footer counts this row, but the data does not contain it"
    reading.unit = f"row group {group + 1}, row"
    try:
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
            reading.unit = _name_rows(file, group, columns)
            yield from _read_batch(batch, reading)
    except READ_ERRORS as error:
        fault = f"the row group cannot be decoded from here on ({type(error).__name__}: {one_line(error)})"
        if not any(words in fault for words in ABORTING_FAULTS):
            reading.unit = _name_rows(file, group, columns)
    while reading.number < last:
        reading.number += 1
        yield reading.refuse(fault)


def _name_rows(file: pq.ParquetFile, group: int, columns: list[str] | None) -> str:
    """Name a row group by the byte at which it, or the column that is read, begins.

    Safe only after Arrow has accepted the metadata of the row group.
    """
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    read = next((i for i, path in enumerate(paths) if columns and f"{path}.".startswith(f"{columns[0]}.")), 0)
    chunk = file.metadata.row_group(group).column(read)
    return f"row group at byte {chunk.dictionary_page_offset or chunk.data_page_offset}, row"


def read_arrow(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the rows of an Arrow IPC stream (which `datasets` caches and saves) or file."""
    reading.unit = "row"
    span = reading.span
    with ExitStack() as stack:
        compressed = Path(span.path).suffix.lower() in COMPRESSIONS
        raw = stack.enter_context(cast(Any, open_binary(span.path) if compressed else pa.memory_map(span.path)))
        reading.number = 0
        for index, batch in enumerate(open_arrow(raw, compressed)):
            if span.end is not None and index >= span.end:
                return
            if index < span.start:
                reading.number += batch.num_rows
                continue
            if columns := find_columns(batch.schema.names, reading.column):
                batch = batch.select(columns)
            size = max(1, batch.get_total_buffer_size())
            rows = min(ROWS_AT_A_TIME, max(1, BYTES_AT_A_TIME * batch.num_rows // size))
            for start in range(0, batch.num_rows, rows):
                yield from _read_batch(batch.slice(start, rows), reading)


def open_arrow(raw: Any, compressed: bool = False) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an IPC stream or, if `raw` can seek, of an IPC file."""
    if compressed or raw.read_at(len(ARROW_FILE_MAGIC), 0) != ARROW_FILE_MAGIC:
        yield from pa.ipc.open_stream(raw)
        return
    file = pa.ipc.open_file(raw)
    for index in range(file.num_record_batches):
        yield file.get_batch(index)


def find_columns(names: list[str], key: str | None) -> list[str] | None:
    """Return the column of a key, or of the first name of a dotted key; None if all columns must be read."""
    if not key:
        return None
    if key in names:
        return [key]
    head = key.partition(".")[0]
    return [head] if head in names else None


def drop_nulls(value: Any) -> Any:
    """Drop null keys of objects, at any depth. Nulls in lists stay, because positions matter there."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def to_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Convert rows to dicts with all columns; objects in them lose their null keys."""
    rows = _decode_texts(batch).to_pylist(maps_as_pydicts="strict")
    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    for row in rows if nested else ():
        row.update({name: drop_nulls(row[name]) for name in nested})
    return rows


def _decode_texts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert binary columns that contain UTF-8 to texts."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            try:
                decoded = batch.column(index).cast(pa.large_string())
            except pa.ArrowInvalid:
                continue
            batch = batch.set_column(index, field.name, decoded)
    return batch


def _read_batch(batch: pa.RecordBatch, reading: Reading) -> Iterator[Record | BadRecord]:
    path, unit = reading.span.path, reading.unit
    values = _convert(batch, reading.limit)
    for row in range(batch.num_rows):
        reading.number += 1
        if values is None:
            yield _convert_row(batch.slice(row, 1), reading)
        else:
            yield Record(values[row], path, unit, reading.number)


def _convert(batch: pa.RecordBatch, limit: int) -> list[dict[str, Any]] | None:
    """Convert rows to dicts; None if one of them may be damaged or over the limit.

    The batch is validated first, because the offsets of a damaged batch can point outside of the file. A single column
    of texts has its own path, which takes half the time.
    """
    try:
        batch.validate(full=True)
        if batch.nbytes > limit:
            return None
        if batch.num_columns == 1 and pa.types.is_string(batch.schema.field(0).type):
            name, texts = batch.schema.names[0], batch.column(0).to_numpy(zero_copy_only=False)
            return [{name: text} for text in texts.tolist()]
        return to_rows(batch)
    except CONVERSION_ERRORS:
        return None


def _convert_row(row: pa.RecordBatch, reading: Reading) -> Record | BadRecord:
    try:
        row.validate(full=True)
        if row.nbytes > reading.limit:
            return reading.refuse(reading.explain_size("a row", row.nbytes))
        return Record(to_rows(row)[0], reading.span.path, reading.unit, reading.number)
    except CONVERSION_ERRORS as error:
        return reading.refuse(_explain_row(row, error))


def _explain_row(row: pa.RecordBatch, error: Exception) -> str:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        if pa.types.is_string(column.type) and column.null_count == 0:
            data = column.view(pa.binary())
            try:
                data.validate(full=True)  # an offset may point outside of the file
                data[0].as_py().decode()
            except UnicodeDecodeError as fault:
                return f"invalid UTF-8 at byte {fault.start} of {name!r} ({fault.reason})"
            except pa.ArrowException:
                continue
    return f"cannot be decoded ({type(error).__name__}: {one_line(error)})"
