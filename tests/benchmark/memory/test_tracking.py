"""The instruments, against tensors of known sizes."""

import threading

import pytest
import torch

from training.benchmark.memory.tracking import AllocatorEvents, PeakResident, find_peak_bytes

MB = 10**6


def hold(megabytes: int) -> torch.Tensor:
    return torch.ones(megabytes * MB // 4)


def test_balance_counts_what_lived_before_and_the_peak_of_the_step_alone():
    with AllocatorEvents() as events:
        before = hold(30)
        too_early = hold(90)
        del too_early
        events.begin_step()
        first, second = hold(20), hold(10)
        del first
        third = hold(5)
        events.end_step()
        too_late = hold(90)
    assert events.peak_bytes == pytest.approx(60 * MB, abs=4096)
    del before, second, third, too_late


def test_another_thread_lets_go_of_a_block():
    with AllocatorEvents() as events:
        blocks = [hold(50)]
        events.begin_step()
        thread = threading.Thread(target=blocks.clear)
        thread.start()
        thread.join()
        block = hold(20)
        events.end_step()
    assert events.peak_bytes == pytest.approx(50 * MB, abs=4096)
    del block


def test_without_its_span_nothing_is_measured():
    with pytest.raises(ValueError, match="0 spans"):
        find_peak_bytes([])


def test_resident_memory_of_the_step_alone():
    with PeakResident() as resident:
        too_early = hold(300)
        del too_early
        resident.begin_step()
        block = hold(120)
        del block
        resident.end_step()
    assert 110 * MB < resident.peak_bytes < 200 * MB
