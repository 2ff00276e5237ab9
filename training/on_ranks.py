"""One rank works for all: rank 0, or the first of each node. The others get its result, or its exception."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

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
