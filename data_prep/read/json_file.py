"""Reads `.json` files: an array of records, one object that contains the records, one record, or consecutive objects.

If a file is one object, a first pass in bounded memory finds the keys of its members and the start of each value. The
records under a key are read if there is no doubt: the object is not itself a record, and exactly one member is a list
of objects (or all members are objects, under their ids). Otherwise the file is refused, and the reason lists the keys
that `records_key` can name. Such a file is scanned twice (120 to 250 MB/s).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from data_prep.parse.known_columns import PAIRS, PREFERENCES, TEXT_COLUMNS, TURN_COLUMNS
from data_prep.parse.messages import find_turn_keys
from data_prep.read.files import BOM, BadRecord, Reading, Record, open_binary, read_blocks, read_whole
from data_prep.read.json_array import Frame, read_elements
from data_prep.read.json_outline import Member, Outline, outline_object, read_from
from data_prep.read.json_scan import split_elements, split_values
from data_prep.read.lines import find_json_fault
from data_prep.read.nested_records import expand

COLUMNS_ADVICE = "columns, not records (pandas writes records with orient='records', lines=True)"
SERVER_ROWS = {"rows", "features"}  # of the Hugging Face datasets server


@dataclass(frozen=True)
class _Choice:
    """Where the records of a file are.

    path: dotted keys that lead to the records.
    start: byte offset after the opening bracket; line: line of that bracket.
    is_object: the records are the values of an object, not the elements of an array.
    within: keys that lead to the records within each element.
    """

    path: str
    start: int
    line: int
    is_object: bool
    within: tuple[str, ...] = ()


def read_json(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the records of a `.json` file of any of these forms."""
    with open_binary(reading.span.path) as file:
        blocks = read_blocks(file)
        line, text, offset = 1, b"", 0
        for block in chain([file.read(len(BOM))], blocks):
            offset += len(block)
            block = block.removeprefix(BOM) if offset == len(block) else block
            text = block.lstrip()
            line += block.count(b"\n", 0, len(block) - len(text))
            if text:
                break
        offset -= len(text) - 1  # of the byte after the first bracket
        if text[:1] == b"[":
            within = tuple(reading.records_key.split(".")) if reading.records_key else ()
            records = read_elements(reading, split_elements(chain([text[1:]], blocks)), line)
            yield from expand(records, within)
            return
    if text[:1] == b"{":
        yield from _read_object(reading, offset, line)
    elif text:
        yield from _read_value(reading, line)


def _read_object(reading: Reading, offset: int, line: int) -> Iterator[Record | BadRecord]:
    found = _find_records(reading, offset, line, (), reading.records_key)
    if isinstance(found, BadRecord):
        yield found
    elif isinstance(found, _Choice):
        with open_binary(reading.span.path) as file:
            elements = split_elements(read_from(file, found.start))
            frame = Frame(found.path, found.is_object)
            yield from expand(read_elements(reading, elements, found.line, frame), found.within)
    elif found.next_byte in (b"{", b"["):
        with open_binary(reading.span.path) as file:
            values = _end_values(split_values(read_from(file, offset - 1)))
            yield from expand(read_elements(reading, values, line, Frame(in_row=True)), ())
    elif found.next_byte == b",":
        yield reading.refuse("objects separated by commas without brackets: put [ and ] around them", line)
    else:
        yield from _read_value(reading, line)


def _find_records(
    reading: Reading, offset: int, line: int, path: tuple[str, ...], wanted: str | None
) -> Outline | _Choice | BadRecord:
    """Find the records of an object whose content starts at byte `offset`.

    Returns where they are, the outline of the object if the object itself is read, or a bad record with the reason.
    path: keys that lead to the object; wanted: the rest of the recipe's `records_key` below `path`.
    """
    with open_binary(reading.span.path) as file:
        outline = outline_object(read_from(file, offset), offset, line)
    if wanted is None and not path and outline.next_byte in (b"{", b"["):
        return outline
    chosen = _choose(reading, outline, wanted)
    if isinstance(chosen, str):
        where = f" under {'.'.join(path)}" if path else ""
        return BadRecord(reading.span.path, "line", line, chosen.replace("{where}", where))
    if chosen is None:
        if outline.all_objects and outline.count > 1 and not wanted and not _is_record(reading, outline):
            return _Choice(".".join(path), offset, line, True)
        return outline
    below = (*path, chosen.key)
    rest = wanted.removeprefix(chosen.key).removeprefix(".") if wanted else ""
    start = chosen.start + 1
    if chosen.opens == b"[":
        return _Choice(".".join(below), start, chosen.line, False, tuple(rest.split(".")) if rest else ())
    found = _find_records(reading, start, chosen.line, below, rest or None)
    if isinstance(found, Outline):
        if wanted and not rest:
            return _Choice(".".join(below), start, chosen.line, True)
        return outline
    return found


def _choose(reading: Reading, outline: Outline, wanted: str | None) -> Member | str | None:
    """Return the member with the records, None if the object itself is read, or a reason to refuse the file."""
    lists = outline.find(lambda member: member.opens == b"[" and member.first == b"{")
    if wanted:
        return _take_wanted(outline, wanted, lists)
    if _is_record(reading, outline):
        return None
    keys = {member.key for member in outline.members}
    if keys >= SERVER_ROWS and "rows" in lists:
        lists = ["rows"]
    if len(lists) > 1:
        choices = " or ".join(f"records_key: {key}" for key in lists[:4])
        return f"one object{{where}} with lists of objects under {', '.join(lists[:8])}: choose one by {choices}"
    if lists:
        return next(member for member in outline.members if member.key == lists[0])
    plain = outline.find(lambda member: member.opens == b"[")
    if plain and len(plain) == len(outline.members) and outline.count > 1:
        return f"one object{{where}} of lists ({', '.join(plain[:8])}): these are {COLUMNS_ADVICE}"
    objects = [member for member in outline.members if member.opens == b"{"]
    if outline.all_objects and _are_columns(reading, objects):
        return f"one object{{where}} of objects ({', '.join(m.key for m in objects[:8])}): these are {COLUMNS_ADVICE}"
    return objects[0] if len(objects) == 1 else None


def _take_wanted(outline: Outline, wanted: str, lists: list[str]) -> Member | str:
    """Return the member that the first part of `records_key` names (a key may contain dots), or a reason to refuse."""
    fitting = [member for member in outline.members if f"{wanted}.".startswith(f"{member.key}.")]
    if fitting and fitting[0].opens in (b"[", b"{"):
        return max(fitting, key=lambda member: len(member.key))
    found = ", ".join(lists or outline.find(lambda member: True)[:8]) or "none"
    return f"records_key: no records{{where}} under {wanted!r} (found: {found})"


def _is_record(reading: Reading, outline: Outline) -> bool:
    """Whether the keys of an object show that it is a record: a text, a prompt with its answer, or turns."""
    opens = {member.key.casefold(): member for member in outline.members}
    if any(opens[name].opens == b'"' for name in TEXT_COLUMNS if name in opens):
        return True
    if any(one in opens and two in opens for one, two in (*PAIRS, *PREFERENCES)):
        return True
    turns = [opens[name] for name in TURN_COLUMNS if name in opens and opens[name].opens == b"["]
    if any(member.first == b'"' for member in turns):
        return True
    return any(find_turn_keys(_load_first(reading, member))[0] is not None for member in turns)


def _are_columns(reading: Reading, objects: list[Member]) -> bool:
    """Whether the first member shows that members are columns by row number ({"text": {"0": …, "1": …}})."""
    if not objects:
        return False
    with open_binary(reading.span.path) as file:
        rows = outline_object(read_from(file, objects[0].start + 1), objects[0].start + 1, objects[0].line)
    keys = [member.key for member in rows.members]
    return bool(keys) and keys == [str(number) for number in range(len(keys))]


def _load_first(reading: Reading, member: Member) -> Any:
    """Parse the first element of a list; None if that fails."""
    pieces: list[bytes] = []
    with open_binary(reading.span.path) as file:
        for piece, end in split_elements(read_from(file, member.start + 1)):
            pieces.append(piece)
            if end or sum(map(len, pieces)) > reading.limit:
                break
    try:
        return orjson.loads(b"".join(pieces))
    except orjson.JSONDecodeError:
        return None


def _end_values(values: Iterable[tuple[bytes, bool]]) -> Iterator[tuple[bytes, bytes]]:
    """Convert consecutive values to the form in which `split_elements` yields the elements of an array."""
    rest = b""
    for piece, is_whole in values:
        rest = b"" if is_whole else rest or piece.strip()[:1]
        yield piece, b"," if is_whole else b""
    if not rest:
        yield b"", b"]"


def _read_value(reading: Reading, line: int) -> Iterator[Record | BadRecord]:
    """Read the whole file as one record."""
    data, size = read_whole(reading)
    if size > reading.limit:
        yield reading.refuse(reading.explain_size("a record", size), line)
        return
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        yield reading.refuse(find_json_fault(data, error), error.lineno)
        return
    yield Record(value, reading.span.path, "line", line)
