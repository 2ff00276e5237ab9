"""Tests that a stream gives the same documents, splits and errors as a build."""

from collections import Counter
from pathlib import Path

import orjson
import pytest

from data_prep.errors import UserError
from data_prep.prepare import prepare
from data_prep.store.document_table import DocumentTable
from data_prep.store.store import Store
from data_prep.stream import blocks, stream
from data_prep.stream.blocks import read_blocks
from tests.data_prep.conftest import make_texts, write_jsonl


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make units and blocks of a few documents."""
    monkeypatch.setattr(stream, "UNIT_BYTES", 4000)
    monkeypatch.setattr(stream, "SHARE_BYTES", 300)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1500)


def split_of(plan, split):
    read = [block for unit in plan.units for block in read_blocks(unit, plan, split)]
    table = DocumentTable(batch for block in read for batch in block.tables)
    return sorted(table.ids(index).tolist() for index in range(len(table))), read


def store_split(store_dir, split):
    table = Store.open(store_dir).split(split)
    return sorted(table.ids(index).tolist() for index in range(len(table)))


def test_the_documents_and_splits_are_those_of_a_store(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(400)])
    data, tokenizer = recipe(path)
    store_dir = prepare(data, tokenizer).store_dir
    streamed = prepare(data.model_copy(update={"streaming": True}), tokenizer)
    assert streamed.store_dir is None and streamed.stream is not None
    train, read = split_of(streamed.stream, "train")
    assert train == store_split(store_dir, "train")
    assert split_of(streamed.stream, "validation")[0] == store_split(store_dir, "validation")
    assert len(read) > len(streamed.stream.units) > 5
    assert max(block.text_bytes for block in read) < 2 * stream.UNIT_BYTES
    assert sum(block.counts["documents"] for block in read) == 400


def test_answers_that_their_label_calls_bad_are_counted_and_in_no_block(tmp_path: Path, recipe):
    """This includes duplicates, whose numbers count good documents only."""
    texts = make_texts(60)
    rows = [{"prompt": text, "completion": "a", "label": i % 3 > 0} for i, text in enumerate(texts)]
    data, tokenizer = recipe(write_jsonl(tmp_path / "a.jsonl", [*rows, *rows[:9]]), {"streaming": True})
    plan = prepare(data, tokenizer).stream
    assert plan is not None
    train, read = split_of(plan, "train")
    assert sum((block.counts for block in read), Counter())["labelled_false"] == 23
    built = data.model_copy(update={"streaming": False})
    store = prepare(built, tokenizer).store_dir
    assert store is not None
    assert train == store_split(store, "train")
    exact = prepare(built.model_copy(update={"deduplicate": "exact"}), tokenizer).store_dir
    assert exact is not None
    manifest = Store.open(exact).manifest
    assert (manifest.num_documents, manifest.duplicates, manifest.labelled_false) == (40, 6, 23)
    assert manifest.num_records == 69 and manifest.sources[0].labelled_false == 23


def test_every_block_has_its_share_of_each_source(tmp_path: Path, recipe, monkeypatch):
    monkeypatch.setattr("data_prep.store.build.BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(stream, "UNIT_BYTES", 10**6)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 6000)
    paths = [write_jsonl(tmp_path / f"{count}.jsonl", [{"text": t} for t in make_texts(count)]) for count in (300, 100)]
    data, tokenizer = recipe(paths[0], {"sources": [{"path": str(path)} for path in paths], "streaming": True})
    plan = prepare(data, tokenizer).stream
    assert plan is not None
    [unit] = plan.units
    found = list(read_blocks(unit, plan, "train"))
    assert len(found) > 5
    for block in found[:-2]:  # the last ones have what rounding left
        sources = DocumentTable(block.tables).sources
        assert 0.05 < (sources == 1).mean() < 0.6


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
    assert plan is not None and skipping is not None
    assert skipping.order == plan.order  # a run that was stopped may go on without the record
    _, read = split_of(skipping, "train")
    [bad] = [record for block in read for record in block.bad_records]
    before = int(bad.unit.split()[2])
    assert (tmp_path / "a.jsonl").read_bytes()[before:].split(b"\n")[bad.number - 1] == b'{"text": '
    assert sum(block.counts["documents"] for block in read) == 199
