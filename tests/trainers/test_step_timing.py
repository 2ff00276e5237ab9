"""What is timed around a step, on functions of our own; real launches are in integration/test_phases_are_true.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.metrics import names
from training.trainers.step_timing import time_backward, time_deepspeed_collectives, time_step


class Spans:
    """Notes phases as they are entered and left; calls that happen between, by name."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.seen.append(f"+{phase}")
        yield
        self.seen.append(f"-{phase}")


def make_loss() -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    return weight, (weight**2).sum()


def test_the_backward_pass_is_a_phase():
    spans, (weight, loss) = Spans(), make_loss()
    time_backward(lambda loss: loss.backward(), spans, reduces_in_background=False)(loss)
    assert spans.seen == ["+backward", "-backward"]
    assert weight.grad is not None and weight.grad.tolist() == [4.0, 6.0]


def test_what_follows_the_last_gradient_is_exposed_communication():
    spans, (weight, loss) = Spans(), make_loss()
    weight.register_hook(lambda grad: spans.seen.append("gradient"))

    def backward(loss: torch.Tensor) -> None:
        loss.backward()
        spans.seen.append("waited")

    time_backward(backward, spans, reduces_in_background=True)(loss)
    assert spans.seen == ["+backward", "gradient", "+comm_exposed", "waited", "-comm_exposed", "-backward"]


def make_trainer(spans: Spans, *, world_size: int = 1) -> Any:
    calls = spans.seen
    return SimpleNamespace(
        span=spans,
        args=SimpleNamespace(device=torch.device("cpu"), world_size=world_size),
        is_deepspeed_enabled=False,
        optimizer=SimpleNamespace(step=lambda: calls.append("step")),
        model_wrapped=torch.nn.Linear(1, 1),
        accelerator=SimpleNamespace(backward=lambda loss: loss.backward()),
    )


def test_optimizer_and_backward_pass_of_a_trainer_are_timed_once():
    """However often it is prepared: `train` may be called again."""
    spans = Spans()
    trainer = make_trainer(spans)
    for _ in range(2):
        time_step(trainer, SimpleNamespace(phase=names.FORWARD))  # pyright: ignore[reportArgumentType]
    trainer.accelerator.backward(make_loss()[1])
    trainer.optimizer.step()
    assert spans.seen == ["+backward", "-backward", "+optimizer", "step", "-optimizer"]


class Work:
    """A handle as collectives of torch return it."""

    done = "yes"

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def wait(self) -> str:
        self.calls.append("wait")
        return "waited"


@pytest.mark.parametrize("computing", [True, False])
def test_collectives_of_deepspeed_count_while_a_step_computes(monkeypatch, computing):
    from deepspeed.comm import comm

    spans = Spans()
    backend = SimpleNamespace(all_reduce=lambda tensor: Work(spans.seen), broadcast=lambda tensor: None, rank=3)
    monkeypatch.setattr(comm, "cdb", backend)
    time_deepspeed_collectives(spans, lambda: computing, torch.device("cpu"))
    work: Any = backend.all_reduce(torch.zeros(1))
    assert work.done == "yes" and work.wait() == "waited"
    assert backend.broadcast(torch.zeros(1)) is None and backend.rank == 3
    exposed = ["+comm_exposed", "-comm_exposed"]
    assert spans.seen == ([*exposed, "+comm_exposed", "wait", "-comm_exposed", *exposed] if computing else ["wait"])
