import io

import numpy as np
from rich.console import Console

from training.metrics import names
from training.reporting.dashboard import BLOCKS, Dashboard, draw_sparkline

from .conftest import SUMMARY, make_records, to_lines


def screen(run_dir, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(Dashboard(run_dir).render(width))
    return console.export_text()


def test_full_screen(full_run):
    text = screen(full_run)
    for part in (
        "finished",
        "step 600 of 600",
        "unigram entropy",
        "6.4310",
        "forward",
        "tokens/s",
        "MFU",
        "final/ reloads",
    ):
        assert part in text, part
    assert any(block in text for block in BLOCKS)


def test_a_run_that_has_only_just_started(write_run):
    text = screen(write_run())
    assert "nothing logged yet" in text and "not measured" in text and "none yet" in text


def test_a_line_without_perf_keys_and_a_narrow_terminal(write_run):
    run_dir = write_run([{"step": 1, "time_s": 0.5, names.TRAIN_LOSS: 9.0}, {"step": 2, names.TRAIN_LOSS: None}])
    assert "phases: not measured" in screen(run_dir, width=40)


def test_markup_in_events_is_literal(write_run):
    events = [{"time": 0, "step": 1, "kind": "[bold]", "message": "[red]boom[/red] [/]"}]
    assert "[red]boom[/red] [/]" in screen(write_run(events=events))


def test_it_follows_the_file(write_run):
    run_dir = write_run([])
    dashboard = Dashboard(run_dir)
    dashboard.render()
    (run_dir / "metrics.jsonl").write_text(to_lines(make_records(50)))
    dashboard.render()
    assert dashboard.metrics.last_step == 50 and not dashboard.is_over()
    (run_dir / "summary.json").write_text("{}")
    assert dashboard.is_over()


def test_time_to_go_from_the_recent_pace(write_run):
    records = [{"step": step, "time_s": step * 0.5} for step in range(10, 110, 10)]
    run_dir = write_run(records, events=[{"kind": "start", "max_steps": 200}])
    assert "step 100 of 200" in screen(run_dir) and "50.0 s to go" in screen(run_dir)
    finished = write_run(records, SUMMARY, name="finished")
    assert "to go" not in screen(finished)


def test_sparkline():
    assert draw_sparkline(np.array([0.0, 7.0]), 10) == "▁█"
    assert draw_sparkline(np.array([]), 10) == "" and draw_sparkline(np.array([np.nan]), 10) == ""
    assert draw_sparkline(np.ones(3), 10) == "▄▄▄"
    falling = draw_sparkline(np.linspace(9, 3, 1000), 40)
    assert len(falling) == 40 and list(falling) == sorted(falling, reverse=True)
