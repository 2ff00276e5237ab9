"""Runs parts on a Ray cluster (`data.executor: ray`, requirements-ray.txt).

`data.ray_address` names the cluster (`HOST:PORT`, `auto`, `ray://…`); without it, a cluster of only this machine is
started. Every node needs this code and its requirements under the same paths. `data.store_dir` and the sources must be
on a file system that all nodes share: workers write their shards there, and return only counts. A part is a task that
uses one CPU. If its worker or node dies, the task runs again, up to three times. Usage statistics and the dashboard are
off.
"""

import importlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from data_prep.bounded import run_bounded
from data_prep.errors import UserError

MAX_RETRIES = 3
CONNECT_SECONDS = 10
P = TypeVar("P")
R = TypeVar("R")


def run_on_ray(function: Callable[[P], R], parts: Sequence[P], address: str | None) -> Iterator[tuple[int, R]]:
    """Yield results as parts finish.

    Raises UserError when Ray is not installed, the cluster cannot be reached, or a part's worker died too often. Also
    raises what `function` raises.
    """
    if not parts:
        return
    ray = _connect(address)
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_call)
    shared = ray.put(function)

    def find_done(running: list[Any], block: bool) -> list[Any]:
        return ray.wait(running, num_returns=1, timeout=None if block else 0)[0] if running else []

    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    yield from run_bounded(partial(task.remote, shared), find_done, partial(_get, ray), parts, workers)


def _call(function: Callable[[P], R], part: P) -> R:
    return function(part)


def _connect(address: str | None) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise UserError("data.executor: ray is not installed: pip install -r requirements-ray.txt") from None
    if ray.is_initialized():
        return ray
    try:
        _reach(address)
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"data.ray_address: no Ray cluster at {address or 'this machine'} ({reason})") from None
    return ray


def _reach(address: str | None) -> None:
    """Raises OSError or ValueError when HOST:PORT does not respond. Ray itself would retry for minutes."""
    if address and ":" in address and "://" not in address:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _get(ray: Any, task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"a data preparation task on Ray failed permanently ({reason}): run again") from None
