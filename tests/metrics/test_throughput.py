"""Every ratio is checked against a number worked out by hand."""

from dataclasses import dataclass
from typing import Any, cast

import pytest

from tests.metrics.test_phase_timer import HandClock
from training.metrics import names
from training.metrics.flops import StepFlops
from training.metrics.peaks import Peak
from training.metrics.phase_timer import PhaseTimer
from training.metrics.throughput import WARMUP_STEPS, Meter, Rates, Totals


@dataclass
class TenFlopsAToken:
    """10 model FLOPs a useful token, 12 by PaLM's count, 15 for each position the machine works on."""

    def count(self, document_lengths, tokens, loss_tokens, *, rows):
        useful = sum(document_lengths)
        return StepFlops(model=10 * useful, palm=12 * useful, hardware=15 * tokens)


def build_meter(clock, **kwargs):
    peak = Peak(tflops=1e-9, source="measured", device="hand", dtype="bfloat16", spread_pct=None)  # 1000 FLOP/s
    meter = Meter(PhaseTimer(clock), model_flops=cast(Any, TenFlopsAToken()), rates=Rates(peak), **kwargs)
    meter.timer.start()
    return meter


def train_step(meter, clock, *, micro_steps=1, lengths=(30, 10), tokens=50, seconds=2.0):
    for _ in range(micro_steps):
        meter.add(lengths, rows=1, tokens=tokens, useful_tokens=sum(lengths), loss_tokens=38)
        with meter.timer.span(names.FORWARD):
            clock.now += seconds / micro_steps
    meter.end_step(allocated_bytes=3 * 10**9)


def test_a_window_is_work_over_the_time_of_the_same_steps():
    clock = HandClock()
    meter = build_meter(clock)
    train_step(meter, clock)
    train_step(meter, clock)
    window = meter.window()
    assert window[names.PERF_STEP_MS] == 2000
    assert window[names.phase_key(names.FORWARD)] == 2000
    assert window[names.PERF_TOKENS_PER_SECOND] == 20  # 40 useful tokens in 2 s; the 10 of padding are not tokens/s
    assert window[names.PERF_USEFUL_TOKENS_PCT] == 80
    assert window[names.PERF_MFU_PCT] == pytest.approx(20)  # 400 FLOPs in 2 s at 1000 FLOP/s
    assert window[names.PERF_MFU_PALM_PCT] == pytest.approx(24)
    assert window[names.PERF_HFU_PCT] == pytest.approx(37.5)
    assert window[names.PERF_MODEL_TFLOPS_PER_DEVICE] == pytest.approx(200e-12)


def test_accumulation_does_not_change_the_ratios():
    clock = HandClock()
    meter = build_meter(clock)
    train_step(meter, clock, micro_steps=4, seconds=8.0)
    window = meter.window()
    assert window[names.PERF_TOKENS_PER_SECOND] == 20
    assert window[names.PERF_MFU_PCT] == pytest.approx(20)
    assert window[names.PERF_STEP_MS] == 8000


def test_a_window_forgets_the_one_before_and_is_empty_without_steps():
    clock = HandClock()
    meter = build_meter(clock)
    train_step(meter, clock, seconds=100.0)
    meter.window()
    train_step(meter, clock)
    assert meter.window()[names.PERF_TOKENS_PER_SECOND] == 20
    assert meter.window() == {}


def test_work_and_time_of_a_step_that_is_not_readable_yet_wait_together():
    clock = HandClock()
    meter = build_meter(clock)
    train_step(meter, clock)
    clock.readable_until = clock.now
    train_step(meter, clock, seconds=8.0)
    assert meter.window()[names.PERF_TOKENS_PER_SECOND] == 20
    clock.synchronize()
    train_step(meter, clock, seconds=8.0)
    assert meter.window()[names.PERF_TOKENS_PER_SECOND] == 5


def test_two_ranks_add_their_tokens_and_average_their_time():
    """The other rank took twice as long over twice the tokens."""
    clock = HandClock()
    meter = build_meter(clock, gather=lambda values: [values, [2 * value for value in values]])
    train_step(meter, clock)
    window = meter.window()
    assert window[names.PERF_TOKENS_PER_SECOND] == pytest.approx(120 / 3)
    assert window[names.PERF_TOKENS_PER_SECOND_PER_DEVICE] == pytest.approx(20)


def test_the_ranks_are_held_against_each_other():
    """Three ranks step together: rank 1 computes for 3 s and waits for none, the others wait for it."""
    clock = HandClock()
    calls = []

    def gather(values):
        calls.append(values)
        ranks = [Totals.from_list(values) for _ in range(3)]
        for rank, (forward, waits) in zip(ranks, [(1.0, 2.0), (3.0, 0.0), (2.0, 1.0)], strict=True):
            rank.seconds |= {names.FORWARD: forward, names.COMM_EXPOSED: waits}
        return [rank.as_list() for rank in ranks]

    meter = build_meter(clock, gather=gather)
    with meter.timer.span(names.COMM_EXPOSED):
        clock.now += 0.5
    train_step(meter, clock)
    window = meter.window()
    assert len(calls) == 1  # one collective a window
    assert window[names.phase_key(names.FORWARD)] == 2000
    found = [window[names.spread_key(names.FORWARD, which)] for which in ("min", "median", "max")]
    assert found == [1000, 2000, 3000]
    assert window[names.spread_key(names.COMM_EXPOSED, "max")] == 2000
    assert window[names.PERF_SLOWEST_RANK] == 1
    assert window[names.PERF_SLOWEST_RANK_BEHIND_PCT] == pytest.approx(50)
    assert names.spread_key(names.EVAL, "max") not in window
    alone = build_meter(clock)
    train_step(alone, clock)
    assert names.PERF_SLOWEST_RANK not in alone.window()


def test_without_a_peak_there_is_no_mfu_and_without_flops_no_rate():
    clock = HandClock()
    meter = Meter(PhaseTimer(clock), model_flops=cast(Any, TenFlopsAToken()))
    meter.timer.start()
    train_step(meter, clock)
    window = meter.window()
    assert names.PERF_MFU_PCT not in window and names.PERF_MODEL_TFLOPS_PER_DEVICE in window
    bare = Meter(PhaseTimer(clock))
    bare.timer.start()
    train_step(bare, clock)
    assert names.PERF_MODEL_TFLOPS_PER_DEVICE not in bare.window()


def test_a_phase_that_never_ran_is_absent_and_one_that_did_is_zero_later():
    clock = HandClock()
    meter = build_meter(clock)
    train_step(meter, clock)
    assert names.phase_key(names.EVAL) not in meter.window()
    with meter.timer.span(names.EVAL):
        clock.now += 1
    train_step(meter, clock)
    assert meter.window()[names.phase_key(names.EVAL)] == 1000
    train_step(meter, clock)
    assert meter.window()[names.phase_key(names.EVAL)] == 0


def test_phases_of_a_window_sum_to_its_step_time():
    clock = HandClock()
    meter = build_meter(clock)
    clock.now += 0.7
    with meter.timer.span(names.DATA_WAIT):
        clock.now += 0.3
    train_step(meter, clock)
    window = meter.window()
    phases = sum(window[names.phase_key(p)] for p in names.PHASES if names.phase_key(p) in window)
    assert phases == pytest.approx(window[names.PERF_STEP_MS]) == pytest.approx(3000)


def test_the_epoch_is_in_seconds_and_starts_anew():
    clock = HandClock()
    meter = build_meter(clock)
    with meter.timer.span(names.DATA_WAIT):
        clock.now += 2
    train_step(meter, clock)
    clock.now += 1
    meter.end_step()  # memory is not read at every step
    epoch = meter.epoch()
    assert epoch[names.PERF_EPOCH_FORWARD_TIME] == 2
    assert epoch[names.PERF_EPOCH_DATA_LOADING_TIME] == 2
    assert epoch[names.PERF_EPOCH_DATA_LOADING_RATIO] == 0.4
    assert epoch[names.PERF_EPOCH_COMPUTE_RATIO] == 0.4
    assert epoch[names.PERF_EPOCH_AVG_MEMORY_GB] == 3
    assert meter.epoch() == {}


def test_the_run_leaves_its_warm_up_out():
    clock = HandClock()
    meter = build_meter(clock)
    for _ in range(WARMUP_STEPS):
        train_step(meter, clock, seconds=1000.0)
    train_step(meter, clock)
    assert meter.run_totals()[names.PERF_STEP_MS] == 2000


def test_what_runs_after_the_last_step_is_in_the_totals_of_the_run():
    clock = HandClock()
    meter = build_meter(clock)
    for _ in range(WARMUP_STEPS + 2):
        train_step(meter, clock)
    with meter.timer.span(names.EVAL):
        clock.now += 6
    meter.close()
    totals = meter.run_totals()
    assert totals[names.phase_key(names.EVAL)] == 3000  # 6 s over the two steps that count
    assert totals[names.PERF_STEP_MS] == 5000
    assert totals[names.PERF_TOKENS_PER_SECOND] == 8
