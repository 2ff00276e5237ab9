"""Operators for whose result the host waits where tensors lie on a GPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"})


class CountReads(TorchDispatchMode):
    """Notes the operators that wait while `is_on`, each with where it was called from ("file.py:function"), the
    innermost frame last."""

    def __init__(self, is_on: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.is_on = is_on
        self.found: list[tuple[str, list[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it; all operators come by here."""
        name = func._schema.name.split("::")[1]
        if name in WAITING and self.is_on():
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """One was found."""
        frames = [f"{Path(frame.filename).name}:{frame.name}" for frame in traceback.extract_stack()]
        self.found.append((name, frames))

    def outside(self, allowed: Iterable[str]) -> list[tuple[str, list[str]]]:
        """Those that no function of `allowed` called."""
        return [(name, frames) for name, frames in self.found if not set(frames) & set(allowed)]


class RefuseReads(CountReads):
    """Fails where the first one is."""

    def note(self, name: str) -> None:
        """Raises AssertionError."""
        raise AssertionError(f"{name}: the host would wait for the device")
