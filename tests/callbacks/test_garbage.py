"""The garbage collector runs at the chosen steps, and automatically again afterwards."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from training.callbacks.garbage import GarbageCollection


class Node:
    pass


def make_cycle() -> None:
    node: Any = Node()
    node.itself = node


def count_nodes() -> int:
    return sum(isinstance(one, Node) for one in gc.get_objects())


def test_collects_at_its_steps_only_and_gives_back() -> None:
    trainer: Any = SimpleNamespace(span=lambda name: nullcontext())
    callback = GarbageCollection(trainer, every=2)
    assert gc.isenabled()
    callback.on_train_begin(None, None, None)
    try:
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        make_cycle()
        callback.on_step_end(None, SimpleNamespace(global_step=1), None)
        assert count_nodes() == 1
        callback.on_step_end(None, SimpleNamespace(global_step=2), None)
        assert count_nodes() == 0
    finally:
        callback.on_train_end(None, None, None)
    assert gc.isenabled() and gc.get_freeze_count() == 0
