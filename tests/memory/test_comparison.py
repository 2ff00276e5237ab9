"""Prediction beside measurement at the end of a run: like with like, and never an error."""

from types import SimpleNamespace

import pytest
import torch

from training.memory import comparison
from training.memory.comparison import GIB, MemoryBase, compare_peak, measure_base

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOADED = SimpleNamespace(config=SimpleNamespace(argument=lambda name: 4))


@pytest.fixture
def predicted(monkeypatch):
    """6 GiB of tensors on the device, 2 GiB on the host."""
    estimate = SimpleNamespace(tensor_peak=6 * GIB, host=2 * GIB)
    planner = SimpleNamespace(estimate=lambda size: estimate, estimate_evaluation=lambda: None)
    monkeypatch.setattr(comparison, "Planner", lambda *_, **__: planner)
    return planner


def compare(device, base, peak):
    return compare_peak(LOADED, None, base, peak, world_size=1, device=device)  # pyright: ignore[reportArgumentType]


def test_a_gpu_counts_tensors_on_both_sides(predicted):
    found = compare(CUDA, measure_base(CUDA), 8.0)
    assert (found.predicted_gib, found.measured_gib, found.base_gib) == (6, 8, 0)
    assert found.predicted_pct == 75


def test_an_evaluation_counts_where_it_takes_more(predicted):
    for evaluation, expected in ((5, 6), (7, 7)):
        predicted.estimate_evaluation = lambda size=evaluation: SimpleNamespace(tensor_peak=size * GIB)
        assert compare(CUDA, measure_base(CUDA), 8.0).predicted_gib == expected


def test_a_cpu_process_is_counted_above_its_base(predicted):
    found = compare(CPU, MemoryBase(resident_gib=1.0, peak_gib=1.5), 11.0)
    assert (found.predicted_gib, found.measured_gib, found.predicted_pct) == (8, 10, 80)


def test_what_cannot_be_compared_is_null_with_its_reason(predicted):
    found = compare(CPU, MemoryBase(1.0, 12.0), 12.0)
    assert (found.measured_gib, found.predicted_pct, found.predicted_gib) == (None, None, 8)
    assert "held 12.00 GiB before" in found.note
    assert compare(CPU, MemoryBase(1.0, 1.0), None).note == "no peak was measured"


def test_a_model_that_cannot_be_planned_fails_no_run(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise KeyError("a new\nkind of layer")

    monkeypatch.setattr(comparison, "Planner", fail)
    found = compare(CPU, MemoryBase(1.0, 1.0), 2.0)
    assert found.predicted_gib is None
    assert "KeyError: 'a new\\nkind of layer'" in found.note
    assert len([record for record in caplog.records if "could not be predicted" in record.message]) <= 1


def test_base_of_this_process():
    base = measure_base(CPU)
    assert 0 < base.resident_gib <= base.peak_gib
