"""Reads records that are nested in the elements of a list of a JSON file.

`records_key: data.paragraphs.qas` leads through lists. Each innermost object is a record; it also gets the texts and
numbers of the objects around it. Two forms need no `records_key`: SQuAD (`paragraphs` that contain `qas`), and the
`{"row_idx": …, "row": {…}}` of the Hugging Face datasets server.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.read.files import BadRecord, Record

SQUAD = ("paragraphs", "qas")


def expand(records: Iterable[Record | BadRecord], within: tuple[str, ...]) -> Iterator[Record | BadRecord]:
    """Replace each element by the records in it. An element that contains none is itself the record."""
    for record in records:
        if isinstance(record, BadRecord) or not isinstance(record.value, dict):
            yield record
            continue
        path = within or (SQUAD if _is_squad(record.value) else ())
        if path:
            yield from _expand_one(record, path)
        elif isinstance(row := record.value.get("row"), dict) and "row_idx" in record.value:
            yield _take_row(record, row)
        else:
            yield record


def _is_squad(value: dict[str, Any]) -> bool:
    inner = value.get(SQUAD[0])
    return isinstance(inner, list) and bool(inner) and isinstance(inner[0], dict) and SQUAD[1] in inner[0]


def _expand_one(record: Record, path: tuple[str, ...]) -> Iterator[Record | BadRecord]:
    unit = f"{record.unit} {record.number}, entry"
    try:
        for number, value in enumerate(_walk(record.value, path), 1):
            yield Record(value, record.path, unit, number)
    except KeyError as error:
        yield BadRecord(record.path, record.unit, record.number, f"records_key: no objects under {error.args[0]!r}")


def _walk(value: dict[str, Any], path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if not path:
        yield value
        return
    inner = value.get(path[0])
    beside = {key: item for key, item in value.items() if isinstance(item, str | int | float)}
    for item in inner if isinstance(inner, list) else [inner]:
        if not isinstance(item, dict):
            raise KeyError(path[0])
        yield from _walk({**beside, **item}, path[1:])


def _take_row(record: Record, row: dict[str, Any]) -> Record | BadRecord:
    if cut := record.value.get("truncated_cells"):
        reason = f"the datasets server truncated its cells {', '.join(map(str, cut))}: download the original files"
        return BadRecord(record.path, record.unit, record.number, reason)
    return Record(row, record.path, record.unit, record.number)
