"""What is said of compilations."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from torch._dynamo.utils import counters

from training.callbacks import compile_watch
from training.callbacks.compile_watch import CompileWatch
from training.run_dir import RunDir


@pytest.fixture
def watch(tmp_path, monkeypatch):
    counters.clear()
    monkeypatch.setattr(compile_watch, "find_last_reason", lambda: "size mismatch at index 1")
    run_dir = RunDir(tmp_path)
    found = CompileWatch(run_dir, writes=True)
    found.on_train_begin()
    yield found
    counters.clear()


def end_step(watch: CompileWatch, step: int, frames: int = 0) -> None:
    counters["frames"]["total"] += frames
    watch.on_step_end(None, SimpleNamespace(global_step=step), None)


def test_a_compilation_after_the_second_step_is_told_with_its_reason(watch, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, logger="redline.train"):
        for step, frames in enumerate((2, 1, 0), start=5):  # of a resumed run
            end_step(watch, step, frames)
        assert not caplog.messages
        end_step(watch, 8, 1)
        end_step(watch, 9)
    assert caplog.messages == ["compile: compiled again 1 time in step 8: size mismatch at index 1"]
    [event] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert event["kind"] == "recompile" and event["step"] == 8
    assert event["reason"] == "size mismatch at index 1"


def test_the_first_step_is_described_with_what_cuts_its_graphs(watch, caplog):
    counters["stats"]["unique_graphs"] = 3
    counters["aot_autograd"]["autograd_cache_hit"] = 1
    counters["aot_autograd"]["autograd_cache_miss"] = 2
    counters["graph_break"]["call to\n a function"] = 2
    with caplog.at_level(logging.INFO, logger="redline.train"):
        end_step(watch, 1, 3)
    assert caplog.messages == [
        "compile: 3 graphs, 1 of 3 in the cache",
        "compile: what is compiled is cut in 2 places: call to a function",
    ]
