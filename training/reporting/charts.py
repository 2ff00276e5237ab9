"""Charts of a run, each drawn onto a given matplotlib axes; what the file format is, is decided elsewhere.

Lines are downsampled with their extremes kept. An axis is cut only when a few values would flatten all others, and
then each cut value is marked at the upper edge and counted in words. Non-finite losses are marked at the lower edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from training.metrics import names
from training.reporting.formatting import format_significant
from training.reporting.palette import STACKING, light, phase_colour
from training.reporting.phases import load_phase_times
from training.reporting.run_reader import MetricsLog, Run, Series
from training.reporting.statistics import (
    SeriesStatistics,
    compute_statistics,
    downsample_mean,
    downsample_min_max,
    find_upper_limit,
    recent_part,
    recent_window,
    smooth,
    smoothing_window,
)

MAX_POINTS = 1600
MAX_STACK_POINTS = 240
CROWDED_POINTS = 300


def style_axes(ax: Axes, ylabel: str = "", xlabel: str = "optimizer step") -> None:
    """Quiet axes: horizontal grid, no box, thousands separated."""
    ax.set_facecolor("none")
    ax.set_axisbelow(True)
    ax.grid(axis="y", color=light("grid"), linewidth=0.8)
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(light("muted"))
        spine.set_linewidth(0.8)
    ax.tick_params(colors=light("muted"), length=0, labelsize=9)
    ax.tick_params(axis="x", length=3, width=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_xlabel(xlabel, color=light("muted"), fontsize=9)
    ax.set_ylabel(ylabel, color=light("muted"), fontsize=9)
    ax.margins(x=0.01)


def draw_legend(ax: Axes, columns: int = 4) -> int:
    """Above the axes, left-aligned, without a frame; the number of its rows, for which the caller makes room."""
    if not ax.get_legend_handles_labels()[0]:
        return 0
    legend = ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, fontsize=9,
        labelcolor=light("ink"), borderaxespad=0.2, handlelength=1.4, columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip
    return math.ceil(len(legend.get_texts()) / columns)


def draw_loss(ax: Axes, metrics: MetricsLog, entropy: float | None, recent: bool = False) -> int:
    """Training loss raw and smoothed, evaluation points, unigram entropy (nats). Rows of the legend; 0: no loss.

    `recent` shows the last 1,000 steps (`statistics.recent_window`), their mean and one standard
    deviation as a band.
    """
    loss = metrics.series(names.TRAIN_LOSS)
    evaluation = metrics.series(names.EVAL_LOSS).finite()
    if not len(loss.finite()) and not len(evaluation):
        return 0
    window = smoothing_window(len(loss.finite()))
    smoothed = _smoothed(loss)
    if recent:
        begin = metrics.last_step - recent_window(metrics.last_step)
        loss, smoothed, evaluation = loss.after(begin), smoothed.after(begin), evaluation.after(begin)
    style_axes(ax, "loss (nats per token)")
    dots = len(loss) <= 150
    _line(ax, loss, "training", _Style("sky", 1.0, "." if dots else None))
    _line(ax, smoothed, f"mean of the last {window} points", _Style("blue", 2.0))
    _line(ax, evaluation, "validation", _Style("orange", 1.3, "o" if len(evaluation) <= 60 else None))
    if recent:
        _draw_band(ax, loss)
    elif entropy is not None:
        _draw_level(ax, entropy, f"unigram entropy {entropy:.3f}")
    _cut_axis(ax, loss)
    _mark_not_finite(ax, loss)
    if len(loss):
        ax.set_xlim(right=max(ax.get_xlim()[1], float(loss.steps[-1])))  # the last step is seen, finite or not
    return draw_legend(ax)


def draw_phases(ax: Axes, run: Run, share: bool) -> int:
    """Phases stacked over the run, ms per step or % of the step. Rows of the legend; 0: no phase was measured."""
    times = load_phase_times(run)
    if not len(times.steps) or not times.ms.any():
        return 0
    steps, ms = downsample_mean(times.steps, times.ms, MAX_STACK_POINTS)
    total = ms.sum(axis=1, keepdims=True)
    if share:
        ms = 100 * np.divide(ms, total, out=np.zeros_like(ms), where=total > 0)
    shown = [phase for phase in STACKING if phase in times.names and ms[:, times.names.index(phase)].max() > 0]
    layers = [ms[:, times.names.index(phase)] for phase in shown]
    if len(steps) == 1:
        steps, layers = np.array([steps[0] - 1, steps[0]]), [np.repeat(layer, 2) for layer in layers]
    style_axes(ax, "% of step" if share else "ms per step")
    ax.stackplot(steps, *layers, labels=shown, colors=[phase_colour(phase) for phase in shown], linewidth=0)
    upper = None if share else find_upper_limit(total[:, 0])
    ax.set_ylim(0, 100 if share else upper)
    if upper:
        _write_note(ax, f"{int((total > upper).sum())} point(s) above the axis, highest {total.max():,.0f} ms")
    return draw_legend(ax, columns=5)


def draw_lines(ax: Axes, run: Run, keys: dict[str, tuple[str, str]], ylabel: str, smoothed: bool = True) -> int:
    """Lines of `keys` {metric key: (label, colour name)} from zero upwards. Rows of the legend; 0: none was measured.

    With `smoothed`, a crowded line is drawn pale with its running mean in full. The last key is drawn in front; a line
    that equals it would be hidden and is left out, legend and all.
    """
    series = {key: run.series(key) for key in keys}
    measured = {key: points for key, points in series.items() if len(points.finite())}
    if not measured:
        return 0
    front = list(measured)[-1]
    measured = {key: line for key, line in measured.items() if key == front or not _is_same(line, measured[front])}
    style_axes(ax, ylabel)
    for key, points in measured.items():
        label, colour = keys[key]
        crowded = smoothed and len(points) > CROWDED_POINTS
        _line(ax, points, "" if crowded else label, _Style(colour, 1.6, alpha=0.25 if crowded else 1.0))
        if crowded:
            trailing = f"{label}, mean of the last {smoothing_window(len(points.finite()))} points"
            _line(ax, _smoothed(points), trailing, _Style(colour, 1.6))
    ax.set_ylim(0, 1.12 * max(float(points.finite().values.max()) for points in measured.values()) or 1.0)
    _cut_axis(ax, *measured.values(), from_zero=True)
    if ax.get_ylim()[1] >= 10_000:
        ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    return draw_legend(ax)


def describe_loss(metrics: MetricsLog, entropy: float | None = None) -> list[tuple[str, str]]:
    """Statistics of training loss as (label, text) rows; empty when there is none."""
    loss = metrics.series(names.TRAIN_LOSS)
    stats = compute_statistics(loss)
    if stats is None:
        return []
    rows = [
        ("first", f"{stats.first:.4f}"),
        _describe_last(loss, stats),
        (f"mean of the last {smoothing_window(stats.num_points)} points", f"{stats.smoothed:.4f}"),
        (f"lowest (step {stats.minimum_step:,})", f"{stats.minimum:.4f}"),
        (f"recent mean ({stats.recent_steps:,} steps)", f"{stats.recent_mean:.4f}"),
        ("recent standard deviation", f"{stats.recent_std:.4f}"),
        ("recent lowest", f"{stats.recent_minimum:.4f}"),
        ("recent highest", f"{stats.recent_maximum:.4f}"),
    ]
    if stats.recent_slope is not None:
        rows.append(("recent slope per 1,000", f"{stats.recent_slope:+.4f}"))
    evaluation = metrics.series(names.EVAL_LOSS).last()
    if evaluation is not None:
        rows.append(("validation, last", f"{evaluation:.4f}"))
    if entropy is not None:
        rows.append(("unigram entropy", f"{entropy:.4f}"))
    if stats.num_not_finite:
        rows.append(("points not finite", f"{stats.num_not_finite:,} of {len(loss):,}"))
    return rows


def _describe_last(loss: Series, stats: SeriesStatistics) -> tuple[str, str]:
    """The last step's loss; where that is not finite, the text says so and names the last step that was."""
    if math.isfinite(loss.values[-1]):
        return "last", f"{stats.last:.4f}"
    return f"last (step {int(loss.steps[-1]):,})", f"not finite; {stats.last:.4f} at step {stats.last_step:,}"


def _is_same(series: Series, other: Series) -> bool:
    return np.array_equal(series.rows, other.rows) and np.array_equal(series.values, other.values, equal_nan=True)


def _smoothed(series: Series) -> Series:
    finite = series.finite()
    return Series(series.key, finite.rows, finite.steps, smooth(finite.values))


@dataclass(frozen=True)
class _Style:
    colour: str
    width: float
    marker: str | None = None
    alpha: float = 1.0


def _line(ax: Axes, series: Series, label: str, style: _Style) -> None:
    shown = downsample_min_max(series, MAX_POINTS)
    if len(shown):
        marker = style.marker or ("." if len(shown) == 1 else None)
        ax.plot(
            shown.steps, shown.values, color=light(style.colour), label=label or "_", linewidth=style.width,
            marker=marker, alpha=style.alpha, markersize=4.5, solid_joinstyle="round",
        )  # fmt: skip


def _draw_level(ax: Axes, level: float, text: str) -> None:
    ax.axhline(level, color=light("green"), linewidth=1.4, linestyle=(0, (5, 3)))
    ax.annotate(
        text, (1, level), xycoords=("axes fraction", "data"), xytext=(-2, 4), textcoords="offset points",
        ha="right", va="bottom", fontsize=9, color=light("green"),
    )  # fmt: skip


def _draw_band(ax: Axes, series: Series) -> None:
    values = recent_part(series).finite().values
    if len(values) < 2:
        return
    mean, spread = values.mean(), values.std()
    ax.axhspan(mean - spread, mean + spread, color=light("blue"), alpha=0.08, linewidth=0)
    ax.axhline(mean, color=light("blue"), linewidth=1.0, linestyle=(0, (2, 3)), label="mean ± 1 std")


def _cut_axis(ax: Axes, *series: Series, from_zero: bool = False) -> None:
    values = np.concatenate([points.finite().values for points in series])
    upper = find_upper_limit(values)
    if upper is None:
        return
    lowest = float(values.min())
    ax.set_ylim(0 if from_zero else lowest - 0.05 * (upper - lowest), upper)
    above = [points.where(points.values > upper) for points in series]
    for points in above:
        marks = downsample_min_max(points, 200).steps
        ax.plot(marks, np.full(len(marks), upper), linestyle="", marker="^", color=light("red"), clip_on=False)
    highest = max(float(points.values.max()) for points in above if len(points))
    _write_note(ax, f"{sum(map(len, above))} point(s) above the axis, highest {format_significant(highest)}")


def _mark_not_finite(ax: Axes, series: Series) -> None:
    broken = series.where(~np.isfinite(series.values))
    if len(broken):
        marks = broken.steps[np.linspace(0, len(broken) - 1, min(len(broken), 200)).astype(int)]
        ax.plot(
            marks, np.zeros(len(marks)), transform=ax.get_xaxis_transform(), linestyle="", marker="x",
            color=light("red"), clip_on=False, label=f"not finite ({len(broken)})",
        )  # fmt: skip


def _write_note(ax: Axes, text: str) -> None:
    ax.set_xlabel(f"{ax.get_xlabel()}  ({text})", color=light("red"))
