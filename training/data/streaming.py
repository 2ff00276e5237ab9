"""Rows straight from raw sources: read, tokenized and packed during training.

Each reader (a rank, or a worker process of one) does the items that `dealing` gives it. A unit's documents are packed
block by block (16 MiB of text), so its rows are a pure function of its content and the recipe; they come in an order
keyed by (seed, unit of the stream, block). One block is in use while a thread prepares the next: memory is that of two
blocks (about 130 bytes for 8 bytes of text), whatever the size of the sources.

A batch brings along how far its reader has come with it, so what counts is what was handed out, not what was read
ahead. A resumed session reads the blocks of a unit that it stood in again, nothing else.
"""

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from data_prep.errors import UserError
from data_prep.options import DataSection
from data_prep.read.files import BadRecord
from data_prep.store.document_table import DocumentTable
from data_prep.store.summary import BAD_RECORDS, SHOWN_BAD_RECORDS, check_bad_share
from data_prep.stream.blocks import COUNTED, Block, read_blocks
from data_prep.stream.stream import StreamPlan
from training.data.batch import BATCH_INFO
from training.data.collator import Collator
from training.data.dataset import Row, RowDataset, choose_documents
from training.data.dealing import Deal, ItemRows, Position, deal_to, list_items
from training.data.device_copy import CudaCopies, copy_ahead
from training.data.loader import LoaderOptions, Span
from training.data.order import permute
from training.data.packing import describe_changes, plan_rows
from training.data.workers import iterate_quietly, next_over_losses

logger = logging.getLogger("redline.data")

PACKED = ("split", "truncated", "dropped", "silent")  # documents (silent: pieces) by what packing did to them
BLOCK_BITS = 20
ROWS_AT_A_TIME = 64
SHARE_RECORDS = 1000  # fewer, unless they are all, say nothing about the share of bad ones
PATIENCE = 4  # passes without a row after which a reader will never get one
VALIDATION_BLOCKS = 16  # 256 MiB of text at most are read to find the validation documents


@dataclass(frozen=True)
class ReaderPosition:
    """Where a reader stands after a row: `row` rows of item `item` are done. It is also where `counts` (`COUNTED`,
    `PACKED`) of the records read up to there, and the `bad_records` among them, are told."""

    reader: int
    item: int
    row: int
    counts: Counter[str] = field(default_factory=Counter)
    bad_records: tuple[BadRecord, ...] = ()


@dataclass(frozen=True)
class StreamRow:
    """One packed row of a stream, with the position after it."""

    row: Row
    progress: ReaderPosition


@dataclass(frozen=True)
class Failure:
    """A UserError on its way out of a worker process, which would else arrive as a traceback."""

    message: str


@dataclass(frozen=True)
class StreamRows(IterableDataset[StreamRow | Failure]):
    """The rows of one rank from where `deals` stand, without end. `turn`: the worker that gives the first batch."""

    plan: StreamPlan
    data: DataSection
    deals: tuple[Deal, ...]
    rank: int = 0
    turn: int = 0

    def __iter__(self) -> Iterator[StreamRow | Failure]:
        worker = get_worker_info()
        count, index = (worker.num_workers, worker.id) if worker else (1, 0)
        # The loader takes a batch from each worker in turn and begins with worker 0, whoever's turn it was.
        reader = self.rank * count + (index + self.turn) % count
        blocks = _ItemReader(self, reader).read()
        with ThreadPoolExecutor(1) as pool:
            try:
                ahead = pool.submit(next, blocks)
                while True:
                    block = ahead.result()
                    ahead = pool.submit(next, blocks)
                    yield from block.stream_rows(reader)
            except UserError as error:
                yield Failure(str(error))


@dataclass(frozen=True)
class _PackedBlock:
    """Rows of one item that are ready: `chosen` of `rows`, in order, with their numbers in the item."""

    rows: RowDataset
    item: int
    chosen: NDArray[np.int64]
    numbers: NDArray[np.int64]
    block: Block | None  # where this is the first time that it counts

    def stream_rows(self, reader: int) -> Iterator[StreamRow]:
        news = self.block
        for begin in range(0, len(self.chosen), ROWS_AT_A_TIME):
            rows = self.rows.__getitems__(self.chosen[begin : begin + ROWS_AT_A_TIME].tolist())
            for row, number in zip(rows, self.numbers[begin : begin + ROWS_AT_A_TIME].tolist(), strict=True):
                progress = ReaderPosition(reader, self.item, number + 1)
                if news is not None:
                    progress = replace(progress, counts=news.counts, bad_records=tuple(news.bad_records))
                    news = None
                yield StreamRow(row, progress)


class _ItemReader:
    """Turns the items of one reader into packed blocks."""

    def __init__(self, stream: StreamRows, reader: int):
        self._plan, self._data, self._deals = stream.plan, stream.data, stream.deals
        self._num_units, self._reader = len(stream.plan.units), reader
        self._news = Block()  # counts of blocks without a row: they wait for the next that has one
        self._empty_items = 0

    def read(self) -> Iterator[_PackedBlock]:
        for item, row in list_items(self._deals, self._reader):
            found = False
            for packed in self._read_item(item, row):
                found = True
                yield packed
            self._empty_items = 0 if found or row else self._empty_items + 1
            if self._empty_items > PATIENCE * self._num_units:
                raise UserError(self._explain_nothing())

    def _explain_nothing(self) -> str:
        readers, lost = self._deals[-1].readers, describe_changes(self._news.counts)
        if lost:
            return (
                f"data.streaming: no row to train on: {self._news.counts['documents']} documents, {lost}; raise "
                "data.seq_len, or set data.long_documents: split"
            )
        if readers == 1:
            return "data.streaming: no row to train on: every document of data.sources is left out or held out"
        return (
            f"data.streaming: data.sources hold fewer training rows than there are readers ({readers}): launch fewer "
            "ranks or lower the number of workers"
        )

    def _read_item(self, item: int, row: int) -> Iterator[_PackedBlock]:
        deal = self._deals[-1]
        unit, part = divmod(item, deal.slices)
        passes, place = divmod(unit, self._num_units)
        number = int(permute(np.array([place]), self._num_units, (self._data.seed, passes))[0])
        choice = ItemRows(self._deals, item, row)
        for index, block in enumerate(read_blocks(self._plan.units[number], self._plan, "train")):
            rows = pack_block([block], self._data)
            chosen, numbers = choice.take(len(rows))
            if passes == 0 and (0 in chosen if len(rows) else part == 0 and choice.is_new):
                self._news.counts.update(block.counts)
                self._news.counts.update({name: getattr(rows.plan, name) for name in PACKED})
                self._news.bad_records += block.bad_records
            if not len(chosen):
                continue
            news = None
            if self._news.counts.total():
                news, self._news = self._news, Block()
            key = (self._data.seed, unit << BLOCK_BITS | index)
            yield _PackedBlock(rows, item, permute(chosen, len(rows), key), numbers, news)


def pack_block(blocks: Sequence[Block], data: DataSection) -> RowDataset:
    """The rows of some blocks."""
    table = DocumentTable(batch for block in blocks for batch in block.tables)
    documents = choose_documents(table, data.sources)
    plan = plan_rows(table, documents, data.seq_len, data.packing, data.long_documents, data.seed)
    return RowDataset(table, plan, data.seq_len)


def read_first_rows(plan: StreamPlan, data: DataSection) -> Dataset[Row] | None:
    """Some training rows, where there are no validation rows to look at. None when the first block has none."""
    rows = pack_block([next(read_blocks(plan.units[0], plan, "train"))], data)
    return rows if len(rows) else None


def read_validation_rows(plan: StreamPlan, data: DataSection) -> Dataset[Row] | None:
    """Held-out rows, in memory: the same on every rank. From the first units on, until there are
    `data.validation_rows` or 256 MiB of text have been read. None when there is no document."""
    blocks: list[Block] = []
    read = (block for unit in plan.validation_units for block in read_blocks(unit, plan, "validation"))
    rows = None
    for count, block in enumerate(read, 1):
        blocks.append(block)
        rows = _pack_validation(blocks, data)
        if len(rows) >= data.validation_rows or count == VALIDATION_BLOCKS:
            break
    if rows is None or not len(rows):
        return None
    # Packed rows are sorted by length: a sample of them, not the first.
    kept = permute(np.arange(min(len(rows), data.validation_rows)), len(rows), (data.seed, 0)).tolist()
    size = sum(block.text_bytes for block in blocks) / 1e6
    logger.info("validation: %d of %d rows held out from the first %.1f MB of text", len(kept), len(rows), size)
    return Subset(rows, kept)


def _pack_validation(blocks: list[Block], data: DataSection) -> RowDataset:
    once = [source.model_copy(update={"weight": 1.0}) for source in data.sources]
    return pack_block(blocks, data.model_copy(update={"sources": once}))


_PROGRESS = "stream_progress"


@dataclass(frozen=True)
class _StreamCollator:
    """Batches with the progress that they make as a whole."""

    collator: Collator

    def __call__(self, rows: Sequence[StreamRow | Failure]) -> dict[str, Any] | Failure:
        good: list[StreamRow] = []
        for row in rows:
            if isinstance(row, Failure):
                return row
            good.append(row)
        progress = replace(
            good[-1].progress,
            counts=sum((row.progress.counts for row in good), Counter()),
            bad_records=tuple(record for row in good for record in row.progress.bad_records),
        )
        batch = self.collator([row.row for row in good])
        numbers = tuple((row.progress.item, row.progress.row - 1) for row in good)
        return {**batch, BATCH_INFO: replace(batch[BATCH_INFO], row_ids=numbers), _PROGRESS: progress}


@dataclass
class StreamBatches:
    """`TrainBatches` straight from raw sources. Raises UserError as reading does, and when too many records are bad.

    Without workers a thread reads ahead. Workers are forked from a server, a process that has this module imported and
    has done nothing else: a fork of one that has used the tokenizer's threads can hang. Bad records are listed in
    `run_dir / BAD_RECORDS` by all ranks, and once more where a run that was killed reads them again; the counts in
    `position` are exact. `sum_over_ranks`: the collective sum of a list of numbers.
    """

    plan: StreamPlan
    data: DataSection
    collator: Collator
    options: LoaderOptions
    micro_batch_size: int
    run_dir: Path
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sum_over_ranks: Callable[[list[float]], list[float]] = lambda values: values

    @property
    def position(self) -> dict[str, Any]:
        """Of all readers; collective. `counts` are those of the first pass, by `COUNTED` and `PACKED`."""
        own = [0.0] * (2 * self._deal.readers)
        for reader in range(self.rank * self._per_rank, (self.rank + 1) * self._per_rank):
            own[2 * reader : 2 * reader + 2] = self._deal.positions[reader]
        names = (*COUNTED, *PACKED)
        summed = [round(value) for value in self.sum_over_ranks([*own, *(float(self._counts[key]) for key in names)])]
        moved, counts = summed[: len(own)], summed[len(own) :]
        deal = Deal(self._deal.slices, tuple(zip(moved[::2], moved[1::2], strict=True)))
        self._agreed_passes = self._count_passes(deal.positions)
        return {
            "deals": [{"slices": deal.slices, "positions": deal.positions} for deal in (*self._earlier, deal)],
            "turn": self._turn,
            "counts": dict(zip(names, counts, strict=True)),
        }

    @property
    def epoch(self) -> float:
        """Passes that the slowest reader of all ranks had done when they last agreed on a position: at the start and at
        each checkpoint. Ranks must not differ in it, and none knows of the others what a step has changed."""
        return self._agreed_passes

    @property
    def passes(self) -> float:
        """Passes that the slowest reader of this rank has done, in whole units: those of a compressed file or of a
        source with a limit are done all at once."""
        own = self._deal.positions[self.rank * self._per_rank : (self.rank + 1) * self._per_rank]
        return self._count_passes(own)

    def _count_passes(self, positions: Sequence[Position]) -> float:
        return min(positions)[0] / (self._deal.slices * len(self.plan.units))

    def start(self, position: Any, copy_span: Span = nullcontext) -> None:
        """Continue from `position`."""
        self._per_rank = max(1, self.options.num_workers)
        readers, num_units = self.world_size * self._per_rank, len(self.plan.units)
        deals = position["deals"] if position else []
        saved = [Deal(deal["slices"], tuple((item, row) for item, row in deal["positions"])) for deal in deals]
        *self._earlier, self._deal = deal_to(readers, num_units, saved)
        self._agreed_passes = self._count_passes(self._deal.positions)
        self._repeats = self._agreed_passes >= 1
        goes_on = saved and self._deal is saved[-1]
        self._turn = position["turn"] if position and goes_on else 0
        # Of a resumed run, rank 0 alone holds what was counted so far: the counts are summed over ranks.
        self._counts = Counter(position["counts"] if position and self.rank == 0 else {})
        if self._deal.slices > 1:
            shared = f"each is read whole by {self._deal.slices} of them, for a share of its rows"
            logger.info("stream: %d unit%s for %d readers: %s", num_units, "s" * (num_units > 1), readers, shared)
        self._copy_span = copy_span if self.device.type == "cuda" else nullcontext  # it may hold who holds this
        self._open()

    def _open(self) -> None:
        rows = StreamRows(self.plan, self.data, (*self._earlier, self._deal), self.rank, self._turn)
        batches = _load_batches(rows, _StreamCollator(self.collator), self.options, self.micro_batch_size)
        if self.device.type == "cuda":
            batches = copy_ahead(batches, CudaCopies(self.device), self._copy_span)
        self._batches = batches

    def count_steps(self, num_epochs: float, gradient_accumulation_steps: int) -> int:
        """Raises UserError: a stream has no length."""
        raise UserError("data.streaming: the length of a pass is not known before it is read: set training.max_steps")

    def describe_rows(self, row_ids: Sequence[Any]) -> str:
        """Rows by their numbers in the items of the stream: pieces of its units, in the order of reading."""
        return ", ".join(f"row {row} of the stream's item {item}" for item, row in row_ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next_over_losses(lambda: next(self._batches), self._open)
        self._advance(batch.pop(_PROGRESS))
        return batch

    def _advance(self, progress: ReaderPosition) -> None:
        self._deal = self._deal.with_positions({progress.reader: (progress.item, progress.row)})
        self._turn = (progress.reader + 1) % self._per_rank
        if progress.counts and not self._counts:
            lost = describe_changes(progress.counts)
            logger.info("stream: first block: %d documents%s", progress.counts["documents"], f", {lost}" * bool(lost))
        for record in progress.bad_records[: max(0, SHOWN_BAD_RECORDS - self._counts["bad_records"])]:
            logger.warning("bad record: %s", record)
        self._counts.update(progress.counts)
        if progress.bad_records:
            with open(self.run_dir / BAD_RECORDS, "ab") as file:
                file.write(b"".join(record.to_json_line() for record in progress.bad_records))
        passes = self.passes
        if passes >= 1 and not self._repeats:
            logger.info("stream: data.sources have been read to their end: from here on they repeat")
        self._repeats = passes >= 1
        records = sum(self._counts[key] for key in COUNTED)
        if records >= SHARE_RECORDS or self._repeats:
            check_bad_share(self._counts["bad_records"], records, self.data.max_bad_share, self.run_dir)


def _load_batches(
    rows: StreamRows, collate: _StreamCollator, options: LoaderOptions, micro_batch_size: int
) -> Iterator[dict[str, Any]]:
    """Not a method of what holds it: that would be a cycle, which the garbage collector takes apart in an order that
    leaves workers behind."""
    if options.num_workers:
        multiprocessing.set_forkserver_preload([__name__])
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_size=micro_batch_size,
        collate_fn=collate,
        num_workers=options.num_workers,
        prefetch_factor=options.prefetch_factor,
        pin_memory=options.pin_memory,
        multiprocessing_context="forkserver" if options.num_workers else None,
        generator=torch.Generator(),  # the default one is the model's
    )
    for batch in iterate_quietly(loader):
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        yield batch
