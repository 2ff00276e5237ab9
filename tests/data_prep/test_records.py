import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.records import BadRecord, Record, Span, read_records


def read(path: Path, format: str, start: int = 0, end: int | None = None) -> list[Record | BadRecord]:
    return list(read_records(Span(str(path), format, start, end)))  # type: ignore[arg-type]


def values(records: list[Record | BadRecord]) -> list:
    assert all(isinstance(record, Record) for record in records), records
    return [record.value for record in records]  # type: ignore[union-attr]


def compress_zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zst}
GOOD = {
    "jsonl": (b'\xef\xbb\xbf{"text": "one"}\n\n{"text": "two\\u00e9"}', [{"text": "one"}, {"text": "twoé"}]),
    "json": (b'[{"text": "one"},\n {"text": "two"}]', [{"text": "one"}, {"text": "two"}]),
    "csv": (b'id,text\r\n1,"one, \nand"\r\n2,two\r\n', [{"id": "1", "text": "one, \nand"}, {"id": "2", "text": "two"}]),
    "tsv": (b"id\ttext\n1\tone, two\n", [{"id": "1", "text": "one, two"}]),
    "text": ("first\nsecond é\n".encode(), ["first\nsecond é\n"]),
    "lines": (b"first\n\nsecond\r\n", ["first", "second"]),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("format", GOOD)
def test_every_format_in_every_compression(tmp_path: Path, format: str, suffix: str):
    data, expected = GOOD[format]
    path = tmp_path / f"a.{format}{suffix}"
    path.write_bytes(COMPRESSORS[suffix](data))
    assert values(read(path, format)) == expected


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_file_cut_short_is_named(tmp_path: Path, suffix: str):
    lines = b"".join(b'{"text": "%d %d"}\n' % (i, i * 7919 % 1000) for i in range(20000))
    whole = COMPRESSORS[suffix](lines)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    *good, last = read(path, "jsonl")
    assert isinstance(last, BadRecord)
    assert "cannot be read" in last.reason or "JSON" in last.reason
    assert last.number >= len(good)


BAD = [
    ("jsonl", b'{"text": "one"}\n{"text": "tw\n{"text": "three"}\n', 2, "malformed JSON"),
    ("jsonl", b'{"text": "one"}\n{"text": "tw\xff"}\n', 2, "invalid UTF-8 at byte 12"),
    ("jsonl", b'{"text": "a\x00b"}\n', 1, "malformed JSON"),
    ("jsonl", b"", 1, "no record"),
    ("json", b'[{"text": "one"},\n{"text": }]', 2, "malformed JSON"),
    ("json", b"", 1, "no record"),
    ("json", b"[]", 1, "no record"),
    ("csv", b"id,text\n1,one\n2\n", 3, "as many fields"),
    ("csv", b"id,text\n1,one,more\n", 2, "as many fields"),
    ("csv", b"id,text\n1,\xff\n", 2, "invalid UTF-8"),
    ("text", b"first\nsec\xc3ond\n", 2, "invalid UTF-8 at byte 9"),
    ("lines", b"first\nsec\xc3ond\n", 2, "invalid UTF-8 at byte 3"),
    ("parquet", b"PAR1 no such thing", 1, "cannot be read"),
]


@pytest.mark.parametrize(("format", "data", "number", "reason"), BAD)
def test_bad_input_names_place_and_reason(tmp_path: Path, format: str, data: bytes, number: int, reason: str):
    path = tmp_path / f"a.{format}"
    path.write_bytes(data)
    bad = [record for record in read(path, format) if isinstance(record, BadRecord)]
    assert len(bad) == 1
    assert (bad[0].path, bad[0].number) == (str(path), number)
    assert reason in bad[0].reason
    assert "\n" not in str(bad[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12), min_size=1), st.data())
def test_byte_ranges_together_are_the_file(tmp_path_factory, lines: list[str], data: st.DataObject):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    size = path.stat().st_size
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=4))})
    whole = [(r.value, r.number) for r in read(path, "lines") if isinstance(r, Record)]
    parts = [r for start, end in zip(cuts, cuts[1:], strict=False) for r in read(path, "lines", start, end)]
    assert [(r.value, r.number) for r in parts if isinstance(r, Record)] == whole


def test_parquet_row_of_invalid_utf8_is_named(tmp_path: Path):
    broken = pa.array([b"good", b"b\xffd", b"fine"], pa.binary()).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": broken}), path)
    good, bad, fine = read(path, "parquet")
    assert values([good, fine]) == [{"text": "good"}, {"text": "fine"}]
    assert isinstance(bad, BadRecord)
    assert (bad.number, bad.reason) == (2, "invalid UTF-8 at byte 1")


def test_parquet_row_groups_number_their_rows_through(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(10)]}), path, row_group_size=4)
    assert [record.value["text"] for record in read(path, "parquet")] == [f"t{i}" for i in range(10)]  # type: ignore[union-attr]
    last = read(path, "parquet", 1, 3)
    assert [(record.value["text"], record.number) for record in last] == [(f"t{i}", i + 1) for i in range(4, 10)]  # type: ignore[union-attr]
