"""Tests Parquet and Arrow columns from other programs; `test_records` and `test_mutations` test damaged files."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.options import SourceSection
from data_prep.parse.kinds import Conversation, find_shape, parse_record
from data_prep.read.records import Record, Span, read_records
from data_prep.read.sources import find_inputs
from data_prep.read.tables import drop_nulls

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [called]}


# Two records whose calls and tools have no key in common; a null in a list is data.
CHATS = [
    {"messages": [USER, call("f", city="Oslo"), ASSISTANT], "tools": [tool("f", city={"type": "string"})]},
    {"messages": [USER, call("g", to=["x", None], cc={"a": 1})], "tools": [tool("g", to={"items": {"type": "n"}})]},
]


def write_all(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "a.parquet")
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    [saved] = find_inputs([SourceSection.model_validate({"path": str(folder / "saved")})])[0].files
    return [(str(folder / "a.parquet"), "parquet"), (str(folder / "a.arrow"), "arrow"), (saved.path, saved.format)]


def read(path: Path | str, format: str = "parquet", **options: Any) -> list[Any]:
    found = list(read_records(Span(str(path), format), **options))  # type: ignore[arg-type]
    assert all(isinstance(record, Record) for record in found), found
    return [record.value for record in found]  # type: ignore[union-attr]


def test_a_null_key_of_an_object_is_an_absent_one_in_every_kind_of_table(tmp_path: Path):
    for path, format in write_all(tmp_path, CHATS):
        rows = read(path, format)
        assert rows == CHATS
        shape = find_shape(rows[0], "auto", None)
        parsed = [parse_record(row, shape) for row in rows]
        assert [chat.messages for chat in parsed if isinstance(chat, Conversation)] == [c["messages"] for c in CHATS]
        assert [chat.tools for chat in parsed if isinstance(chat, Conversation)] == [c["tools"] for c in CHATS]


def test_a_null_of_json_is_data(tmp_path: Path):
    turn = '{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": null}}]}'
    (tmp_path / "a.jsonl").write_text(f'{{"messages": [{turn}]}}')
    [chat] = [parse_record(row, find_shape(row, "auto", None)) for row in read(tmp_path / "a.jsonl", "jsonl")]
    assert chat.messages[0]["tool_calls"][0]["function"]["arguments"] == {"x": None}  # type: ignore[union-attr]
    assert drop_nulls({"a": None, "b": [None, {"c": None}]}) == {"b": [None, {}]}


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"], pa.string_view()),
        pa.array(["a", "b"]).dictionary_encode(), pa.array([b"a", b"b"]), pa.array([b"a", b"b"], pa.large_binary()),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("key", ["text", None])
def test_texts_of_every_type_are_texts(tmp_path: Path, column: pa.Array, key: str | None):
    others = {
        "when": pa.array([1, 2], pa.timestamp("ns", tz="Europe/Oslo")),
        "price": [decimal.Decimal("1.50")] * 2,
        "day": [datetime.date(2020, 1, 1)] * 2,
        "map": pa.array([[("x", "y")], None], pa.map_(pa.string(), pa.string())),
    }
    pq.write_table(pa.table({"text": column, **others}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", column=key)
    shape = find_shape(rows[0], "auto", None)
    assert [parse_record(row, shape) for row in rows] == ["a", "b"]
    assert key or rows[0]["map"] == {"x": "y"}


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"id": [1, 2], "meta.text": ["a", "b"]}),
        pa.table({"id": [1, 2], "meta": [{"n": 1, "text": "a"}, {"n": 2, "text": "b"}]}),
        pa.table({"meta": [{"text": "x"}] * 2, "meta.text": ["a", "b"]}),
    ],
)
def test_a_dotted_key_is_a_column_or_leads_into_one(tmp_path: Path, table: pa.Table):
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", column="meta.text")
    shape = find_shape(rows[0], "auto", "meta.text")
    assert [parse_record(row, shape) for row in rows] == ["a", "b"]
    assert all("id" not in row for row in rows)


def test_bytes_that_are_no_text_are_said(tmp_path: Path):
    pq.write_table(pa.table({"text": [b"\xff"], "note": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'text' contains bytes that are not UTF-8"):
        find_shape(read(tmp_path / "a.parquet")[0], "auto", None)


def test_columns_of_turns_may_be_json_text(tmp_path: Path):
    rows = [{"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]', "tools": "[]"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    [row] = read(tmp_path / "a.parquet")
    parsed = parse_record(row, find_shape(row, "auto", None))
    assert isinstance(parsed, Conversation) and parsed.messages == [USER, ASSISTANT] and parsed.tools is None
