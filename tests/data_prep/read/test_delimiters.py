import csv
import gzip
import io
from pathlib import Path

import pytest

from data_prep.read.delimiters import sniff_delimiter
from data_prep.read.records import BadRecord, Record, Span, read_records

ROWS = [["prompt", "completion"], ['ask; "x", 1|2', "1,5\nand\t2"], ["b", "c"]]


def dump(delimiter: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(ROWS)
    return out.getvalue()


def read(path: Path, format: str = "csv", **options: str) -> list[Record | BadRecord]:
    return list(read_records(Span(str(path), format), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["csv", "tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("begin", ["", "\ufeff", "sep=%s\r\n"])
def test_fields_are_split_at_what_the_rows_say(tmp_path: Path, format: str, delimiter: str, begin: str):
    path = tmp_path / f"a.{format}"
    path.write_bytes((begin.replace("%s", delimiter) + dump(delimiter)).encode())
    assert sniff_delimiter(str(path), format) == delimiter
    found = read(path, format)
    assert [record.value for record in found if isinstance(record, Record)] == [
        dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]
    ]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("text;price\nhello, you;1,5\nbye, you;2,5\n", ";"),
        ("text\none, two\n", ","),
        ('text\n"one, two"\nthree; four\n', ","),
        ("a,b;c\n1,2\n3,4\n", ","),
        ("instruction;output\nq;a\n", ";"),
        ("text,note\n" + "x;y,z\n" * 3, ","),
    ],
)
def test_commas_within_texts_and_numbers_confuse_nothing(tmp_path: Path, text: str, delimiter: str):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert sniff_delimiter(str(tmp_path / "a.csv.gz"), "csv") == delimiter


def test_of_two_that_fit_it_is_that_of_the_suffix(tmp_path: Path):
    for format, delimiter in (("csv", ","), ("tsv", "\t")):
        (tmp_path / f"a.{format}").write_text("a,b\tc\n1,2\t3\n")
        assert sniff_delimiter(str(tmp_path / f"a.{format}"), format) == delimiter


def test_the_delimiter_of_the_recipe_comes_first(tmp_path: Path):
    (tmp_path / "a.csv").write_text("a^b\n1^2\n")
    [record] = read(tmp_path / "a.csv", delimiter="^")
    assert isinstance(record, Record) and record.value == {"a": "1", "b": "2"}
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    [record] = read(tmp_path / "b.csv", delimiter=";")
    assert isinstance(record, BadRecord) and "contains commas, but splitting there gives uneven rows" in record.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("prompt\tcompletion\n".encode("utf-16"), "UTF-16, which Excel writes as Unicode text: save it as UTF-8"),
        (b"What is a cat?,An animal.\nWhat is a dog?,An animal.\n", "the first row looks like data"),
        (b"The cat sat on the mat\nThe dog sat\n", "the first row looks like data"),
        (b"a;b\n1;2;3\n1\n", "the header 'a;b' contains semicolons, but splitting there gives uneven rows"),
    ],
)
def test_what_is_no_table_with_a_header_is_refused(tmp_path: Path, data: bytes, reason: str):
    (tmp_path / "a.csv").write_bytes(data)
    first, *_ = read(tmp_path / "a.csv")
    assert isinstance(first, BadRecord) and first.number == 1
    assert first.reason.startswith(reason)
