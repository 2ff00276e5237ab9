"""Reads the records of files of every format, each with its place of origin.

A record that cannot be read is never dropped silently and never raises: it becomes a `BadRecord` that names the file,
the place and the reason. Memory is bounded by the largest record, up to `data.max_record_bytes`; a larger record is a
bad record. The modules `lines`, `json_file`, `csv_rows` and `tables` read the formats, `huggingface` datasets by name.
"""

from collections.abc import Iterator

from data_prep.options import MAX_RECORD_BYTES
from data_prep.read.csv_rows import read_csv
from data_prep.read.files import (
    COMPRESSIONS,
    READ_ERRORS,
    BadRecord,
    Format,
    Reading,
    Record,
    Span,
    one_line,
    open_binary,
)  # fmt: skip
from data_prep.read.huggingface import read_streamed
from data_prep.read.json_file import read_json
from data_prep.read.lines import read_corpus, read_jsonl, read_text, read_text_lines
from data_prep.read.nested_records import expand
from data_prep.read.tables import read_arrow, read_parquet

__all__ = ["COMPRESSIONS", "READ_ERRORS", "BadRecord", "Format", "Record", "Span", "open_binary", "read_records"]

_READERS = {
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "csv": read_csv,
    "tsv": read_csv,
    "text": read_text,
    "lines": read_text_lines,
    "corpus": read_corpus,
    "hf_stream": read_streamed,
}


def read_records(
    span: Span,
    max_record_bytes: int = MAX_RECORD_BYTES,
    column: str | None = None,
    *,
    records_key: str | None = None,
    delimiter: str | None = None,
) -> Iterator[Record | BadRecord]:
    """Read the records of one span, in order.

    column: the only key that is needed; formats that can skip the others do so.
    records_key, delimiter: as in the recipe.
    """
    reading = Reading(span, max_record_bytes, column, records_key, delimiter)
    records = _READERS[span.format](reading)
    if records_key and span.format == "jsonl":
        records = expand(records, tuple(records_key.split(".")))
    try:
        first = next(records, None)
        if first is not None:
            yield first
            yield from records
        elif span.start == 0:
            yield reading.refuse("the file contains no record", 1)
    except READ_ERRORS as error:
        reason = f"cannot be read; the rest of the file is skipped ({type(error).__name__}: {one_line(error)})"
        yield reading.refuse(reason, reading.number + 1)
