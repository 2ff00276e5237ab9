"""The stream reads what a build would: the same documents, splits and refusals; cut by size, spread by source."""

from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.stream as stream
from data_prep.documents import find_source_shape
from data_prep.errors import UserError
from data_prep.options import DataSection, SourceSection
from data_prep.prepare import prepare
from data_prep.records import read_records
from data_prep.sources import find_inputs
from data_prep.store import DocumentTable, Store
from data_prep.stream import plan_units, read_blocks, sample_texts
from tests.data_prep.conftest import make_texts, write_jsonl


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Units and blocks of a few documents."""
    monkeypatch.setattr(stream, "UNIT_BYTES", 4000)
    monkeypatch.setattr(stream, "SHARE_BYTES", 300)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1500)


def texts_of(unit):
    records = [record for share in unit for span in share.part.spans for record in read_records(span)]
    return [record.value["text"] for record in records]


def plan_of(*sections: SourceSection):
    return plan_units(find_inputs(sections))


def test_every_line_is_in_one_unit_and_every_source_in_each(tmp_path: Path):
    large, small = make_texts(300), make_texts(60, "small ")
    large[100] = "a line longer than a unit " * 400
    write_jsonl(tmp_path / "large.jsonl", [{"text": text} for text in large])
    write_jsonl(tmp_path / "small.jsonl", [{"text": text} for text in small])
    units = plan_of(
        SourceSection(path=str(tmp_path / "large.jsonl")), SourceSection(path=str(tmp_path / "small.jsonl"))
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
    units = plan_of(SourceSection(path=str(tmp_path / "rows.parquet")), SourceSection(path=str(tmp_path / "files")))
    assert sorted(sum(map(texts_of, units), [])) == sorted(texts + make_texts(40, "file "))
    assert len(units) > 1


def test_a_source_with_a_limit_is_one_part(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(300)])
    units = plan_of(SourceSection(path=str(path), max_documents=250))
    assert [len(unit) for unit in units] == [1]
    assert units[0][0].part.max_documents == 250


def split_of(plan, split):
    blocks = [block for unit in plan.units for block in read_blocks(unit, plan, split)]
    table = DocumentTable(batch for block in blocks for batch in block.tables)
    return sorted(table.ids(index).tolist() for index in range(len(table))), blocks


def store_split(store_dir, split):
    table = Store.open(store_dir).split(split)
    return sorted(table.ids(index).tolist() for index in range(len(table)))


def test_the_documents_and_splits_are_those_of_a_store(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(400)])
    data, tokenizer = recipe(path)
    store_dir = prepare(data, tokenizer).store_dir
    streamed = prepare(data.model_copy(update={"streaming": True}), tokenizer)
    assert streamed.store_dir is None and streamed.stream is not None
    train, blocks = split_of(streamed.stream, "train")
    assert train == store_split(store_dir, "train")
    assert split_of(streamed.stream, "validation")[0] == store_split(store_dir, "validation")
    assert len(blocks) > len(streamed.stream.units) > 5
    assert max(block.text_bytes for block in blocks) < 2 * stream.UNIT_BYTES
    assert sum(block.counts["documents"] for block in blocks) == 400


def test_every_block_has_its_share_of_each_source(tmp_path: Path, recipe, monkeypatch):
    monkeypatch.setattr("data_prep.build.BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(stream, "UNIT_BYTES", 10**6)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 6000)
    paths = [write_jsonl(tmp_path / f"{count}.jsonl", [{"text": t} for t in make_texts(count)]) for count in (300, 100)]
    data, tokenizer = recipe(paths[0], {"sources": [{"path": str(path)} for path in paths], "streaming": True})
    plan = prepare(data, tokenizer).stream
    [unit] = plan.units
    blocks = list(read_blocks(unit, plan, "train"))
    assert len(blocks) > 5
    for block in blocks[:-2]:  # the last ones have what rounding left
        found = DocumentTable(block.tables).sources
        assert 0.05 < (found == 1).mean() < 0.6


def test_bad_records_are_named_by_their_line_in_the_file(tmp_path: Path, recipe):
    lines = [orjson.dumps({"text": text}) for text in make_texts(200)]
    lines[150] = b'{"text": '
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    data, tokenizer = recipe(tmp_path / "a.jsonl", {"streaming": True})
    plan = prepare(data, tokenizer).stream
    with pytest.raises(UserError, match=r"a\.jsonl, line 151: malformed JSON .*on_bad_record"):
        split_of(plan, "train")

    data = data.model_copy(update={"on_bad_record": "skip"})
    skipping = prepare(data, tokenizer).stream
    assert skipping.fingerprint == plan.fingerprint  # a run that was stopped may go on without the record
    _, blocks = split_of(skipping, "train")
    [bad] = [record for block in blocks for record in block.bad_records]
    before = int(bad.unit.split()[2])
    assert (tmp_path / "a.jsonl").read_bytes()[before:].split(b"\n")[bad.number - 1] == b'{"text": '
    assert sum(block.counts["documents"] for block in blocks) == 199


def test_the_plan_is_named_by_what_makes_the_rows(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(50)])
    data, tokenizer = recipe(path, {"streaming": True})

    def name(**changes):
        return prepare(DataSection.model_validate({**data.model_dump(), **changes}), tokenizer).stream.fingerprint

    base = name()
    assert base == name(num_proc=2, max_bad_share=0.5)
    assert len({base, name(seq_len=64), name(seed=3), name(validation_share=0.1)}) == 4
    moved = tmp_path / "moved.jsonl"
    path.rename(moved)
    data, _ = recipe(moved, {"streaming": True})
    assert name() == base
    write_jsonl(moved, [{"text": text} for text in make_texts(51)])
    assert name() != base


def test_the_sample_for_a_tokenizer_is_bounded_and_spread(tmp_path: Path):
    texts = make_texts(2000)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    inputs = find_inputs([SourceSection(path=str(path))])
    shapes = [find_source_shape(item) for item in inputs]
    sample = sample_texts(inputs, shapes, 20_000)
    assert 20_000 <= sum(map(len, sample)) < 35_000
    assert texts.index(sample[0]) == 0 and texts.index(sample[-1]) > 1900
    assert sorted(sample_texts(inputs, shapes, 10**9)) == sorted(texts)
    assert sample_texts(inputs, shapes, 20_000) == sample


def test_sources_for_validation_alone_are_nothing_to_train_on(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    data, tokenizer = recipe(path, {"streaming": True}, split="validation")
    with pytest.raises(UserError, match="none is left to train on"):
        prepare(data, tokenizer)
