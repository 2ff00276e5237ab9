"""What only a GPU can show. Skipped, with the reason, where there is none."""

import time
from contextlib import nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.integration.conftest import Launch, launch, recipe  # noqa: F401  (fixtures)
from training.data.device_copy import CudaCopies, copy_ahead
from training.metrics import names
from training.metrics.idle import find_idle, read_trace
from training.metrics.phase_timer import CudaClock, PhaseTimer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def spin(milliseconds: float) -> None:
    """Keep the stream busy for about this long without the host waiting."""
    clock_khz = torch.cuda.get_device_properties(0).clock_rate
    torch.cuda._sleep(int(milliseconds * clock_khz))


def test_phases_are_device_time_and_the_host_never_waits():
    timer = PhaseTimer(CudaClock())
    spin(1)
    torch.cuda.synchronize()
    timer.start()
    for _ in range(3):
        with timer.span(names.FORWARD):
            spin(20)
        with timer.span(names.BACKWARD):
            spin(40)
            with timer.span(names.OPTIMIZER):
                spin(10)
        timer.end_step(None)
    assert timer.finished_steps() == []  # 210 ms are queued; had the host waited, they would be done
    steps = timer.finished_steps(wait=True)
    assert len(steps) == 3
    for step in steps:
        forward = step.seconds[names.FORWARD]
        assert step.seconds[names.BACKWARD] == pytest.approx(2 * forward, rel=0.05)
        assert step.seconds[names.OPTIMIZER] == pytest.approx(forward / 2, rel=0.05)


def test_idle_time_of_the_device_is_found_in_a_trace(tmp_path):
    """20 ms of work, 60 ms without any while the host waits for data, 20 ms of work, 30 ms of a host that is slow."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as traced:
        for phase, work, wait in ((names.DATA_WAIT, 20, 80), (names.FORWARD, 20, 50)):
            with record_function(phase):
                spin(work)
                time.sleep(wait / 1e3)
    path = tmp_path / "trace.json.gz"
    traced.export_chrome_trace(str(path))
    idle = find_idle(read_trace(path))
    assert idle is not None
    assert idle.data_ms == pytest.approx(60, abs=10)
    assert idle.launch_ms == pytest.approx(30, abs=10)


def test_batches_are_copied_while_the_device_computes():
    """The copy of the next batch is over before the work that was queued for the current one."""
    copies = CudaCopies(torch.device("cuda"))
    host = [{"input_ids": torch.full((64, 4096), n).pin_memory(), "n": n} for n in range(3)]
    batches = copy_ahead(iter(host), copies, nullcontext)
    first = next(batches)  # the copy of the second is under way
    copied = torch.cuda.Event()
    copied.record(copies._stream)
    spin(200)
    done = torch.cuda.Event()
    done.record()
    copied.synchronize()
    assert not done.query()
    for n, batch in enumerate([first, *batches]):
        assert batch["input_ids"].is_cuda and batch["n"] == n
        assert (batch["input_ids"] == n).all()


@pytest.mark.launch
def test_a_run_on_a_gpu_measures_copies_memory_and_utilisation(launch: Launch):  # noqa: F811
    flags = ["--gpu_every", "2", "perf.empty_cache_every=3", "perf.profile_steps=[3, 5]"]
    finished = launch("python", "run", *flags)
    last = finished.metrics()[-1]
    assert last[names.phase_key(names.H2D)] > 0
    assert last[names.PERF_MEMORY_RESERVED_GIB] >= last[names.PERF_MEMORY_ALLOCATED_GIB] > 0
    assert finished.values(names.phase_key(names.CACHE_CLEAR))[-1] >= 0
    assert finished.values(names.PERF_GPU_UTILIZATION_PCT)
    idle = finished.values(names.PERF_GPU_IDLE_DATA_MS)[0] + finished.values(names.PERF_GPU_IDLE_LAUNCH_MS)[0]
    steps = [record[names.PERF_STEP_MS] for record in finished.metrics() if 3 <= record["step"] <= 5]
    assert 0 < idle < sum(steps) / len(steps)  # of a model this small the GPU is idle most of the time
    assert finished.json("summary.json")["roofline"]["gigabytes_per_second"] > 50
    assert finished.json("env.json")["gpus"]
    assert "logits equal those in memory" in finished.output
