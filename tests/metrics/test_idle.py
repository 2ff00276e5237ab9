"""Idle time of a GPU against a hand-made trace and against a count of every microsecond."""

import gzip
import json

import numpy as np
import pytest

from training.metrics.idle import AWAY, BUSY, DATA, find_idle, read_trace
from training.metrics.names import PHASES


def annotate(phase, start, end):
    return {"ph": "X", "cat": "user_annotation", "name": phase, "ts": start, "dur": end - start}


def kernel(start, end, cat="kernel"):
    return {"ph": "X", "cat": cat, "name": "gemm", "ts": start, "dur": end - start}


def test_a_trace_by_hand(tmp_path):
    events = [
        annotate("data_wait", 1000, 4000),
        kernel(500, 2000),  # still of the step before: its tail covers a third of the wait
        annotate("forward", 4000, 7000),
        kernel(4500, 5500),
        kernel(5000, 6000),  # on another stream, at the same time
        annotate("logging", 7000, 8000),
        annotate("backward", 8000, 10000),
        kernel(8000, 9000, "gpu_memset"),
        annotate("h2d", 7200, 7400),  # within the logging: no wait of a step
        {"ph": "X", "cat": "gpu_user_annotation", "name": "forward", "ts": 4000, "dur": 6000},  # no work
        {"ph": "i", "name": "mark", "ts": 0},
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    idle = find_idle(read_trace(path))
    assert idle is not None
    # data: 2000-4000. Launch: 4000-4500, 6000-7000, 9000-10000. Logging, 7000-8000, is neither.
    assert (idle.total_ms, idle.data_ms, idle.launch_ms) == (5.5, 2.0, 2.5)


@pytest.mark.parametrize("seed", range(5))
def test_random_traces_against_a_count_of_microseconds(seed):
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.choice(2000, 12, replace=False)).tolist()
    spans = [(start, end, rng.choice(PHASES)) for start, end in zip(edges, edges[1:], strict=False)]
    starts = rng.integers(0, 2000, 40)
    works = [(int(start), int(start + rng.integers(0, 60)), rng.choice(BUSY)) for start in starts]
    idle = find_idle([annotate(p, s, e) for s, e, p in spans] + [kernel(s, e, str(c)) for s, e, c in works])
    busy, kinds = np.zeros(2100, bool), np.full(2100, "outside", dtype=object)
    for start, end, _ in works:
        busy[start:end] = True
    for start, end, phase in spans:
        kinds[start:end] = "data" if phase in DATA else "away" if phase in AWAY else "launch"
    counted = {kind: int((~busy & (kinds == kind)).sum()) / 1e3 for kind in ("data", "launch", "away")}
    assert idle is not None
    assert (idle.data_ms, idle.launch_ms) == pytest.approx((counted["data"], counted["launch"]))
    assert idle.total_ms == pytest.approx(sum(counted.values()))


def test_a_trace_without_a_gpu_says_nothing():
    assert find_idle([annotate("forward", 0, 10)]) is None
    assert find_idle([kernel(0, 10)]) is None
