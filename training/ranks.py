"""What ranks do together: one works for all, and sums and gathers. With one rank the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.launch import World

Result = TypeVar("Result")


def on_main_rank(world: World, function: Callable[[], Result]) -> Result:
    """Run `function` on rank 0 only and give every rank its result, or its exception: none waits for an answer."""
    if world.size == 1:
        return function()
    outcome: list[Any] = [None]
    if world.is_main:
        try:
            outcome = [function()]
        except Exception as error:  # whatever it is, the other ranks must hear of it
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def on_each_node(world: World, function: Callable[[], Result]) -> Result:
    """Run `function` on the first rank of each node and give its result to the others there, or the first exception of
    any node to all. It may take as long as it likes: `training.ddp_timeout` is not for it."""
    if world.size == 1:
        return function()
    waiting = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    outcome: Any = None
    if world.local_rank == 0:
        try:
            outcome = function()
        except Exception as error:  # whatever it is, the other ranks must hear of it
            outcome = error
    outcomes: list[Any] = [None] * world.size
    dist.all_gather_object(outcomes, outcome, group=waiting)
    for error in outcomes:
        if isinstance(error, Exception):
            raise error
    return outcomes[world.rank - world.local_rank]


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over the ranks in float64 (FLOPs of a window do not fit float32). Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_floats(value: float, device: torch.device) -> list[float]:
    """This value of every rank, by rank. Collective."""
    if not dist.is_initialized():
        return [value]
    values = [0.0] * dist.get_world_size()
    values[dist.get_rank()] = value
    return sum_over_ranks(values, device)


def gather_lists(values: list[float], device: torch.device) -> list[list[float]]:
    """These values, equally many everywhere, of every rank, by rank, in float64. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [values]
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    gathered = mine.new_empty(dist.get_world_size() * len(values))
    dist.all_gather_into_tensor(gathered, mine)
    return gathered.view(-1, len(values)).tolist()


class Agreement:
    """The greatest number that any rank posts, compared on the CPU while a device computes. Collective to build.

    timeout_seconds: how long a rank waits for the others.
    """

    def __init__(self, timeout_seconds: float) -> None:
        several = dist.is_initialized() and dist.get_world_size() > 1
        timeout = timedelta(seconds=timeout_seconds)
        # Of its own: collectives of one group have to come in one order, and those of DDP come from other threads.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if several else None
        self._number = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def post(self, number: int) -> None:
        """Tell the others. Collective; `read` comes before the next `post`."""
        self._number.fill_(number)
        if self._group is not None:
            self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def read(self) -> int:
        """The greatest number of the last `post`, once; 0 where none was posted since."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        number = int(self._number)
        self._number.zero_()
        return number
