"""What the driver says goes into every second record; a driver that does not answer is named once."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from training.callbacks.gpu_monitor import GpuMonitor

DEVICE = torch.device("cuda", 1)


class Recorder:
    """A stand-in for the trainer."""

    def __init__(self):
        self.records = []
        self.add_to_record = self.records.append
        self.span = lambda name: nullcontext()


def run_steps(recorder, count):
    monitor = GpuMonitor(recorder, DEVICE, every=2)
    for step in range(1, count + 1):
        monitor.on_step_end(None, SimpleNamespace(global_step=step), None)
    return recorder.records


def test_both_metrics_of_the_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "utilization", {DEVICE: 37}.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", {DEVICE: (6 * 2**30, 24 * 2**30)}.__getitem__)
    expected = {"perf/gpu_utilization_pct": 37.0, "perf/gpu_memory_used_pct": pytest.approx(75.0)}
    assert run_steps(Recorder(), 5) == [expected, expected]


def test_a_driver_that_does_not_answer_is_named_once(monkeypatch, caplog):
    def refuse(device):
        raise RuntimeError("no such library")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert run_steps(Recorder(), 4) == []
    assert [record.getMessage() for record in caplog.records] == [
        "no GPU utilisation in this run: the driver does not answer (no such library)"
    ]
