"""The training rows of this rank as an endless iterator of batches that knows where it stands.

`position` is that of the batches handed out, not of those that workers prepare ahead: it goes into the checkpoint, and
`start(position)` continues from there at once, at any depth. The loader draws nothing from torch's global random state,
so its workers and restarts leave dropout as it was.

Workers: none on a CPU, where batches are views of mapped memory and the cores train; on a GPU half of this rank's cores
but at most 16, kept over epochs, with pinned memory. One worker gives some hundred million tokens a second.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.errors import UserError
from data_prep.options import DataSection
from training.data.batch import BATCH_INFO, padded_width
from training.data.batching import Batching, BudgetBatches, FixedBatches
from training.data.collator import Collator
from training.data.dataset import Row, RowDataset
from training.data.device_copy import CudaCopies, copy_ahead
from training.data.order import LengthGroupedRows, ShuffledRows
from training.data.workers import iterate_quietly, next_over_losses

logger = logging.getLogger("redline.data")

MAX_WORKERS = 16
SAMPLED_BATCHES = 256
SHOWN_DOCUMENTS = 12

Span = Callable[[], AbstractContextManager[None]]


class TrainBatches(Protocol):
    """What the Trainer takes its batches from: those of this rank, without end, on its device."""

    @property
    def position(self) -> Any:
        """What a checkpoint keeps: where the stream stands once the batches handed out are trained on (JSON)."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the data at `position`, the same on every rank."""
        ...

    @property
    def passes(self) -> float:
        """Passes over the data as far as this rank knows: never less than `epoch`."""
        ...

    def start(self, position: Any, copy_span: Span = nullcontext) -> None:
        """Begin at a position (None: at the beginning); time that compute waits for a copy goes into `copy_span`."""
        ...

    def count_steps(self, num_epochs: float, gradient_accumulation_steps: int) -> int:
        """Optimizer steps from `position` to the end of this many epochs."""
        ...

    def describe_rows(self, row_ids: Sequence[Any]) -> str:
        """Rows of a batch, for whoever looks for them in the data."""
        ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def __next__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are prepared: `num_workers` processes (0: this one), each `prefetch_factor` batches ahead."""

    num_workers: int = 0
    prefetch_factor: int | None = None
    persistent_workers: bool = False
    pin_memory: bool = False
    multiprocessing_context: str | None = None


def choose_num_workers(requested: int | Literal["auto"], *, device_type: str, cores: int, local_ranks: int) -> int:
    """Worker processes of this rank: those asked for, else none on a CPU and half of the rank's cores on a GPU."""
    if requested != "auto":
        return requested
    return min(MAX_WORKERS, max(1, cores // local_ranks // 2)) if device_type == "cuda" else 0


@dataclass
class StoreBatches:
    """`TrainBatches` over the rows of a store. `drop_last`: a run of whole epochs leaves out the rows at its very end
    that do not fill a step; otherwise the next epoch's first rows fill it."""

    rows: Dataset[Row]
    batching: Batching
    collator: Collator
    options: LoaderOptions
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    drop_last: bool = True
    position: int = 0

    @property
    def epoch(self) -> float:
        """Epochs done, as a fraction."""
        return self.position / self.batching.num_rows

    @property
    def passes(self) -> float:
        """Passes over the rows, as records show them."""
        return self.epoch

    def start(self, position: Any, copy_span: Span = nullcontext) -> None:
        """Continue from `position`."""
        self.position = position or 0
        self._copy_span = copy_span if self.device.type == "cuda" else nullcontext  # it may hold who holds this
        self._open()

    def _open(self) -> None:
        sampler = _RankRows(self.batching.cut(self.position, self.rank, self.world_size))
        batches = _load(self.rows, sampler, self.collator, self.options)
        if self.device.type == "cuda":
            batches = copy_ahead(batches, CudaCopies(self.device), self._copy_span)
        self._batches = batches

    def count_steps(self, num_epochs: float, gradient_accumulation_steps: int) -> int:
        """Optimizer steps of so many epochs."""
        end = max(1, round(num_epochs * self.batching.num_rows))
        if end <= self.position:
            return 0
        steps = self.batching.count_rounds(self.position, end, self.world_size) / gradient_accumulation_steps
        return max(self.position == 0, int(steps)) if self.drop_last else math.ceil(steps)

    def describe_rows(self, row_ids: Sequence[Any]) -> str:
        """Numbers of rows, and of their documents in the store's training split."""
        name = f"row{'s' * (len(row_ids) > 1)} {', '.join(map(str, row_ids))}"
        if not isinstance(self.rows, RowDataset):
            return name
        offsets, documents = self.rows.plan.row_offsets, self.rows.plan.pieces.document
        found = [number for row in row_ids for number in documents[offsets[row] : offsets[row + 1]].tolist()]
        shown = ", ".join(map(str, found[:SHOWN_DOCUMENTS])) + ", …" * (len(found) > SHOWN_DOCUMENTS)
        return f"{name}: document{'s' * (len(found) > 1)} {shown} of train"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next_over_losses(lambda: next(self._batches), self._open)
        self.position = batch.pop(_END)
        return batch


_END = "end_position"


def _load(
    rows: Dataset[Row], sampler: "_RankRows", collator: Collator, options: LoaderOptions
) -> Iterator[dict[str, Any]]:
    """Batches on the host, each with the position after it.

    No method: who holds the generator must be its only holder, or its workers are let go of by the garbage collector,
    after a wait of 5 s for each.
    """
    loader = DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=options.num_workers,
        prefetch_factor=options.prefetch_factor,
        persistent_workers=options.persistent_workers,
        pin_memory=options.pin_memory,
        multiprocessing_context=options.multiprocessing_context,
        generator=torch.Generator(),
    )
    for batch in iterate_quietly(loader):
        end, numbers = sampler.ends.popleft()
        yield {**batch, BATCH_INFO: replace(batch[BATCH_INFO], row_ids=numbers), _END: end}


class _RankRows(Sampler[list[int]]):
    """Row numbers for the DataLoader, which asks for them in this process and hands batches out in the same order."""

    def __init__(self, batches: Iterator[Any]):
        self.ends: deque[tuple[int, tuple[int, ...]]] = deque()  # the position after a batch, and its rows
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            self.ends.append((batch.end, tuple(batch.rows)))
            yield batch.rows


def build_batching(lengths: np.ndarray, data: DataSection, micro_batch_size: int) -> Batching:
    """How rows of these lengths are ordered and batched; says how much of a batch is padding.

    Raises UserError when there are no rows, or one is over `data.max_tokens_per_batch`.
    """
    if not len(lengths):
        raise UserError(
            "data.sources: no row to train on: every document is empty, left out, held out, or cut off before its "
            "first token with loss; the line on training rows above counts them"
        )
    multiple = data.pad_to_multiple_of
    if data.max_tokens_per_batch:
        budget = data.max_tokens_per_batch
        batching = BudgetBatches(lengths, data.seed, max_tokens=budget, multiple=multiple, seq_len=data.seq_len)
    else:
        order = LengthGroupedRows(lengths, data.seed) if data.group_by_length else ShuffledRows(len(lengths), data.seed)
        batching = FixedBatches(order, micro_batch_size)
    if data.packing == "none":
        useful, rows = measure_useful_share(batching, lengths, multiple, data.seq_len)
        how = (
            f"at most {data.max_tokens_per_batch} tokens each"
            if data.max_tokens_per_batch
            else ("grouped by length" if data.group_by_length else "in random order")
        )
        logger.info("batches: %.1f rows, %s, %.1f %% of the tokens useful", rows, how, 100 * useful)
    return batching


def measure_useful_share(batching: Batching, lengths: np.ndarray, multiple: int, seq_len: int) -> tuple[float, float]:
    """Share of the tokens of padded batches that are no padding, and mean rows of a batch, over the first batches."""
    useful = padded = rows = 0
    batches = [batch.rows for batch in islice(batching.cut(0, 0, 1), SAMPLED_BATCHES)]
    for batch in batches:
        of_rows = lengths[batch]
        useful += int(of_rows.sum())
        padded += len(batch) * padded_width(int(of_rows.max()), multiple, seq_len)
        rows += len(batch)
    return useful / padded, rows / len(batches)
