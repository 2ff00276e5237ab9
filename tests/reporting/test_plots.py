import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_prep.errors import UserError
from training.metrics import names
from training.reporting.charts import MAX_POINTS, describe_loss, draw_lines, draw_loss, draw_phases
from training.reporting.facts import facts_from_run
from training.reporting.html import render_report
from training.reporting.plots import PANELS, plot_losses, plot_run, render_loss_svg, render_panel_svg
from training.reporting.run_reader import MetricsLog, load_run

from .conftest import make_records

PNG = b"\x89PNG\r\n\x1a\n"


def axes():
    return Figure().add_subplot()


def test_plot_losses_writes_whole_and_recent(write_run):
    run_dir = write_run(make_records(100))
    paths = plot_losses(run_dir, unigram_entropy_nats=6.4)
    assert [path.name for path in paths] == ["loss.png", "loss_recent.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert sorted(path.name for path in (run_dir / "plots").iterdir()) == [
        "loss.png",
        "loss_recent.png",
    ]  # no leftovers


def test_checkpoint_latest_and_final(write_run):
    run_dir = write_run(make_records(100))
    plot_losses(run_dir, checkpoint_step=100, final=True)
    present = {path.name for path in (run_dir / "plots").iterdir()}
    assert present == {"loss.png", "loss_recent.png", "loss_step_100.png", "loss_latest.png", "loss_final.png"}
    plots = run_dir / "plots"
    assert (plots / "loss_latest.png").read_bytes() == (plots / "loss_step_100.png").read_bytes()


def test_no_loss_yet_writes_nothing(write_run):
    run_dir = write_run()
    assert plot_losses(run_dir) == [] and not (run_dir / "plots").exists()
    null = write_run([{"step": 1, names.TRAIN_LOSS: None}], name="null")
    assert plot_losses(null) == []


def test_a_failed_write_leaves_the_old_plot(write_run, monkeypatch):
    run_dir = write_run(make_records(50))
    (path, _) = plot_losses(run_dir)
    before = path.read_bytes()

    def refuse(*args):
        raise OSError("disk full")

    monkeypatch.setattr("data_prep.atomic_files.os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        plot_losses(run_dir)
    assert path.read_bytes() == before


def test_metrics_passed_in_are_read_on(write_run):
    run_dir = write_run(make_records(50))
    metrics = MetricsLog(run_dir / "metrics.jsonl")
    plot_losses(run_dir, metrics=metrics)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, names.TRAIN_LOSS: 1.0}) + "\n")
    plot_losses(run_dir, metrics=metrics)
    assert metrics.last_step == 60


def test_bad_path(tmp_path):
    with pytest.raises(UserError):
        plot_losses(tmp_path / "nothing")


def test_long_runs_are_drawn_from_few_points_with_the_spike(write_run):
    loss = 3 + np.random.default_rng(0).normal(0, 0.1, 200_000)
    loss[150_000] = 500.0
    lines = "".join(f'{{"step": {step}, "train/loss": {value}}}\n' for step, value in enumerate(loss, 1))
    run_dir = write_run([])
    (run_dir / "metrics.jsonl").write_text(lines)
    ax = axes()
    assert draw_loss(ax, load_run(run_dir).metrics, 6.0)
    assert all(len(np.asarray(line.get_xdata())) <= MAX_POINTS for line in ax.lines)
    assert max(float(np.max(line.get_ydata())) for line in ax.lines) == 500.0
    assert ax.get_ylim()[1] < 10 and "1 point(s) above the axis, highest 500" in ax.get_xlabel()


def test_loss_shows_entropy_validation_and_not_finite(write_run):
    records = [*make_records(100), {"step": 110, names.TRAIN_LOSS: None}]
    ax = axes()
    assert draw_loss(ax, load_run(write_run(records)).metrics, 6.43)
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["training", "mean of the last 5 points", "validation", "not finite (1)"]
    assert [text.get_text() for text in ax.texts] == ["unigram entropy 6.430"]


def test_a_loss_that_is_not_finite_to_the_end_has_its_last_step(write_run):
    """As runs of an older version: finite up to step 4 of 10."""
    records = [{"step": step, names.TRAIN_LOSS: 5.0 - step / 10 if step <= 4 else None} for step in range(1, 11)]
    run = load_run(write_run(records))
    ax = axes()
    draw_loss(ax, run.metrics, None)
    assert ax.get_xlim()[1] >= 10
    rows = dict(describe_loss(run.metrics))
    assert "last" not in rows and rows["last (step 10)"] == "not finite; 4.6000 at step 4"
    facts = facts_from_run(run)
    assert (facts.steps, facts.loss_finite_until) == (10, 4)
    assert "not finite after step 4" in render_report(run)


def test_recent_shows_only_the_last_1000_steps(write_run):
    ax = axes()
    draw_loss(ax, load_run(write_run(make_records(3000))).metrics, None, recent=True)
    steps = np.concatenate([line.get_xdata() for line in ax.lines if len(np.asarray(line.get_xdata())) > 2])
    assert steps.min() > 2000 and steps.max() == 3000


def test_stacked_phases_add_up(write_run):
    run = load_run(write_run(make_records(600)))
    ax = axes()
    assert draw_phases(ax, run, share=True)
    top = np.asarray(ax.collections[-1].get_paths()[0].vertices)[:, 1].max()
    assert top == pytest.approx(100)
    assert names.CACHE_CLEAR not in ax.get_legend_handles_labels()[1]  # measured, but always 0
    assert draw_phases(axes(), load_run(write_run([{"step": 1, "perf/forward_ms": 2.0}], name="one")), share=False)


def test_equal_lines_are_drawn_once(write_run):
    records = [{"step": step, "a": step, "b": step, "c": 2 * step} for step in (1, 2, 3)]
    ax = axes()
    keys = {"a": ("a", "purple"), "c": ("c", "sky"), "b": ("b", "blue")}
    assert draw_lines(ax, load_run(write_run(records)), keys, "unit")
    assert ax.get_legend_handles_labels()[1] == ["c", "b"]


def test_svgs_are_xml_without_outside_references(full_run):
    run = load_run(full_run)
    svgs = [render_loss_svg(run, False), render_loss_svg(run, True)]
    svgs += [render_panel_svg(run, name) for name in PANELS if name != "gpu"]
    for svg in svgs:
        assert svg is not None
        ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert "var(--c-ink)" in svg and "<style" not in svg and "http" not in svg
    assert render_panel_svg(run, "gpu") is None  # not measured on a CPU


def test_plot_run_writes_each_measured_panel(full_run):
    present = {path.stem for path in plot_run(load_run(full_run))}
    assert present == {"loss", "loss_recent", "loss_final", "loss_latest", *PANELS} - {"gpu"}


def test_statistics_rows(write_run):
    rows = dict(describe_loss(load_run(write_run(make_records(600))).metrics, 6.431))
    assert rows["unigram entropy"] == "6.4310" and "recent mean (300 steps)" in rows
    assert describe_loss(load_run(write_run(name="empty")).metrics) == []
