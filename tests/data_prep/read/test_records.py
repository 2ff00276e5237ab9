import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.read import json_file
from data_prep.read.files import BLOCK_BYTES, Reading
from data_prep.read.lines import read_line_blocks
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord, Record, Span, read_records
from data_prep.store.results import _to_absolute, _to_relative


def read(path: Path, format: str, start: int = 0, end: int | None = None, **options) -> list[Record | BadRecord]:
    return list(read_records(Span(str(path), format, start, end), **options))  # type: ignore[arg-type]


def values(records: list[Record | BadRecord]) -> list:
    assert all(isinstance(record, Record) for record in records), records
    return [record.value for record in records]  # type: ignore[union-attr]


def explain(records: list[Record | BadRecord]) -> list:
    """Values of good records; unit, number and reason of bad ones."""
    return [r.value if isinstance(r, Record) else (r.unit, r.number, r.reason.partition(" (")[0]) for r in records]


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


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_tables_in_every_compression(tmp_path: Path, suffix: str):
    table = pa.table({"text": ["one", "two"]})
    pq.write_table(table, tmp_path / "b")
    with pa.ipc.new_stream(str(tmp_path / "c"), table.schema) as writer:
        writer.write_table(table)
    for name, format in (("b", "parquet"), ("c", "arrow")):
        path = tmp_path / f"a.{format}{suffix}"
        path.write_bytes(COMPRESSORS[suffix]((tmp_path / name).read_bytes()))
        assert values(read(path, format)) == [{"text": "one"}, {"text": "two"}]


def read_bytewise_zst(data: bytes) -> bytes:
    found = bytearray()
    with (
        pa.input_stream(pa.BufferReader(data), compression="zstd") as stream,
        pytest.raises(OSError, match="Truncated"),
    ):
        while True:
            found += stream.read(1)
    return bytes(found)


DECOMPRESSORS = {
    ".gz": lambda data: zlib.decompressobj(31).decompress(data),
    ".bz2": lambda data: bz2.BZ2Decompressor().decompress(data),
    ".xz": lambda data: lzma.LZMADecompressor().decompress(data),
    ".zst": read_bytewise_zst,
}


@pytest.mark.parametrize("suffix", DECOMPRESSORS)
def test_a_file_cut_short_is_named_and_read_up_to_there(tmp_path: Path, suffix: str):
    lines = b"".join(b'{"text": "%d %d"}\n' % (i, i * 7919 % 1000) for i in range(100_000))
    whole = COMPRESSORS[suffix](lines)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    *good, last = read(path, "jsonl")
    decoded = DECOMPRESSORS[suffix](path.read_bytes())
    assert len(decoded) > BLOCK_BYTES
    assert decoded[:-BLOCK_BYTES].count(b"\n") <= len(good) <= decoded.count(b"\n")
    assert isinstance(last, BadRecord)
    assert "cannot be read" in last.reason or "JSON" in last.reason
    assert last.number >= len(good)


BAD = [
    ("jsonl", b'{"text": "one"}\n{"text": "tw\n{"text": "three"}\n', 2, "malformed JSON"),
    ("jsonl", b'{"text": "one"}\n{"text": "tw\xff"}\n', 2, "invalid UTF-8 at byte 12"),
    ("jsonl", b'{"text": "a\x00b"}\n', 1, "a NUL at byte 11"),
    ("jsonl", b'{"text": "a"}\n\x00\n', 2, "a NUL at byte 0"),
    ("jsonl", b'{"text": NaN}\n', 1, "malformed JSON"),
    ("jsonl", b'{"text": "\\ud800"}\n', 1, "malformed JSON"),
    ("jsonl", b"", 1, "no record"),
    ("json", b'[{"text": "one"},\n{"text": }]', 2, "malformed JSON"),
    ("json", b"", 1, "no record"),
    ("json", b"[]", 1, "no record"),
    ("json", b'[{"text": "one"},\n{"text": "two"', 2, "never ends"),
    ("json", b'[{"text": "one"},\n{"text": "two"},\n', 3, "never ends"),
    ("json", b'[{"text": "one"}]\n]', 1, "more text after"),
    ("json", b'[{"text": "one"},\n]', 2, "malformed JSON"),
    ("json", b'{\n"text": }', 2, "malformed JSON"),
    ("csv", b"id,text\n1,one\n2\n", 3, "1 fields, but the header has 2"),
    ("csv", b"id,text\n1,one,more\n", 2, "3 fields, but the header has 2"),
    ("csv", b"text,id,text\n1,2,3\n", 1, "the header names 'text' more than once"),
    ("csv", b"id,text\n1,\xff\n", 2, "invalid UTF-8"),
    ("csv", b"id,text\n1,a\x00b\n", 2, "a NUL at byte 3"),
    ("csv", b'id,text\n1,one\n2,"two\n3,three\n', 3, "malformed CSV (the quote that opens here is never closed)"),
    ("csv", b'id,te"xt\n1,"one\n', 2, "the quote that opens here is never closed"),
    ("csv", b'id,text\n1,"one" or\n2,two\n', 2, "the quote that opens here is closed in the middle of a field"),
    ("csv", b'id,text\n"1\n",x"y,"z\n2,two\n', 2, "the quote that opens in line 3 is never closed"),
    ("csv", b"id,text\n1,o\rne\n2,two\n", 2, "new-line character seen in unquoted field"),
    ("tsv", b'id\ttext\n1\t"one\n2\ttwo\n', 2, "malformed TSV (the quote that opens here is never closed)"),
    ("csv", b"\xff,text\n1,one\n", 1, "invalid UTF-8"),
    ("text", b"first\nsec\xc3ond\n", 2, "invalid UTF-8 at byte 9"),
    ("lines", b"first\nsec\xc3ond\n", 2, "invalid UTF-8 at byte 3"),
    ("lines", b"first\nsec\x00ond\n", 2, "a NUL at byte 3"),
    ("text", b"first\n\x00", 2, "a NUL at byte 6"),
    ("text", "first".encode("utf-16-le"), 1, "a NUL at byte 1: binary data, or text that is not UTF-8"),
    ("text", b"", 1, "no record"),
    ("parquet", b"PAR1 no such thing", 1, "cannot be read"),
    ("parquet", b"", 1, "cannot be read"),
    ("arrow", b"no such thing", 1, "cannot be read"),
    ("arrow", b"", 1, "cannot be read"),
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
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=12), min_size=1), st.data())
def test_spans_of_lines_together_are_the_file(tmp_path_factory, lines: list[str], data: st.DataObject):
    path = tmp_path_factory.mktemp("ranges") / "a.txt"
    content = "\n".join(lines).encode()
    path.write_bytes(content)
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    drawn: list[int] = data.draw(st.lists(st.sampled_from(ends), max_size=4)) if ends else []
    cuts = sorted({0, len(content), *drawn})
    parts = [
        record
        for start, end in zip(cuts, cuts[1:], strict=False)
        for record in read_records(Span(str(path), "lines", start, end, content.count(b"\n", 0, start) + 1))
        if isinstance(record, Record)
    ]
    whole = [(r.value, r.number) for r in read(path, "lines") if isinstance(r, Record)]
    assert [(r.value, r.number) for r in parts] == whole
    first = lines[0].removeprefix("\ufeff")
    expected = [(line, i) for i, line in enumerate([first, *lines[1:]], 1) if line and not line.encode().isspace()]
    assert whole == expected


OVER_LONG = [
    ("jsonl", b'{"text": "one"}\n{"text": "%s"}\n\n{"text": "four"}', 2, [{"text": "one"}, {"text": "four"}]),
    ("lines", b"one\n%s\n\nfour", 2, ["one", "four"]),
    ("json", b'[{"text": "one"},\n{"text": "%s"}, {"text": "four"}]', 2, [{"text": "one"}, {"text": "four"}]),
    ("json", b'{"text": "%s"}', 1, []),
    ("csv", b"text\none\n%s\nfour\n", 3, [{"text": "one"}, {"text": "four"}]),
    ("csv", b'text\none\n"%s\n"\nfour\n', 3, [{"text": "one"}, {"text": "four"}]),
    ("text", b"%s", 1, []),
]


@pytest.mark.parametrize("size", [90, 500, 3_000_000])
@pytest.mark.parametrize(("format", "template", "number", "expected"), OVER_LONG)
def test_a_record_over_the_limit_is_named_and_reading_goes_on(
    tmp_path: Path, format: str, template: bytes, number: int, expected: list, size: int
):
    path = tmp_path / "a"
    path.write_bytes(template % (b"x" * size))
    records = read(path, format, max_record_bytes=90)
    good = [record.value for record in records if isinstance(record, Record)]
    bad = [record for record in records if isinstance(record, BadRecord)]
    if format in ("lines", "text") and size == 90:  # exactly the limit
        assert not bad
        return
    assert good[: len(expected)] == expected
    assert bad[0].number == number
    assert "larger than data.max_record_bytes (90 bytes): split it into documents, or raise the limit" in bad[0].reason
    assert bad[0].reason.endswith(", or set text_unit: line") == (format == "text")
    if format == "lines":
        assert f"a line of {'500 bytes' if size == 500 else '2.9 MiB'}" in bad[0].reason


def test_a_row_over_the_limit_is_named_in_parquet_and_arrow(tmp_path: Path):
    table = pa.table({"text": ["one", "x" * 500, "three"], "id": [1, 2, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for format in ("parquet", "arrow"):
        for column in (None, "text"):
            one, long, three = read(tmp_path / f"a.{format}", format, max_record_bytes=90, column=column)
            assert [record.value["text"] for record in (one, three)] == ["one", "three"]  # type: ignore[union-attr]
            assert isinstance(long, BadRecord)
            assert long.number == 2
            assert "larger than data.max_record_bytes" in long.reason


MEASURED = """
import resource, sys
from data_prep.read.records import Span, read_records
for path, format in zip(sys.argv[1::2], sys.argv[2::2]):
    for record in read_records(Span(path, format), 2**20):
        pass
    print(format, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_is_bounded_by_the_limit_not_by_the_file(tmp_path: Path):
    """Read an unterminated line, string or quoted field of 120 MB in every text format."""
    paths = {format: tmp_path / f"a.{format}" for format in ("lines", "jsonl", "json", "csv", "text")}
    heads = {"jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b'text\n"', "lines": b"", "text": b""}
    for format, path in paths.items():
        with open(path, "wb") as file:
            file.write(heads[format])
            if format == "csv":
                file.write((b"x" * (2**20 - 1) + b"\n") * 60)
            else:  # a hole in the file, which is read as NULs
                file.truncate(120 * 2**20)
    (tmp_path / "none").write_bytes(b"[1]")
    arguments = [str(item) for format, path in paths.items() for item in (path, format)]
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "none"), "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert max(peaks) - peaks[0] < 40_000  # KiB


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(['"', "\\", '\\"', "],[", "}{", "\n", "a,b"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4),
                                                                       children, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(JSON_VALUES, min_size=1), st.sampled_from([None, 0, 1]), st.booleans(), st.integers(1, 40))
def test_a_streamed_array_is_what_json_reads(tmp_path_factory, values_: list, indent, ascii_: bool, block: int):
    """Compare with the json module, for blocks of any size."""
    path = tmp_path_factory.mktemp("arrays") / "a.json"
    text = json.dumps(values_, indent=indent, ensure_ascii=ascii_)
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "read_blocks", lambda file: iter(lambda: file.read(block), b""))
        found = read(path, "json")
    assert values(found) == values_
    lines = text.split("\n")
    for record in found:
        line = int(record.unit.split()[1].rstrip(","))
        began = lines[line - 1].lstrip()[:1]
        assert began == ("[" if indent is None else json.dumps(record.value, ensure_ascii=ascii_)[:1])  # type: ignore[union-attr]


def test_rows_of_csv_are_numbered_by_their_first_line_behind_bad_ones_too(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,"x\ny"\n\xff,2\n3,4\n5\n"6\n7,\0\n8,9\n' + b"z" * 99 + b'\n\n10,"11"x\n12,13\n"14,15\n')
    found = read(path, "csv", max_record_bytes=90)
    assert [record.number for record in found if isinstance(record, Record)] == [2, 5, 9, 13]
    assert [record.number for record in found if isinstance(record, BadRecord)] == [4, 6, 7, 8, 10, 12, 14]


@pytest.mark.parametrize("fault", [b'2,"two', b'2,"two" x', b'2,"two\n\xff'])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_lost_quote_costs_its_row_and_no_other(tmp_path: Path, fault: bytes, suffix: str):
    """The quoted text spans many blocks, up to the end of the file or to the limit, after rows of many lines."""
    rows = [b'%d,"%s"' % (i, b"many\nlines, " * (i % 5)) if i % 7 == 0 else b"%d,plain" % i for i in range(60_000)]
    path = tmp_path / f"a.csv{suffix}"
    for begin in (3, 50_001):  # no quote follows the second one, so it ends at the end of the file or at a limit
        data = b"id,text\n" + b"\n".join(
            [*rows[:begin], fault, *(r for r in rows[begin:] if begin < 9 or b'"' not in r)]
        )
        path.write_bytes(COMPRESSORS[suffix](data))
        for limit in (2000, 2**20, 2**26):
            found = read(path, "csv", max_record_bytes=limit)
            bad = [record for record in found if isinstance(record, BadRecord)]
            assert len(bad) == 1 + fault.count(b"\n")
            assert bad[0].number == 2 + b"\n".join(rows[:begin]).count(b"\n") + (begin > 0)
            good = [record.value["id"] for record in found if isinstance(record, Record)]
            assert good == [str(i) for i in range(60_000) if i < begin or begin < 9 or i % 7]


def test_a_lost_quote_in_an_archive_that_is_cut_short_costs_no_row(tmp_path: Path):
    lines = [b'%d,"lost' % i if i == 100 else b"%d,%d" % (i, i * 7919 % 1000) for i in range(20_000)]
    path = tmp_path / "a.csv.gz"
    whole = gzip.compress(b"id,text\n" + b"\n".join(lines))
    path.write_bytes(whole[: len(whole) // 2])
    *found, last = read(path, "csv")
    assert len(found) > 5000
    assert [r.number for r in found] == list(range(2, len(found) + 2))
    assert [r.number for r in found if isinstance(r, BadRecord)] == [102]
    assert "the rest of the file is skipped" in last.reason  # type: ignore[union-attr]


def test_a_quoted_field_of_many_lines_up_to_the_limit(tmp_path: Path):
    path = tmp_path / "a.csv"
    text = 'a line, and a "quoted" one\n' * 40_000
    path.write_bytes(b'id,text\n1,"%s"\n2,two\n' % text.replace('"', '""').encode())
    assert values(read(path, "csv")) == [{"id": "1", "text": text}, {"id": "2", "text": "two"}]
    size = len(path.read_bytes()) - len(b"id,text\n2,two\n")
    assert len(values(read(path, "csv", max_record_bytes=size))) == 2
    for limit, hint in ((size - 1, False), (size // 2, True)):
        bad = read(path, "csv", max_record_bytes=limit)[0]
        assert isinstance(bad, BadRecord)
        assert (bad.number, "or close the quote that opens here" in bad.reason) == (2, hint)
    assert len(read(path, "csv", max_record_bytes=size - 1)) == 2


def test_lines_are_numbered_over_blocks_and_bad_ones(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"%d\n" % i if i % 7 else b"\n" for i in range(1, 5000)))
    found = read(path, "jsonl", max_record_bytes=16)
    assert [(r.value, r.number) for r in found if isinstance(r, Record)] == [(i, i) for i in range(1, 5000) if i % 7]
    blocks = list(read_line_blocks(Reading(Span(str(path), "jsonl"), limit=16)))
    assert len(blocks) > 1000


def test_parquet_row_of_invalid_utf8_is_named(tmp_path: Path):
    broken = pa.array([b"good", b"b\xffd", b"fine"], pa.binary()).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": broken}), path)
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), pa.schema({"text": pa.string()})) as writer:
        writer.write_table(pa.table({"text": broken}))
    for name, unit in (("a.parquet", "row group at byte 4, row"), ("a.arrow", "row")):
        for column in (None, "text"):
            good, bad, fine = read(tmp_path / name, name[2:], column=column)
            assert values([good, fine]) == [{"text": "good"}, {"text": "fine"}]
            assert isinstance(bad, BadRecord)
            reason = "invalid UTF-8 at byte 1 of 'text' (invalid start byte)"
            assert str(bad) == f"{tmp_path / name}, {unit} 2: {reason}"


def write_groups(path: Path, count: int = 10, size: int = 4) -> None:
    texts = [f"text number {i}" for i in range(count)]
    pq.write_table(pa.table({"text": texts, "id": list(range(count))}), path, row_group_size=size, compression="none",
                   use_dictionary=False, write_page_checksum=True)  # fmt: skip


def test_a_row_group_that_cannot_be_decoded_costs_its_rows_and_names_its_byte(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_groups(path)
    data = path.read_bytes()
    place = data.index(b"text number 5")
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    found = explain(read(path, "parquet", column="text"))
    offset = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    assert [item["text"] for item in found if isinstance(item, dict)] == [
        f"text number {i}" for i in (0, 1, 2, 3, 8, 9)
    ]
    bad = [item for item in found if not isinstance(item, dict)]
    assert [item[:2] for item in bad] == [(f"row group at byte {offset}, row", i) for i in (5, 6, 7, 8)]


def test_only_the_wanted_column_is_read_where_it_is_there(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_groups(path)
    assert values(read(path, "parquet", column="text"))[0] == {"text": "text number 0"}
    assert values(read(path, "parquet", column="body"))[0] == {"text": "text number 0", "id": 0}


def test_parquet_row_groups_number_their_rows_through(tmp_path: Path):
    path = tmp_path / "a.parquet"
    write_groups(path)
    assert [record.value["id"] for record in read(path, "parquet")] == list(range(10))  # type: ignore[union-attr]
    last = read(path, "parquet", 1, 3)
    assert [(record.value["id"], record.number) for record in last] == [(i, i + 1) for i in range(4, 10)]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_in_both_forms_by_record_batch(tmp_path: Path, kind: str):
    table = pa.table({"text": [f"t{i}" for i in range(10)], "id": list(range(10))})
    path = tmp_path / "a.arrow"
    with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    assert [(record.value["id"], record.number) for record in read(path, "arrow")] == [(i, i + 1) for i in range(10)]  # type: ignore[union-attr]
    found = [(r.value, r.number) for r in read(path, "arrow", 1, 2, column="text") if isinstance(r, Record)]
    assert found == [({"text": f"t{i}"}, i + 1) for i in range(4, 8)]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "arrow", "csv", "json", "text"])
def test_a_file_that_cannot_be_opened_is_a_bad_record_of_its_span(tmp_path: Path, format: str):
    """This includes spans that begin later in the file, because results save bad records relative to their span."""
    span = Span(str(tmp_path / "missing"), format, 5, 9, 40)  # type: ignore[arg-type]
    (bad,) = read_records(span)
    assert isinstance(bad, BadRecord)
    assert bad.number == 40
    part = Part(0, 0, (Span(span.path, span.format, 0, 5, 1), span))
    assert _to_absolute(_to_relative(bad, part), part) == bad


def test_nul_in_a_json_string_is_text(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\\u0000b"}\n')
    assert values(read(path, "jsonl")) == [{"text": "a\0b"}]
