"""Batches to a CUDA device, one ahead: while a step computes, the next batch is copied on a stream of its own.

The host batch is pinned (the loader does that), so the copy is asynchronous. The compute stream waits for a batch's own
copy only, by an event, and the host waits for nothing. `record_stream` tells the allocator that memory taken on the
copy stream is in use on the compute stream, so that it is not handed out again too soon.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

Batch = dict[str, Any]


@dataclass(frozen=True)
class Copied:
    """A batch on its way: `ready` is reached on the copy stream when it is there."""

    batch: Batch
    ready: Any


class CudaCopies:
    """The copy stream of a device."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> Copied:
        """Begin the copy of a batch on a stream of its own."""
        with torch.cuda.stream(self._stream):
            moved = {
                key: value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            return Copied(moved, self._stream.record_event())

    def finish(self, copied: Copied) -> Batch:
        """The batch, for use on the current stream."""
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(copied.ready)
        for value in copied.batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(compute)
        return copied.batch


def copy_ahead(
    batches: Iterator[Batch], copies: CudaCopies, wait: Callable[[], AbstractContextManager[None]]
) -> Iterator[Batch]:
    """The batches on the device, each copied while the one before it is in use. `wait` is opened around what the
    compute stream waits for."""
    ahead: Copied | None = None
    for batch in batches:
        current, ahead = ahead, copies.start(batch)
        if current is not None:
            with wait():
                ready = copies.finish(current)
            yield ready
    if ahead is not None:
        with wait():
            ready = copies.finish(ahead)
        yield ready
