"""The benchmark on one small configuration in this process, its page, and what it refuses."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from training import launch
from training.benchmark.isolation import Outcome
from training.benchmark.memory import command, measuring
from training.benchmark.memory.command import main
from training.benchmark.memory.grid import GRID, QUICK, RESIDENT, GridInputs
from training.benchmark.memory.report import format_markdown


def run_here(function, *args, watch=False):
    """Instead of a fresh process: quicker by the imports."""
    return Outcome(function(*args))


@pytest.fixture
def process_as_before(monkeypatch):
    """What a process of its own would keep to itself."""
    monkeypatch.setattr(launch, "leave_out", lambda package: None)
    monkeypatch.setattr(measuring, "_quieten", lambda: None)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_grid_has_what_it_must():
    assert len(GRID) == len({case.name for case in GRID}) == 45
    assert sum(case.ranks == 1 for case in GRID) == 36
    assert {case.zero_stage for case in GRID if case.ranks == 2} == {None, 1, 2, 3}
    assert {case.family for case in GRID} == {"minigpt", "qwen2", "llama", "gpt2"}
    assert {case.method for case in GRID} == {"dense", "lora", "4-bit"}
    assert {case.attention for case in GRID} == {"masked", "causal", "eager", "documents"}
    assert {case.zero_stage for case in GRID} == {None, 1, 2, 3}
    for of in ("bf16", "checkpointing"):
        assert {getattr(case, of) for case in GRID} == {False, True}
    assert set(RESIDENT) <= set(GRID)


def test_a_quick_run_predicts_what_it_measures(tmp_path, monkeypatch, process_as_before):
    """Checkpointed Qwen2 in bf16 with a tied head: from a recipe through the real trainer to the page."""
    monkeypatch.setattr(command, "write_inputs", partial(measuring.write_inputs, families=()))
    page = tmp_path / "memory.md"
    assert main(["--quick", "--cpu", "--only", "2", "--output", str(page)], run_here) == 0
    (row,) = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert row["name"] == QUICK[1].name
    assert row["measured"] > 20e6
    assert abs(row["error_pct"]) < 3
    text = page.read_text()
    assert QUICK[1].name in text and "1 configurations: median absolute error" in text
    page.unlink()
    assert main(["--render", "--output", str(page)]) == 0
    assert page.read_text() == text


def test_two_real_ranks_share_what_zero_shares(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "write_inputs", partial(measuring.write_inputs, families=()))
    page = tmp_path / "memory.md"
    assert main(["--quick", "--cpu", "--only", "4", "--output", str(page)]) == 0
    (row,) = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert "ZeRO-2, 2 ranks" in row["name"]
    assert abs(row["error_pct"]) < 3
    trained = row["parts"]["parameters (always)"] / 2
    assert row["parts"]["fp32 master weights (always)"] == pytest.approx(4 * trained / 2)
    assert row["measured"] < 2 * trained + (4 + 8) * trained  # it could not hold all master weights and states


def test_of_several_ranks_the_highest_peak_counts():
    calls = []

    def run(function, *args: Any, watch: bool = False) -> Outcome[Any]:
        case, _, _, rank, port = args
        calls.append((rank, port))
        return Outcome(measuring.MeasuredCase(case.name, 100, 90 + rank, 1.0))

    case = next(case for case in GRID if case.ranks == 2)
    row = command.measure(case, GridInputs(Path(), use_cpu=True), run, 0)
    assert row["measured"] == 91
    assert {rank for rank, _ in calls} == {0, 1} and len({port for _, port in calls}) == 1
    row = command.measure(case, GridInputs(Path(), use_cpu=False), run, 1)
    assert row["reason"] == "needs 2 GPUs, here is 1"


def test_numbers_beyond_the_grid_are_refused(capsys):
    assert main(["--only", "46"]) == 2
    assert "the grid has the numbers 1 to 45" in capsys.readouterr().err


def test_the_page_says_what_was_missed_and_what_could_not_be_measured():
    machine = {"device": "CPU", "cpu_count": 2, "cpu": "x", "platform": "y", "python": "3", "packages": ["torch"],
               "torch": "2", "git_commit": "abc", "started": "now", "command": "c"}  # fmt: skip
    rows = [
        {"name": "good", "predicted": 101e6, "measured": 100e6, "error_pct": 1.0},
        {"name": "bad", "predicted": 80e6, "measured": 100e6, "error_pct": -20.0, "resident": 120e6},
        {"name": "gone", "reason": "it is not installed"},
    ]
    page = format_markdown({"machine": machine, "rows": rows})
    assert "2 configurations: median absolute error 10.50 % (**not** within 3 %), worst 20.00 % (**not**" in page
    assert "| 2 | bad | 80.0 | 100.0 | -20.00 % | 120.0 |" in page
    assert "- gone: it is not installed" in page
