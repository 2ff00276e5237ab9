"""Tests that sources are cut by size and spread over units, and that `order` names what the rows depend on."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.stream.stream as stream
from data_prep.errors import UserError
from data_prep.options import DataSection, SourceSection
from data_prep.prepare import prepare
from data_prep.read.records import BadRecord, Record, read_records
from data_prep.read.sources import find_inputs
from data_prep.render.documents import find_source_shape
from data_prep.stream.stream import plan_units, sample_texts
from tests.data_prep.conftest import make_texts, write_jsonl


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Make units of a few documents."""
    monkeypatch.setattr(stream, "UNIT_BYTES", 4000)
    monkeypatch.setattr(stream, "SHARE_BYTES", 300)


def text_of(record: Record | BadRecord) -> str:
    assert isinstance(record, Record)
    return record.value["text"]


def texts_of(unit):
    records = [record for share in unit for span in share.part.spans for record in read_records(span)]
    return [text_of(record) for record in records]


def plan_of(*sections: SourceSection):
    return plan_units(find_inputs(sections))


def test_every_line_is_in_one_unit_and_every_source_in_each(tmp_path: Path):
    large, small = make_texts(300), make_texts(60, "small ")
    large[100] = "a line longer than a unit " * 400
    write_jsonl(tmp_path / "large.jsonl", [{"text": text} for text in large])
    write_jsonl(tmp_path / "small.jsonl", [{"text": text} for text in small])
    units = plan_of(
        SourceSection.model_validate({"path": str(tmp_path / "large.jsonl")}),
        SourceSection.model_validate({"path": str(tmp_path / "small.jsonl")}),
    )
    found = [texts_of(unit) for unit in units]
    assert sorted(sum(found, [])) == sorted(large + small)
    assert len(units) > 10
    assert all(any(text.startswith("small") for text in texts) for texts in found)
    sizes = sorted(sum(map(len, texts)) for texts in found)
    assert sizes[-2] < 2 * stream.UNIT_BYTES < sizes[-1]


def test_parquet_is_cut_by_row_groups_and_small_files_are_grouped(tmp_path: Path):
    texts = make_texts(200)
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet", row_group_size=10)
    (tmp_path / "files").mkdir()
    for index, text in enumerate(make_texts(40, "file ")):
        write_jsonl(tmp_path / "files" / f"{index:02d}.jsonl", [{"text": text}])
    units = plan_of(
        SourceSection.model_validate({"path": str(tmp_path / "rows.parquet")}),
        SourceSection.model_validate({"path": str(tmp_path / "files")}),
    )
    assert sorted(sum(map(texts_of, units), [])) == sorted(texts + make_texts(40, "file "))
    assert len(units) > 1


def test_a_source_with_a_limit_is_one_part(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(300)])
    units = plan_of(SourceSection.model_validate({"path": str(path), "max_documents": 250}))
    assert [len(unit) for unit in units] == [1]
    assert units[0][0].part.max_documents == 250


def test_the_plan_names_what_makes_the_rows(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(50)])

    def order(path=path, **changes):
        data, tokenizer = recipe(path, {"streaming": True})
        plan = prepare(DataSection.model_validate({**data.model_dump(), **changes}), tokenizer).stream
        assert plan is not None
        return plan.order

    base = order()
    assert order(num_proc=2, max_bad_share=0.5) == base
    for key, value in (("seq_len", 64), ("seed", 3), ("validation_share", 0.1)):
        assert order(path, **{key: value}) == {**base, f"data.{key}": value}
    path.rename(tmp_path / "moved.jsonl")
    assert order(tmp_path / "moved.jsonl") == base


@pytest.mark.parametrize("place", [0, 300_000, -1])
def test_bytes_that_change_at_the_places_looked_at_are_noticed(tmp_path: Path, monkeypatch, place: int):
    monkeypatch.setattr(stream, "UNIT_BYTES", 300_000)
    path = tmp_path / "a.txt"
    path.write_bytes(b"text of a file. " * 2**16)
    [file] = find_inputs([SourceSection.model_validate({"path": str(path)})])[0].files
    before = stream._sample_content(file)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert stream._sample_content(file) != before


def test_the_sample_for_a_tokenizer_is_bounded_and_spread(tmp_path: Path):
    texts = make_texts(2000)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    inputs = find_inputs([SourceSection.model_validate({"path": str(path)})])
    shapes = [find_source_shape(item) for item in inputs]
    sample = sample_texts(inputs, shapes, 20_000)
    assert 20_000 <= sum(map(len, sample)) < 35_000
    assert texts.index(sample[0]) == 0 and texts.index(sample[-1]) > 1900
    assert sorted(sample_texts(inputs, shapes, 10**9)) == sorted(texts)
    assert sample_texts(inputs, shapes, 20_000) == sample


def test_sources_for_validation_alone_are_nothing_to_train_on(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    data, tokenizer = recipe(path, {"streaming": True}, split="validation")
    with pytest.raises(UserError, match="so there is nothing to train on"):
        prepare(data, tokenizer)
