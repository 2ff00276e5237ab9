"""Files to records: one iterator for every format, each record with its place of origin.

Guarantees: what cannot be read becomes a `BadRecord` that names file, place and reason; it is never dropped in silence
and never raises. Memory is bounded by the largest record up to `data.max_record_bytes`; a larger one is a bad record.
How each format is read stands in `lines`, `json_file`, `csv_rows` and `tables`, and in `huggingface` for datasets by
name.
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
    """Records of one span, in order. With `column`, formats that can read it alone leave out the other keys;
    `records_key` and `delimiter` are those of the recipe."""
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
            yield reading.refuse("the file holds no record", 1)
    except READ_ERRORS as error:
        reason = f"cannot be read on from here, the rest of it is lost ({type(error).__name__}: {one_line(error)})"
        yield reading.refuse(reason, reading.number + 1)
