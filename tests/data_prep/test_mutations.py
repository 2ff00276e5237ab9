"""Reads more than 10,000 damaged files: each record gives a result or a reason; nothing crashes, hangs or gets lost.

Other readers give the expected results: line counts, `json`, `csv`, and Python's decompressors.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.parse.kinds import RecordError, Shape, parse_record
from data_prep.read.records import BadRecord, Record, Span, read_records
from tests.data_prep.read.test_records import compress_zst
from tests.data_prep.render.test_documents import build

LIMIT = 2048
USER, ASSISTANT = {"role": "user", "content": "what \\ is é?"}, {"role": "assistant", "content": 'it "is" 你'}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a\nb"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2]}'}}
RECORDS: dict[str, list[Any]] = {
    "text": [{"text": f'line {i}, "quoted", [é] 你好\\ and\nmore', "id": i} for i in range(6)],
    "messages": [{"messages": [USER, ASSISTANT]}, {"messages": [USER, {**ASSISTANT, "tool_calls": [CALL]}]}] * 2,
    "sharegpt": [{"conversations": TURNS, "system": "s", "tools": "[]"}] * 3,
    "alpaca": [{"instruction": "q", "input": "", "output": "a", "history": [["q", "a"]]}] * 3,
    "prompt_completion": [{"prompt": "q", "completion": "a"}, {"prompt": [USER], "completion": [ASSISTANT]}],
    "preference": [{"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1]},
                   {"prompt": "q", "chosen": "a", "rejected": [ASSISTANT]}],
}  # fmt: skip
SPICE = [b"\0", b"\xff", b"\n", b"\r", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\xef\xbb\xbf", b"NaN",
         b'\\ud800"']  # fmt: skip


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory if possible, because 10,000 small files take 10 s on a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Damage a file in one to three places."""
    for _ in range(random_.choice([1, 1, 2, 3])):
        at = random_.randrange(len(data) + 1)
        end = min(len(data), at + random_.choice([1, 1, 3, 30]))
        match random_.randrange(7):
            case 0:
                data = data[:at] + bytes([random_.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at] + random_.choice(SPICE) + data[at:]
            case 4:
                data = data[:at] + data[at:end] * 2 + data[end:]
            case 5:
                data = data[:at] + random_.randbytes(end - at) + data[end:]
            case _:
                data = data[:at] + random_.choice([b"x", b"\0", b"\\", b"\n", b"["]) * 2 * LIMIT + data[at:]
    return data


def mutants(data: bytes, count: int, seed: str) -> Iterator[bytes]:
    random_ = random.Random(seed)
    for _ in range(count):
        yield mutate(data, random_)


def read(path: Path, format: str, shape: Shape, column: str | None = None) -> tuple[list[Record], list[BadRecord]]:
    """Read and parse a file; return good and bad records, and check that each reason is one line."""
    good, bad = [], []
    for record in read_records(Span(str(path), format), LIMIT, column):  # type: ignore[arg-type]
        if isinstance(record, Record):
            good.append(record)
            try:
                assert parse_record(record.value, shape)
            except RecordError as error:
                assert str(error)
        else:
            bad.append(record)
            assert record.reason
            assert "\n" not in str(record)
            assert record.number >= 1
    assert good or bad
    return good, bad


def refuse_constant(text: str) -> None:
    raise ValueError(text)


def load(data: bytes | str) -> Any:
    """Parse with the json module, without NaN and infinities."""
    return json.loads(data, parse_constant=refuse_constant)


def is_plain(data: bytes) -> bool:
    """Whether json and orjson agree on a value: no lone surrogates, large numbers, BOM or deep nesting."""
    return not re.search(rb"\\u[dD][89a-fA-F]|\d{15}|[eE][-+]?\d\d\d|\xef\xbb\xbf|\[{500}|-0", data)


def check_jsonl(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    lines = {i: line for i, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if line.strip()}
    assert sorted(record.number for record in [*good, *bad]) == (list(lines) or [1])
    refused = {record.number for record in bad}
    for record in good:
        assert not is_plain(lines[record.number]) or load(lines[record.number]) == record.value
    for number, line in lines.items():
        if number in refused and is_plain(line) and len(line) <= LIMIT:
            with pytest.raises(ValueError):
                load(line.decode())


def check_lines(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    numbers = [i for i, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1) if line.strip()]
    assert sorted(record.number for record in [*good, *bad]) == (numbers or [1])


def check_text(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    assert len(good) + len(bad) == 1
    assert not good or good[0].value.encode() == data.removeprefix(b"\xef\xbb\xbf")


def check_json(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        expected = load(data.decode())
    except (ValueError, RecursionError):
        assert bad or not is_plain(data)
        return
    values = expected if isinstance(expected, list) else [expected]
    if not is_plain(data) or len(data) > LIMIT:
        return
    assert [record.value for record in good] == values
    assert len(bad) == (not values)


def check_csv(data: bytes, good: list[Record], bad: list[BadRecord], delimiter: str = ",") -> None:
    """Check that each line belongs to a row or is refused.

    Compares with a reader that works character by character, and with the csv module if it accepts the whole file.
    """
    expected, refused = parse_csv(data.removeprefix(b"\xef\xbb\xbf"), delimiter)
    assert [(record.number, record.value) for record in good] == expected
    assert [record.number for record in bad] == (refused or [1] * (not expected))
    try:
        text = data.decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (ValueError, csv.Error):
        assert bad
        return
    rows = [row for row in rows if row]
    if "\0" in text or len(data) > LIMIT or "\r" in text:  # a lone CR ends a line for StringIO
        return
    if rows and not is_header(rows[0]):
        return
    assert len(good) + len(bad) == max(1, len(rows) - 1)
    values = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if len(row) == len(rows[0])]
    assert [record.value for record in good] == values


def parse_csv(data: bytes, delimiter: str) -> tuple[list[tuple[int, Any]], list[int]]:
    """Parse rows; return their numbers and values, and the numbers of refused rows."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    good, refused, header, at = [], [], None, 0
    while at < len(lines):
        row, behind = parse_row(lines, at, delimiter)
        if row is None or (header and row and len(row) != len(header)):
            refused.append(at + 1)
        elif header and row:
            good.append((at + 1, dict(zip(header, row, strict=True))))
        if not header and row and not is_header(row):
            return [], [at + 1]
        header = header or row
        if not header and refused:
            break
        at = behind
    return good, refused


def is_header(row: list[str]) -> bool:
    """Whether names are a valid header: they are unique, and do not look like a row of data."""
    if len(set(row)) < len(row):
        return False
    ends = (".", "?", "!", "。", "？", "！")
    return not any(len(name) > 80 or name.count(" ") > 4 or name.rstrip().endswith(ends) for name in row)


def parse_row(lines: list[bytes], at: int, delimiter: str) -> tuple[list[str] | None, int]:
    """Parse the row that begins with a line; return its fields (None if it is malformed) and the next line."""
    fields, state, opened, size = [""], "begin", at, 0
    for number in range(at, len(lines)):
        try:
            line = lines[number].decode() + "\n"
        except UnicodeDecodeError:
            line = "\0"
        size += len(line)
        if "\0" in line or len(lines[number]) > LIMIT or len(line) > LIMIT:
            return None, (opened if number > at else at) + 1
        if not line.strip("\r\n") and number == at:
            return [], at + 1
        for place, character in enumerate(line):
            if state == "begin" and character == '"':
                state, opened = "quoted", number
            elif state == "quoted":
                state = "closed" if character == '"' else state
                fields[-1] += character if character != '"' else ""
            elif state == "closed" and character == '"':
                state = "quoted"
                fields[-1] += '"'
            elif character == delimiter:
                state = "begin"
                fields.append("")
            elif not line[place:].strip("\r\n"):
                return (fields if size <= LIMIT else None), number + 1
            elif character == "\r" or state == "closed":
                return None, (opened if state == "closed" else number) + 1
            else:
                state = "plain"
                fields[-1] += character
        if size > LIMIT:
            break
    return None, opened + 1


def check_parquet(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        assert bad
        return
    assert len(good) + len(bad) == max(rows, 1) or any("cannot be read" in record.reason for record in bad)


def check_arrow(data: bytes, good: list[Record], bad: list[BadRecord]) -> None:
    try:
        rows = sum(batch.num_rows for batch in pa.ipc.open_stream(data))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        assert bad
        return
    assert len(good) + len(bad) == max(rows, 1) or any("cannot be read" in record.reason for record in bad)


def dump_lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, record in enumerate(records))


def dump_csv(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["text", "id", "note"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, "note": record["text"][::-1]} for record in RECORDS["text"])
    return out.getvalue().encode()


def dump_parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS["text"]), sink, row_group_size=2, **options)
    return sink.getvalue()


def dump_arrow() -> bytes:
    table = pa.Table.from_pylist(RECORDS["text"])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


PLAIN = "\n".join(record["text"] for record in RECORDS["text"]).encode()
Check = Callable[[bytes, list[Record], list[BadRecord]], None]
CASES: list[tuple[str, str, str, bytes, int, Check]] = [  # name, format, kind, file, mutants, reference
    *[(f"jsonl-{kind}", "jsonl", kind, dump_lines(records), 500, check_jsonl) for kind, records in RECORDS.items()],
    ("lines", "lines", "text", PLAIN, 700, check_lines),
    ("text", "text", "text", PLAIN, 400, check_text),
    ("json", "json", "text", json.dumps(RECORDS["text"]).encode(), 1000, check_json),
    ("json-indented", "json", "messages", json.dumps(RECORDS["messages"], indent=1).encode(), 1000, check_json),
    ("json-single", "json", "text", json.dumps(RECORDS["text"][0]).encode(), 300, check_json),
    ("csv", "csv", "text", dump_csv(","), 1400, check_csv),
    ("tsv", "tsv", "text", dump_csv("\t"), 700, lambda *found: check_csv(*found, delimiter="\t")),
    ("parquet", "parquet", "text", dump_parquet(), 900, check_parquet),
    ("parquet-checksums", "parquet", "text", dump_parquet(write_page_checksum=True), 300, check_parquet),
    ("arrow", "arrow", "text", dump_arrow(), 1000, check_arrow),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "format", "kind", "data", "count", "check"), CASES, ids=[case[0] for case in CASES])
def test_every_record_of_a_damaged_file_is_given_or_refused(
    scratch: Path, name: str, format: str, kind: Any, data: bytes, count: int, check: Check
):
    path = scratch / "a"
    shape = Shape(kind, "text" if kind == "text" else None)
    refused = 0
    for number, mutant in enumerate(mutants(data, count, name)):
        path.write_bytes(mutant)
        good, bad = read(path, format, shape, "text" if number % 2 and kind == "text" and format != "csv" else None)
        check(mutant, good, bad)
        refused += bool(bad)
    assert refused > count // 10


COMPRESSIONS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes] | None]] = {
    ".gz": (lambda data: gzip.compress(data, mtime=0), gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
    ".zst": (compress_zst, None),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_every_record_of_a_damaged_archive_is_given_or_refused(scratch: Path, suffix: str):
    compress, decompress = COMPRESSIONS[suffix]
    path = scratch / f"a.jsonl{suffix}"
    original = dump_lines(RECORDS["text"] * 3)
    for mutant in mutants(compress(original), 400, suffix):
        path.write_bytes(mutant)
        good, bad = read(path, "jsonl", Shape("text", "text"))
        if decompress is None:
            assert bad or len(good) == 18
            continue
        try:
            data = decompress(mutant)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
            assert bad
            continue
        if not any("cannot be read" in record.reason for record in bad):  # bz2 ignores garbage after its end
            check_jsonl(data, good, bad)


def test_there_are_enough():
    assert sum(case[4] for case in CASES) + 400 * len(COMPRESSIONS) >= 10_000


def count_lines(data: bytes) -> int:
    """Count the records of a file of lines: lines that are not blank, or the bad record of an empty file."""
    return max(1, sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")))


@pytest.mark.parametrize("kind", RECORDS)
def test_documents_in_are_documents_stored_and_documents_reported(tmp_path: Path, recipe, kind: str):
    """Build a store from damaged JSONL, CSV and TSV files, or text files, with several files per part."""
    folder = tmp_path / "in"
    folder.mkdir()
    whole = dump_lines(RECORDS[kind])
    (folder / "0.jsonl").write_bytes(whole)
    expected = len(RECORDS[kind])
    for number, mutant in enumerate(mutants(whole, 60, f"build {kind}")):
        (folder / f"{number + 1}.jsonl").write_bytes(mutant)
        expected += count_lines(mutant)
    for format, delimiter in (("csv", ","), ("tsv", "\t")) if kind == "text" else ():
        for number, mutant in enumerate(mutants(dump_csv(delimiter), 60, f"build {format}")):
            (folder / f"{number}.{format}").write_bytes(mutant)
            expected += max(1, sum(map(len, parse_csv(mutant.removeprefix(b"\xef\xbb\xbf"), delimiter))))
    check_build(recipe, folder, expected, kind=kind)
    if kind == "text":
        for number, mutant in enumerate(mutants(PLAIN, 60, "build")):
            (folder / f"{number}.txt").write_bytes(mutant)
        check_build(recipe, folder, 60, format="text")


def check_build(recipe: Any, folder: Path, expected: int, **source: str) -> None:
    options = {"on_bad_record": "skip", "max_bad_share": 1.0, "max_record_bytes": LIMIT}
    store = build(recipe(folder, options, **source))
    listed = [json.loads(line) for line in (store.path / "bad_records.jsonl").read_text().splitlines()]
    assert len(listed) == store.manifest.bad_records
    assert store.manifest.num_documents == sum(len(store.split(split)) for split in ("train", "validation"))
    assert store.manifest.num_documents + store.manifest.bad_records == expected
    assert all(Path(bad["path"]).parent == folder and bad["reason"] for bad in listed)
