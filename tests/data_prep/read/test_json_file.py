import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.options import SourceSection
from data_prep.read import json_file, json_outline
from data_prep.read.listing import guess_format
from data_prep.read.records import BadRecord, Record, Span, read_records
from data_prep.read.sources import find_inputs

ROWS = [{"instruction": f"q{i}", "output": '} ] "a'} for i in range(3)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
QAS = [{"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}]}, {"id": "2", "question": "r"}]
SQUAD = {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": QAS}]}]}
FLAT = [{"title": "t", "context": "c", **qa} for qa in QAS]


def read(path: Path, key: str | None = None, limit: int = 2**20) -> list[Record | BadRecord]:
    return list(read_records(Span(str(path), "json"), limit, records_key=key))


def write(path: Path, value: Any, indent: int | None) -> Path:
    data = json.dumps(value, indent=indent).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


OPENED = [
    ({"version": "1.0", "data": ROWS}, None, ROWS),
    ({"n": 1, "result": {"items": ROWS, "tags": ["x"]}}, None, ROWS),
    ({"train": ROWS, "test": ROWS[:1]}, "test", ROWS[:1]),
    ({"a.b": ROWS, "c": ROWS[:1]}, "a.b", ROWS),
    ({"x": {"train": ROWS, "test": []}}, "x.train", ROWS),
    ({"x": 1, "by_id": {"a": ROWS[0], "b": ROWS[1]}}, "by_id", ROWS[:2]),
    ({"a1": ROWS[0], "a2": ROWS[1]}, None, ROWS[:2]),
    (SQUAD, None, FLAT),
    (SQUAD["data"], None, FLAT),
    (SQUAD, "data.paragraphs.qas", FLAT),
    ({"features": [{"name": "x"}], "rows": [{"row_idx": 0, "row": ROWS[0], "truncated_cells": []}]}, None, ROWS[:1]),
    ({"conversations": [{"id": 1, "conversations": TURNS}]}, None, [{"id": 1, "conversations": TURNS}]),
]
WHOLE = [
    ROWS[0],
    {"text": "t", "spans": [{"start": 1}]},
    {"messages": TURNS, "tools": [{"name": "f"}]},
    {"id": "1", "data": ["q", "a"]},
    {"chosen": [TURNS[1]], "rejected": [TURNS[1]]},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(("value", "key", "rows"), [*OPENED, *((value, None, [value]) for value in WHOLE)])
def test_records_are_taken_from_where_they_surely_lie(tmp_path: Path, value: Any, key: str | None, rows, indent):
    for name in ("a.json", "a.json.gz"):
        found = read(write(tmp_path / name, value, indent), key)
        assert [record.value if isinstance(record, Record) else record for record in found] == rows


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (
            {"train": ROWS, "test": ROWS},
            None,
            "lists of objects under train, test: choose one by records_key: train",
        ),
        ({"x": {"train": ROWS, "test": ROWS}}, None, "one object under x with lists of objects under train, test"),
        ({"data": ROWS}, "rows", "records_key: no records under 'rows' (found: data)"),
        ({"data": 3}, "data", "records_key: no records under 'data'"),
        ({"text": ["a", "b"], "n": [1, 2]}, None, "one object of lists (text, n): these are columns, not records"),
        ({"text": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}, None, "one object of objects (text, n): these are col"),
        ({"columns": ["a"], "index": [0], "data": [["x"]]}, None, "these are columns, not records"),
        ({"rows": [{"row_idx": 0, "row": {"text": "a"}, "truncated_cells": ["text"]}]}, None, "server truncated its"),
        ({"data": [{"x": 1}]}, "data.y", "records_key: no objects under 'y'"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_keys(tmp_path: Path, value: Any, key: str | None, reason: str):
    [found] = read(write(tmp_path / "a.json", value, None), key)
    assert isinstance(found, BadRecord)
    assert reason in found.reason


def test_a_key_leads_into_each_line_too(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "turns": {"rows": ROWS[i:]}}) + "\n" for i in range(2)) + "{}\n")
    *found, last = read_records(Span(str(path), "jsonl"), records_key="turns.rows")
    expected = [{"id": i, **row} for i in range(2) for row in ROWS[i:]]
    assert [record.value for record in found if isinstance(record, Record)] == expected
    assert isinstance(last, BadRecord) and (last.number, last.unit) == (3, "line")
    with pytest.raises(UserError, match=r"sources\.0\.delimiter: ';' applies to csv and tsv files only"):
        find_inputs([SourceSection.model_validate({"path": str(path), "delimiter": ";"})])
    (tmp_path / "b.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"sources\.0\.records_key: 'x' applies to json and jsonl files only"):
        find_inputs([SourceSection.model_validate({"path": str(tmp_path / "b.csv"), "records_key": "x"})])


def test_places_of_records_under_a_key(tmp_path: Path):
    found = read(write(tmp_path / "a.json", {"version": 1, "data": ROWS[:2]}, 1))
    assert [(r.unit, r.number) for r in found] == [("'data', line 4, record", 1), ("'data', line 8, record", 2)]
    (tmp_path / "b.json").write_text('{"data": [{"text": "a"}, {"text": }, {"text": "b"}, {"te')
    good, bad, other, last = read(tmp_path / "b.json")
    assert isinstance(bad, BadRecord) and bad.number == 2 and isinstance(good, Record) and isinstance(other, Record)
    assert isinstance(last, BadRecord) and "never ends" in last.reason


def test_a_file_far_over_the_limit_is_a_stream_of_records(tmp_path: Path):
    rows = [{"text": "word " * 50}] * 1000
    found = read(write(tmp_path / "a.json", {"about": "x", "data": rows}, None), limit=2048)
    assert [record.value for record in found if isinstance(record, Record)] == rows
    [one] = read(write(tmp_path / "b.json", {"text": "word " * 1000}, None), limit=2048)
    assert isinstance(one, BadRecord) and "larger than data.max_record_bytes" in one.reason


@pytest.mark.parametrize("size", [1, 2, 7])
def test_blocks_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    for module in (json_file, json_outline):
        monkeypatch.setattr(module, "read_blocks", lambda file: iter(lambda: file.read(size), b""))
    for value, key, rows in OPENED:
        assert [getattr(record, "value", record) for record in read(write(tmp_path / "a.json", value, 1), key)] == rows


@pytest.mark.parametrize("between", ["", "\n", " \n\n"])
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_one_after_the_other(tmp_path: Path, between: str, indent: int | None):
    path = tmp_path / "a.json"
    path.write_text(between.join(json.dumps(row, indent=indent) for row in ROWS) + between)
    assert [record.value for record in read(path) if isinstance(record, Record)] == ROWS
    assert len(read(path)) == 3
    path.write_text(path.read_text() + '{"text": "cut')
    assert isinstance(read(path)[-1], BadRecord)


def test_objects_with_commas_and_no_brackets_are_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text(",\n".join(map(json.dumps, ROWS)))
    [found] = read(tmp_path / "a.json")
    assert isinstance(found, BadRecord) and "without brackets" in found.reason


@pytest.mark.parametrize(
    ("name", "text", "format"),
    [
        ("a.json", "\n".join(map(json.dumps, ROWS)), "jsonl"),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), "json"),
        ("a.json", json.dumps(ROWS), "json"),
        ("a.jsonl", json.dumps(ROWS, indent=1), "json"),
        ("a.jsonl", json.dumps(ROWS), "json"),
        ("a.jsonl", json.dumps(ROWS[0], indent=1), "json"),
        ("a.jsonl", "[" + ",\n".join(map(json.dumps, ROWS)) + "]", "json"),
        ("a.jsonl", json.dumps(TURNS), "jsonl"),
        ("a.jsonl", "\n".join([json.dumps(TURNS)] * 2), "jsonl"),
        ("a.jsonl", '{"text": "cut\n{"text": "whole"}\n', "jsonl"),
        ("a.jsonl", "\ufeff\n" + "\n\n".join(map(json.dumps, ROWS)), "jsonl"),
        ("a.jsonl", "{\n{\n{\n", "jsonl"),
        ("a.jsonl", "", "jsonl"),
    ],
)
def test_lines_and_files_are_told_apart_by_their_first_lines(tmp_path: Path, name: str, text: str, format: str):
    (tmp_path / name).write_text(text)
    assert guess_format(str(tmp_path / name)) == format
