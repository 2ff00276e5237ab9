import pickle

import numpy as np
import pytest

from data_prep.options import DataSection, SourceSection
from training.data.dataset import RowDataset, build_datasets, choose_documents

DOCUMENTS = [list(range(100 * i, 100 * i + length)) for i, length in enumerate([3, 21, 8, 8, 10, 2, 16, 7], 1)]


def section(**options) -> DataSection:
    return DataSection.model_validate({"seq_len": 8, "pad_to_multiple_of": 4, **options})


def test_rows_are_the_documents_and_first_tokens_are_not_predicted(make_store):
    train, validation = build_datasets(make_store(DOCUMENTS), section())
    assert validation is None
    seen = []
    for row in (train[i] for i in range(len(train))):
        assert sum(row.document_lengths) == len(row.input_ids) <= 8
        at = 0
        for length in row.document_lengths:
            ids = row.input_ids[at : at + length].tolist()
            assert row.labels[at : at + length].tolist() == [-100, *ids[1:]]
            seen += ids
            at += length
    assert sorted(seen) == sorted(sum(DOCUMENTS, []))


@pytest.mark.parametrize("packing", ["best_fit", "wrapped", "none"])
def test_labels_follow_the_runs_through_splits(make_store, packing):
    runs = [[1, 3], [0, 5, 10, 20], [7, 8], [1, 8], [0, 10], [1, 2], [0, 16], [6, 7]]
    train, _ = build_datasets(make_store(DOCUMENTS, runs=runs), section(packing=packing))
    pairs = [(d, *pair) for d, run in enumerate(runs) for pair in zip(run[::2], run[1::2], strict=True)]
    allowed = {DOCUMENTS[d][t] for d, first, end in pairs for t in range(first, end)}
    labels = [label for i in range(len(train)) for label in train[i].labels.tolist() if label != -100]
    firsts = {int(row.input_ids[at]) for row in (train[i] for i in range(len(train)))
              for at in np.cumsum([0, *row.document_lengths[:-1]])}  # fmt: skip
    assert sorted(labels) == sorted(allowed - firsts)


def test_validation_rows(make_store):
    train, validation = build_datasets(make_store(DOCUMENTS, DOCUMENTS[:2]), section(packing="none"))
    assert validation is not None
    assert sorted(sum((validation[i].input_ids.tolist() for i in range(len(validation))), [])) == sorted(
        DOCUMENTS[0] + DOCUMENTS[1]
    )


def test_the_log_says_how_well_rows_are_used(make_store, caplog):
    caplog.set_level("INFO")
    build_datasets(make_store(DOCUMENTS), section())
    assert "train: 8 documents in 10 rows (best_fit, 93.75 % of 8 x 10 used, 3 split)" in caplog.text


def same(one: RowDataset, two: RowDataset) -> bool:
    rows = ((one[i], two[i]) for i in range(len(one)))
    return all((a.input_ids == b.input_ids).all() and (a.labels == b.labels).all() for a, b in rows)


def test_pickles_small_and_reads_the_same(make_store):
    train, _ = build_datasets(make_store([[1] * 1000] * 50), section(seq_len=1000))
    train[0]
    data = pickle.dumps(train)
    assert len(data) < 5000
    assert same(pickle.loads(data), train)


def test_several_rows_at_once_are_the_rows_one_by_one(make_store):
    runs = [None, [0, 5, 10, 20], None, [1, 8], [0, 10], None, [0, 16], [6, 7]]
    train, _ = build_datasets(make_store(DOCUMENTS, runs=runs), section(packing="wrapped"))
    order = [3, 0, len(train) - 1, 3]
    for row, index in zip(train.__getitems__(order), order, strict=True):
        assert row.input_ids.tolist() == train[index].input_ids.tolist()
        assert row.labels.tolist() == train[index].labels.tolist()
        assert row.document_lengths == train[index].document_lengths
        assert len(row.input_ids) == train.row_lengths[index]


def test_weights_repeat_and_choose_by_content(make_store):
    table = make_store([[i] * 3 for i in range(2000)]).split("train")
    twice = choose_documents(table, [SourceSection.model_validate({"weight": 2.0})])
    assert twice.tolist() == np.repeat(np.arange(2000), 2).tolist()
    quarter = choose_documents(table, [SourceSection.model_validate({"weight": 0.25})])
    assert 420 < len(quarter) < 580
    assert len(set(quarter.tolist())) == len(quarter)
    more = choose_documents(table, [SourceSection.model_validate({"weight": 1.25})])
    values, counts = np.unique(more, return_counts=True)
    assert len(values) == 2000
    assert values[counts == 2].tolist() == quarter.tolist()


def test_even_rows_add_rows_without_loss_only():
    import numpy as np

    from training.data.dataset import NO_LOSS, EvenRows, Row

    rows = [Row(np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32), [4]) for _ in range(5)]
    even = EvenRows(rows, len(rows), 4)  # pyright: ignore[reportArgumentType]
    assert len(even) == 8 and len(EvenRows(rows, 5, 5)) == 5  # pyright: ignore[reportArgumentType]
    assert [bool((even[index].labels != NO_LOSS).any()) for index in range(8)] == [True] * 5 + [False] * 3
