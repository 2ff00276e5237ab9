"""Rows of a stream: each document once a pass for any number of readers, the same ones after a resume."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Subset

from data_prep.encode.tokenizer import train_tokenizer
from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.prepare import prepare
from data_prep.store.store import Store
from data_prep.stream import blocks, stream
from tests.data_prep.conftest import make_texts, prepare_store, write_jsonl
from training.data.batch import BATCH_INFO
from training.data.collator import Collator
from training.data.dataset import choose_documents
from training.data.loader import LoaderOptions
from training.data.order import permute
from training.data.streaming import StreamBatches, read_validation_rows

ALONE = {"packing": "none", "seq_len": 512}  # each row a document


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    """Some ten units of 200 documents in all, each of a few blocks."""
    monkeypatch.setattr(stream, "UNIT_BYTES", 4000)
    monkeypatch.setattr(stream, "SHARE_BYTES", 300)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1500)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "trained"
    train_tokenizer(make_texts(200), TokenizerSection.model_validate({"vocab_size": 400}), directory)
    return directory


@pytest.fixture
def recipe(tmp_path: Path, tokenizer_dir: Path):
    """A recipe over 200 texts, with some options."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(200)])

    def build(**options) -> tuple[DataSection, TokenizerSection]:
        values = {"sources": [{"path": str(path)}], "store_dir": str(tmp_path / "stores"), "validation_share": 0.1}
        values |= {"seq_len": 64, "num_proc": 1, "streaming": True, **options}
        return DataSection.model_validate(values), TokenizerSection.model_validate({"path": str(tokenizer_dir)})

    return build


@pytest.fixture
def open_stream(recipe, tmp_path: Path):
    """`open_stream(rank, world_size, position, …data options)`: batches of one row each."""

    def build(rank=0, world_size=1, position=None, rows=1, workers=0, **options) -> StreamBatches:
        data, tokenizer = recipe(**options)
        plan = prepare(data, tokenizer).stream
        assert plan is not None
        collator = Collator(0, data.seq_len, 8, data.packing)
        loader = LoaderOptions(num_workers=workers)
        batches = StreamBatches(plan, data, collator, loader, rows, tmp_path, rank, world_size)
        batches.start(position)
        return batches

    return build


def gather(ranks: list[StreamBatches]):
    """Their position as a checkpoint has it; the sum over ranks is done here."""
    given = []
    for rank in ranks:
        rank.sum_over_ranks = lambda values: given.append(values) or values
        _ = rank.position
    ranks[0].sum_over_ranks = lambda values: np.sum(given, axis=0).tolist()
    return json.loads(json.dumps(ranks[0].position))


def take(batches: StreamBatches, count: int):
    return list(islice(batches, count))


def take_pass(batches: StreamBatches):
    """All batches of the first pass."""
    taken = []
    for batch in batches:
        if batches.passes >= 1:
            return taken
        taken.append(batch)
    raise AssertionError


def ids_of(batch) -> list[int]:
    """The tokens of a batch of one row, without padding."""
    return batch["input_ids"][0, : batch[BATCH_INFO].useful_tokens].tolist()


def documents_of(batches):
    """Token ids of each document in some batches of one row, with how often they come."""
    found = Counter()
    for batch in batches:
        ends = np.cumsum(batch[BATCH_INFO].document_lengths)
        found.update(tuple(ids.tolist()) for ids in np.split(ids_of(batch), ends[:-1]))
    return found


def table_of_store(recipe, split):
    data, tokenizer = recipe
    store_dir = prepare(data.model_copy(update={"streaming": False}), tokenizer).store_dir
    assert store_dir is not None
    return Store.open(store_dir).split(split)


def documents_of_store(recipe):
    table = table_of_store(recipe, "train")
    chosen = choose_documents(table, recipe[0].sources)
    return Counter(tuple(table.ids(int(index)).tolist()) for index in chosen)


@pytest.mark.parametrize("world_size", [1, 2, 5, 20])
def test_a_pass_holds_each_document_once_whatever_the_number_of_readers(open_stream, recipe, world_size):
    ranks = [open_stream(rank, world_size, **ALONE) for rank in range(world_size)]
    found = sum((documents_of(take_pass(rank)) for rank in ranks), Counter())
    assert found == documents_of_store(recipe(**ALONE))
    slices = ranks[0].position["deals"][-1]["slices"]
    assert (slices > 1) == (world_size > len(ranks[0].plan.units))


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_every_packing_has_all_tokens(open_stream, recipe, packing):
    batches = take_pass(open_stream(packing=packing))
    tokens = Counter(token for batch in batches for token in ids_of(batch))
    expected = Counter()
    for ids, count in documents_of_store(recipe()).items():
        expected.update({token: number * count for token, number in Counter(ids).items()})
    assert tokens == expected


def test_weights_repeat_and_choose_as_with_a_store(open_stream, recipe):
    options = {**ALONE, "sources": [{**recipe()[0].sources[0].model_dump(), "weight": 1.5}]}
    found = documents_of(take_pass(open_stream(**options)))
    assert found == documents_of_store(recipe(**options))
    assert set(found.values()) == {1, 2}


def test_the_next_pass_has_the_same_rows_in_another_order(open_stream):
    rows = len(take_pass(open_stream()))
    one, two = (list(map(ids_of, take(batches, rows))) for batches in [open_stream()] * 2)
    assert one != two and sorted(one) == sorted(two)


def test_going_on_with_as_many_readers_gives_the_very_same_rows(open_stream):
    straight = [list(map(ids_of, take(open_stream(rank, 2), 40))) for rank in range(2)]
    ranks = [open_stream(rank, 2) for rank in range(2)]
    before = [list(map(ids_of, take(rank, 23))) for rank in ranks]
    position = gather(ranks)
    after = [list(map(ids_of, take(open_stream(rank, 2, position), 17))) for rank in range(2)]
    assert [one + two for one, two in zip(before, after, strict=True)] == straight


def test_another_number_of_readers_repeats_and_skips_nothing(open_stream):
    rows = sorted(map(ids_of, take_pass(open_stream())))
    alone = open_stream()
    taken = take(alone, len(rows) // 3)
    ranks = [open_stream(rank, 3, gather([alone])) for rank in range(3)]
    assert sorted(map(ids_of, taken + sum(map(take_pass, ranks), []))) == rows


def test_ranks_agree_on_the_epoch(open_stream):
    ranks = [open_stream(rank, 2) for rank in range(2)]
    rows = len(take_pass(open_stream()))
    for rank in ranks:
        take(rank, rows)
    assert [rank.epoch for rank in ranks] == [0, 0] and min(rank.passes for rank in ranks) >= 0.5
    position = gather(ranks)
    assert ranks[0].epoch == open_stream(1, 2, position).epoch >= 0.5


def test_finished_units_are_not_read_again(open_stream, monkeypatch):
    batches = open_stream()
    take(batches, 30)
    position = gather([batches])
    assert position["deals"][0]["positions"][0][0] == 2
    units = batches.plan.units
    done = [units[place] for place in permute(np.arange(2), len(units), (batches.data.seed, 0))]
    read = []
    original = blocks.read_blocks
    spy = lambda unit, *rest: read.append(unit) or original(unit, *rest)  # noqa: E731
    monkeypatch.setattr("training.data.streaming.read_blocks", spy)
    take(open_stream(position=position), 1)
    assert read and not any(unit in done for unit in read)


def test_counts_documents_and_bad_records_once(open_stream, tmp_path):
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": ""}\n' * 30)  # a last block without a document
    options = {"on_bad_record": "skip", "max_bad_share": 0.5, "min_document_tokens": 14}
    ranks = [open_stream(rank, 2, **options) for rank in range(2)]
    for rank in ranks:
        take(rank, 20)
    position = gather(ranks)
    ranks = [open_stream(rank, 2, position, **options) for rank in range(2)]
    for rank in ranks:
        take(rank, 200)
    counts = gather(ranks)["counts"]
    assert counts["documents"] + counts["too_short"] == 200 and counts["too_short"] > 5
    assert (counts["bad_records"], counts["too_long"]) == (30, 0)
    assert len((tmp_path / "bad_records.jsonl").read_bytes().splitlines()) == 30


@pytest.mark.parametrize("long_documents", ["split", "truncate", "drop"])
def test_what_packing_does_to_long_documents_is_counted_and_said(open_stream, recipe, caplog, long_documents):
    options = {"seq_len": 16, "validation_share": 0.0, "long_documents": long_documents}
    with caplog.at_level("INFO"):
        batches = open_stream(**options)
        while batches.passes < 1:
            next(batches)
    counts = batches.position["counts"]
    assert counts["documents"] == 200
    name = {"split": "split", "truncate": "truncated", "drop": "dropped"}[long_documents]
    store = Store.open(prepare_store(*recipe(**{**options, "streaming": False})))
    lengths = store.split("train").lengths
    assert counts[name] == int((lengths > 16).sum()) > 0  # as many as have more tokens than a row
    assert sum(counts[other] for other in ("split", "truncated", "dropped")) == counts[name]
    assert name in caplog.text and "have been read to their end" in caplog.text


def test_too_many_bad_records_stop_it_on_the_way(open_stream, tmp_path):
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b'{"text": ""}\n' * 30)
    with pytest.raises(UserError, match=r"30 of 230 records are bad \(13.0%, data.max_bad_share is 1.0%\)"):
        take(open_stream(on_bad_record="skip"), 1000)


def test_fewer_rows_than_readers_is_said(open_stream, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(3)])
    with pytest.raises(UserError, match=r"fewer training rows than there are readers \(8\)"):
        next(open_stream(7, 8, validation_share=0.0, **ALONE))


def test_a_source_of_which_no_row_is_left_says_what_became_of_it(open_stream):
    options = {"validation_share": 0.0, "seq_len": 8, "long_documents": "drop", "min_document_tokens": 9}
    with pytest.raises(UserError, match=r"no row to train on: (\d+) documents, \1 dropped; raise data.seq_len"):
        next(open_stream(**options))


def test_a_stream_that_starts_over_says_so_once_and_shows_it(open_stream, caplog, monkeypatch):
    monkeypatch.undo()
    with caplog.at_level("INFO"):
        batches = open_stream()
        shown = []
        for _ in range(300):
            next(batches)
            shown.append(batches.passes)
    assert shown == sorted(shown) and shown[0] < 1 <= shown[-1] and batches.epoch == 0  # the ranks have not met yet
    assert caplog.text.count("read to their end") == 1


def test_bad_records_are_named_on_the_screen_and_no_more_than_three(open_stream, tmp_path, caplog):
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"{\n" * 30)
    batches = open_stream(on_bad_record="skip", max_bad_share=0.5)
    take(batches, 300)
    assert caplog.text.count("bad record: ") == 3 and "a.jsonl" in caplog.text


def test_workers_share_the_rows_and_go_on_in_turn(open_stream, monkeypatch):
    """Workers are other processes and see units of the real size: here one, whose rows are dealt in two slices."""
    monkeypatch.undo()

    def rows_of(batches, count):
        return [batch["input_ids"].tolist() for batch in take(batches, count)]

    straight = open_stream(rows=3, workers=2)
    before, position, after = rows_of(straight, 5), gather([straight]), rows_of(straight, 4)
    assert position["turn"] == 1
    assert rows_of(open_stream(rows=3, workers=2, position=position), 4) == after
    rows = [tuple(row) for batch in before + after for row in batch]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_stops_it_with_one_line(open_stream, tmp_path, workers):
    with open(tmp_path / "a.jsonl", "ab") as file:
        file.write(b"{\n")
    batches = open_stream(workers=workers, rows=50)
    with pytest.raises(UserError, match=r"^\S+a\.jsonl, line 201: [^\n]*$"):
        take(batches, 20)


def test_validation_rows_are_held_out_bounded_and_the_same(open_stream, recipe):
    plan, (data, tokenizer) = open_stream(**ALONE).plan, recipe(**ALONE)
    rows = read_validation_rows(plan, data)
    assert isinstance(rows, Subset)
    table = table_of_store((data, tokenizer), "validation")
    expected = sorted(table.ids(index).tolist() for index in range(len(table)))
    assert sorted(rows[index].input_ids.tolist() for index in range(len(rows))) == expected
    few = [read_validation_rows(plan, data.model_copy(update={"validation_rows": 4})) for _ in range(2)]
    one, two = (
        [rows[index].input_ids.tolist() for index in range(len(rows))] for rows in few if isinstance(rows, Subset)
    )
    assert one == two and len(one) == 4
