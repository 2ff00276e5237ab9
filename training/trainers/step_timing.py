"""The phases of computing: `backward`, `optimizer`, and `comm_exposed`, exposed communication.

Communication that runs beside computation costs nothing and shows as nothing; what is timed is computation that waits.

- DeepSpeed: every collective goes through one backend object. A call of it, or the wait for its handle, belongs to
  `comm_exposed` while `forward`, `backward` or `optimizer` is on. On CUDA only on the stream that computes: on ZeRO's
  reduction stream (`overlap_comm`) it is hidden.
- DDP, and `overlap_comm`, reduce in the background and wait at the end of the backward pass: from the moment when the
  last gradient is computed to the return of `backward`. The moment comes from a callback of the autograd engine, queued
  when the pass begins, hence run before the reducer's own.
- DDP sends the model's buffers from rank 0 to the others at the beginning of a forward pass.

Waiting for a slower rank is in it: a collective ends when the last rank has come. One rank has no such phase. No number
that is trained changes. Cost: two clock readings (two events) per collective, one Python hook per backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from training.metrics import names
from training.metrics.phase_timer import PhaseTimer

Span = Callable[[str], AbstractContextManager[None]]

TIMED = "_redline_timed"
COMPUTING = (names.FORWARD, names.BACKWARD, names.OPTIMIZER)
COLLECTIVES = (
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_reduce", "all_reduce_coalesced",
    "all_to_all", "all_to_all_single", "broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor",
)  # fmt: skip


def time_step(trainer: Any, timer: PhaseTimer[Any]) -> None:
    """Wrap what a `ProfiledTrainer`, prepared for training, calls in a step; `timer`: its meter's."""
    span, device, several = trainer.span, trainer.args.device, trainer.args.world_size > 1
    if trainer.is_deepspeed_enabled:
        # accelerate's backward() runs engine.step() at the accumulation boundary; optimizer.step() is a no-op
        stepping = trainer.model_wrapped
        in_background = several and device.type == "cuda" and bool(stepping.zero_overlap_comm())
        if several:
            time_deepspeed_collectives(span, lambda: timer.phase in COMPUTING, device)
    else:
        stepping, in_background = trainer.optimizer, several
        if isinstance(ddp := trainer.model_wrapped, DistributedDataParallel):
            ddp._sync_buffers = _timed(ddp._sync_buffers, lambda: span(names.COMM_EXPOSED))
    stepping.step = _timed(stepping.step, lambda: span(names.OPTIMIZER))
    accelerator = trainer.accelerator
    accelerator.backward = time_backward(accelerator.backward, span, reduces_in_background=in_background)


def _timed(function: Callable[..., Any], span: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    """A second call of `train` finds some functions timed already: they stay as they are."""
    if hasattr(function, TIMED):
        return function

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with span():
            return function(*args, **kwargs)

    setattr(timed, TIMED, True)
    return timed


def time_backward(backward: Callable[..., Any], span: Span, *, reduces_in_background: bool) -> Callable[..., Any]:
    """`backward(loss, ...)` as the phase `backward`; with `reduces_in_background`, its end as `comm_exposed`."""
    if hasattr(backward, TIMED):
        return backward

    @functools.wraps(backward)
    def timed(loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as phases:
            phases.enter_context(span(names.BACKWARD))
            if reduces_in_background:

                def queue_end(_: torch.Tensor) -> None:
                    engine: Any = Variable._execution_engine
                    engine.queue_callback(lambda: phases.enter_context(span(names.COMM_EXPOSED)))

                loss.register_hook(queue_end)
            return backward(loss, *args, **kwargs)

    setattr(timed, TIMED, True)
    return timed


def time_deepspeed_collectives(span: Span, is_computing: Callable[[], bool], device: torch.device) -> None:
    """Have DeepSpeed's collectives timed from now on, while `is_computing()`."""
    from deepspeed.comm import comm

    main_stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def is_exposed() -> bool:
        return is_computing() and (main_stream is None or torch.cuda.current_stream(device) == main_stream)

    def time_calls(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not is_exposed():
                return function(*args, **kwargs)
            with span(names.COMM_EXPOSED):
                work = function(*args, **kwargs)
            return work if work is None else _TimedWork(work, span, is_exposed)

        return timed

    backend: Any = comm.cdb
    for name in COLLECTIVES:
        if hasattr(backend, name):
            setattr(backend, name, time_calls(getattr(backend, name)))


class _TimedWork:
    """The handle of an asynchronous collective, whose `wait` is timed."""

    def __init__(self, work: Any, span: Span, is_exposed: Callable[[], bool]) -> None:
        self._work = work
        self._span = span
        self._is_exposed = is_exposed

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_exposed():
            return self._work.wait(*args, **kwargs)
        with self._span(names.COMM_EXPOSED):
            return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
