"""Least times by hand; bytes of real optimizers; forward FLOPs against torch's own counter."""

from dataclasses import replace

import pytest
import torch

from tests.metrics.decoders import build_decoder
from training.metrics.flops import ModelFlops, measure_flops
from training.metrics.matmuls import Attention, Matmul, Matmuls
from training.metrics.peaks import Bandwidth, Peak
from training.metrics.roofline import OptimizerWork, Traffic, count_optimizer_work, find_roofline
from training.metrics.throughput import StepWork
from training.optim.choose import find_optimizer

PEAK = Peak(2.0, "measured", "cpu", "bfloat16")
BANDWIDTH = Bandwidth(10.0, "cpu", 1.0)


def test_bytes_of_two_layers_by_hand():
    trained = Matmul("up", 100, 400, weight_grad=True, input_grad=True)
    lowest = Matmul("q", 100, 50, weight_grad=True, input_grad=False)
    attention = Attention("a", 60, 40, None, True, True, True)
    traffic = Traffic.of(Matmuls([trained, lowest], [], [attention], []), 2)
    # per position: (100 + 400) + (100 + 50) numbers of matmuls, 60 + 40 of attention; weights 40,000 + 5,000
    assert (traffic.forward_per_token, traffic.forward_per_batch) == (2 * 750, 2 * 45_000)
    # backward: twice 500 (both gradients), once 150 (weight gradient), attention twice; weights 2 x 40,000 + 5,000
    assert (traffic.backward_per_token, traffic.backward_per_batch) == (2 * (1000 + 150 + 200), 2 * 85_000)
    done_again = [replace(trained, recomputed=True), lowest], [], [replace(attention, recomputed=True)], []
    again = Traffic.of(Matmuls(*done_again), 2)
    assert again.backward_per_token - traffic.backward_per_token == 2 * (500 + 100)
    assert again.backward_per_batch - traffic.backward_per_batch == 2 * 40_000
    assert traffic.count(10, 3) == {"forward": 15_000 + 270_000, "backward": 27_000 + 510_000}


def test_the_longer_of_two_bounds_is_the_least_time():
    work = StepWork(tokens=1000, micro_batches=2, hardware_flops=9e9, forward_flops=3e9)
    traffic = Traffic(1000, 0, 100_000, 0)
    phases = {"forward": 6.0, "backward": 20.0, "optimizer": 4.0, "other": 1.0}
    forward, backward, optimizer = find_roofline(phases, work, traffic, OptimizerWork(20_000_000), PEAK, BANDWIDTH)
    # forward: 3e9 / 2e12 = 1.5 ms of compute, 1e6 / 10e9 = 0.1 ms of memory
    assert (forward.bound, forward.least_ms, forward.reached_pct) == ("compute", pytest.approx(1.5), pytest.approx(25))
    # backward: 6e9 / 2e12 = 3 ms of compute, 1e8 / 10e9 = 10 ms of memory
    assert (backward.bound, backward.least_ms, backward.reached_pct) == ("memory", pytest.approx(10), pytest.approx(50))
    # optimizer: 2e7 / 10e9 = 2 ms
    assert (optimizer.bound, optimizer.least_ms, optimizer.reached_pct) == (
        "memory",
        pytest.approx(2),
        pytest.approx(50),
    )


def test_what_was_not_timed_or_lies_elsewhere_is_left_out():
    work = StepWork(1000, 1, 9e9, 3e9)
    found = find_roofline({"forward": 6.0, "optimizer": 1.0}, work, Traffic(1, 1, 1, 1), None, PEAK, BANDWIDTH)
    assert [phase.phase for phase in found] == ["forward"]
    weight = torch.nn.Parameter(torch.zeros(10))
    assert count_optimizer_work(torch.optim.SGD([weight]), find_optimizer("sgd"), torch.device("cuda")) is None


def test_an_adam_step_moves_28_bytes_a_parameter():
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(1000)
    optimizer.step()
    # gradient read, weight and two moments read and written: 7 x 4 bytes; and the counter of steps, twice 4 bytes
    work = count_optimizer_work(optimizer, find_optimizer("adamw_torch"), torch.device("cpu"))
    assert work == OptimizerWork(28_000 + 8, flops=0)


@pytest.mark.parametrize("name", ["qwen2", "minigpt"])
def test_forward_flops_are_those_that_torch_counts(name):
    model = build_decoder(name)
    ids = torch.randint(0, 64, (2, 16))
    with torch.no_grad():
        executed = measure_flops(lambda: model(input_ids=ids))
    counted = ModelFlops.from_model(model).count([16, 16], 32, 32, rows=2)
    assert counted.forward == pytest.approx(executed, rel=0.005)
    assert 2 < counted.hardware / counted.forward < 4
