"""The loader hands out the stream, whoever prepares it, and says where it stands."""

from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch

from data_prep.errors import UserError
from data_prep.options import DataSection
from training.data.batch import BATCH_INFO
from training.data.collator import Collator
from training.data.dataset import build_datasets
from training.data.loader import LoaderOptions, StoreBatches, build_batching, choose_num_workers

DOCUMENTS = [[10 * number + 1 + token % 9 for token in range(3 + number % 14)] for number in range(40)]


def load(store, rank: int = 0, world_size: int = 1, micro: int = 2, **options) -> StoreBatches:
    data = DataSection.model_validate({"seq_len": 16, "pad_to_multiple_of": 4, "packing": "none", **options})
    train, _ = build_datasets(store, data)
    workers = LoaderOptions(2, 2, True, False, "fork") if data.num_workers == 2 else LoaderOptions()
    collator = Collator(0, data.seq_len, data.pad_to_multiple_of, data.packing)
    batching = build_batching(train.row_lengths, data, micro)
    return StoreBatches(train, batching, collator, workers, rank, world_size)


def documents_in(batch: dict) -> list[int]:
    """Numbers of the documents of unpacked rows."""
    return [int(row[0] - 1) // 10 for row in batch["input_ids"]]


@pytest.mark.parametrize("options", [{"packing": "best_fit"}, {"max_tokens_per_batch": 64}, {"group_by_length": True}])
def test_two_workers_give_bit_for_bit_what_none_gives(make_store, options: dict):
    store = make_store(DOCUMENTS)
    plain, workers = load(store, **options), load(store, num_workers=2, **options)
    for batches in (plain, workers):
        batches.start(6 if "max_tokens_per_batch" not in options else None)
    for one, two in islice(zip(plain, workers, strict=True), 40):  # over the ends of epochs
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        assert plain.position == workers.position


def test_position_is_of_what_was_handed_out_and_any_other_launch_goes_on_there(make_store):
    """Another world size and another micro-batch after each stop, over an epoch of 40 rows."""
    store = make_store(DOCUMENTS)
    seen: list[int] = []
    position = None
    for micro, world_size, rounds in ((2, 3, 2), (3, 1, 4), (1, 2, 5), (2, 1, 3)):
        ranks = [load(store, rank, world_size, micro, num_workers=2 * (rank == 1)) for rank in range(world_size)]
        for batches in ranks:
            batches.start(position)
            seen += sum((documents_in(batch) for batch in islice(batches, rounds)), [])
        assert len({batches.position for batches in ranks}) == 1
        position = ranks[0].position
        assert position == len(seen)
    assert sorted(seen) == list(range(40)) and ranks[0].epoch == 1.0


def test_batches_draw_nothing_from_the_global_generator(make_store):
    batches = load(make_store(DOCUMENTS), num_workers=2)
    before = torch.get_rng_state()
    batches.start(None)
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_of_whole_epochs(make_store):
    batches = load(make_store(DOCUMENTS), world_size=2, micro=3)  # 6 rows a round, 40 an epoch
    assert [batches.count_steps(epochs, 2) for epochs in (0.01, 1, 2.0, 3)] == [1, 3, 6, 10]
    batches.drop_last = False
    assert [batches.count_steps(epochs, 2) for epochs in (0.01, 1, 2.0, 3)] == [1, 4, 7, 10]
    batches.position = 36
    assert batches.count_steps(1, 2) == 1 and batches.count_steps(0.5, 2) == 0
    batches.drop_last = True
    assert batches.count_steps(1, 2) == 0
    budget = load(make_store(DOCUMENTS), max_tokens_per_batch=64)
    budget.start(None)
    steps = budget.count_steps(1, 2)
    infos = [next(budget)[BATCH_INFO] for _ in range(2 * steps)]
    assert sum(info.rows for info in infos) == budget.position <= 40 < budget.position + 2 * 16
    assert all(info.tokens <= 64 for info in infos)


def test_the_useful_share_is_said(make_store, caplog):
    caplog.set_level("INFO")
    shares = []
    for options in ({}, {"group_by_length": True}, {"max_tokens_per_batch": 64}):
        load(make_store(DOCUMENTS), micro=4, **options)
        shares.append(float(caplog.messages[-1].split(", ")[-1].split(" %")[0]))
    assert shares[0] < shares[1] <= 100 and shares[0] < shares[2] <= 100
    assert "rows, grouped by length" in caplog.text and "at most 64 tokens each" in caplog.text


def test_no_rows_is_an_error():
    with pytest.raises(UserError, match="no row to train on"):
        build_batching(np.empty(0, np.int64), DataSection.model_validate({}), 4)


@pytest.mark.parametrize(
    ("asked", "device", "cores", "ranks", "expected"),
    [("auto", "cpu", 64, 1, 0), ("auto", "cuda", 16, 1, 8), ("auto", "cuda", 96, 8, 6), ("auto", "cuda", 256, 1, 16),
     ("auto", "cuda", 2, 4, 1), (3, "cpu", 2, 1, 3), (0, "cuda", 64, 1, 0)],
)  # fmt: skip
def test_workers_by_the_machine(asked, device: str, cores: int, ranks: int, expected: int):
    assert choose_num_workers(asked, device_type=device, cores=cores, local_ranks=ranks) == expected


def test_batches_are_copied_one_ahead_and_only_their_own_copy_is_waited_for(make_store):
    from training.data.device_copy import Copied, copy_ahead

    log: list[str] = []

    class FakeCopies:
        def start(self, batch):
            log.append(f"copy {batch['n']}")
            return Copied(batch, batch["n"])

        def finish(self, copied):
            log.append(f"wait {copied.ready}")
            return copied.batch

    waits: list[int] = []

    def wait():
        waits.append(1)
        return nullcontext()

    for batch in copy_ahead(iter({"n": n} for n in range(3)), FakeCopies(), wait):  # pyright: ignore[reportArgumentType]
        log.append(f"use {batch['n']}")
    assert log == ["copy 0", "copy 1", "wait 0", "use 0", "copy 2", "wait 1", "use 1", "wait 2", "use 2"]
    assert len(waits) == 3
