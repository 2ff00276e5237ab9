"""A comparison as one PNG: ratios with their intervals, losses at equal tokens and equal time, phases, step times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from training.comparing.comparison import Comparison, Pair
from training.comparing.losses import load_curve
from training.comparing.sides import PHASE_KEYS, Side
from training.comparing.units import AXES, NATS, LossUnit, choose_units
from training.metrics import names
from training.reporting.charts import MAX_POINTS, draw_legend, style_axes
from training.reporting.palette import STACKING, light, phase_colour
from training.reporting.plots import PNG_DPI, to_png
from training.reporting.run_reader import Series
from training.reporting.statistics import downsample_min_max, find_upper_limit, smooth

SIDE_COLOURS = ("blue", "orange", "green", "purple", "sky", "red")
MAX_RATIO = 3.0
AXIS_LABELS = {"tokens": "tokens", "text_bytes": "bytes of text", "time_s": "seconds of training"}


def draw_comparison(comparison: Comparison) -> bytes:
    """The PNG."""
    rows = max(sum(len(pair.rows) for pair in comparison.pairs), 8)
    figure = Figure(figsize=(13, 6.6 + 0.24 * rows), dpi=PNG_DPI, facecolor=light("surface"), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(0.24 * rows, 3.2, 3.2))
    draw_ratios(figure.add_subplot(grid[0, 0]), comparison.pairs)
    draw_phases(figure.add_subplot(grid[0, 1]), comparison)
    unit = next(iter(choose_units(comparison.sides)), None)
    for column, axis in enumerate((unit or NATS).axes):
        ax = figure.add_subplot(grid[1, column])
        if unit is None:
            _say_why_not(ax)
        else:
            draw_losses(ax, comparison.sides, axis, unit)
    draw_steps(figure.add_subplot(grid[2, :]), comparison.sides)
    title = ", ".join(side.describe() for side in comparison.sides).replace("$", r"\$")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold", color=light("ink"))
    return to_png(figure)


def draw_ratios(ax: Axes, pairs: Sequence[Pair]) -> None:
    """A line a metric: the ratio as a dot, its interval as a bar; grey where it holds 1."""
    rows = [(pair, row) for pair in pairs for row in pair.rows if np.isfinite(row.interval.estimate)]
    style_axes(ax, xlabel=f"ratio to {pairs[0].a.name}, with its interval (coloured: excludes 1)")
    ends = [abs(np.log(end)) for _, row in rows for end in (row.interval.low, row.interval.high) if end]
    limit = float(np.exp(np.clip(np.median(ends) * 2.5 if ends else 0.1, 0.02, np.log(MAX_RATIO))))
    for place, (pair, row) in enumerate(rows):
        colour = light(_colour(pairs, pair) if row.interval.differs else "muted")
        low, high = row.interval.low or row.interval.estimate, row.interval.high or row.interval.estimate
        ax.plot([max(low, 1 / limit), min(high, limit)], [place, place], color=colour, linewidth=2.2, alpha=0.55)
        ax.plot(np.clip(row.interval.estimate, 1 / limit, limit), place, "o", color=colour, markersize=5)
    ax.set_xscale("log")
    ax.set_xlim(1 / limit, limit)
    ax.xaxis.set_major_locator(_ratio_ticks(limit))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.axvline(1, color=light("ink"), linewidth=0.8)
    many = len(pairs) > 1
    labels = [row.key.removeprefix("perf/") + (f"  {pair.b.name}" if many else "") for pair, row in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=8.5, color=light("ink"))
    ax.set_ylim(max(len(rows), 1) - 0.5, -0.5)


def draw_phases(ax: Axes, comparison: Comparison) -> None:
    """A stacked bar a side, ms per step."""
    style_axes(ax, xlabel="ms per step")
    ax.grid(False)
    sides = comparison.sides
    means = {comparison.pairs[0].a.name: [(row.key, row.a) for row in comparison.pairs[0].rows]}
    means |= {pair.b.name: [(row.key, row.b) for row in pair.rows] for pair in comparison.pairs}
    for phase in STACKING:
        key = names.phase_key(phase)
        values = np.array([dict(means[side.name]).get(key, 0.0) for side in sides])
        if key in PHASE_KEYS and values.any():
            left = np.array([sum(_below(dict(means[side.name]), phase)) for side in sides])
            ax.barh(range(len(sides)), values, left=left, height=0.55, color=phase_colour(phase), label=phase)
    ax.set_yticks(range(len(sides)), [side.name for side in sides], fontsize=11, color=light("ink"))
    ax.set_ylim(len(sides) - 0.4, -0.6)
    if ax.get_legend_handles_labels()[0]:
        draw_legend(ax, columns=5)


def _say_why_not(ax: Axes) -> None:
    text = "Losses of different tokenizers cannot be compared\nwithout a byte count"
    ax.text(0.5, 0.5, text, ha="center", va="center", color=light("muted"), transform=ax.transAxes)
    ax.set_axis_off()


def draw_losses(ax: Axes, sides: Sequence[Side], axis: str, unit: LossUnit) -> None:
    """Each run's smoothed training loss; the raw loss pale where a side has one run."""
    style_axes(ax, f"{unit.train_key} at {AXES[axis]}", f"{AXIS_LABELS[axis]}  (bold: mean of the last records)")
    for place, side in enumerate(sides):
        colour = light(SIDE_COLOURS[place % len(SIDE_COLOURS)])
        for number, run in enumerate(side.runs):
            curve = load_curve(run, axis, unit.train_key)
            if curve is None:
                continue
            if len(side.runs) == 1:
                ax.plot(curve.x, curve.y, color=colour, linewidth=0.8, alpha=0.25)
            smoothed = curve.smoothed()
            label = side.name if number == 0 else "_"
            ax.plot(smoothed.x, smoothed.y, color=colour, linewidth=1.6, alpha=0.85, label=label, dashes=_dashes(place))
    draw_legend(ax)


def draw_steps(ax: Axes, sides: Sequence[Side]) -> None:
    """Step times of every run, pale, with their running means."""
    style_axes(ax, "ms per step", "optimizer step  (bold: mean of the last records)")
    every = []
    for place, side in enumerate(sides):
        colour = light(SIDE_COLOURS[place % len(SIDE_COLOURS)])
        for number, run in enumerate(side.runs):
            series = run.series(names.PERF_STEP_MS).finite()
            if not len(series):
                continue
            shown = downsample_min_max(series, MAX_POINTS)
            smoothed = downsample_min_max(
                Series(series.key, series.rows, series.steps, smooth(series.values)), MAX_POINTS
            )
            ax.plot(shown.steps, shown.values, color=colour, linewidth=0.8, alpha=0.2)
            label = side.name if number == 0 else "_"
            ax.plot(smoothed.steps, smoothed.values, color=colour, linewidth=1.5, label=label, dashes=_dashes(place))
            every.append(series.values)
    if every:
        ax.set_ylim(0, find_upper_limit(np.concatenate(every)))
        draw_legend(ax)


def _below(means: dict[str, float], phase: str) -> list[float]:
    return [means.get(names.phase_key(lower), 0.0) for lower in STACKING[: STACKING.index(phase)]]


def _colour(pairs: Sequence[Pair], pair: Pair) -> str:
    return SIDE_COLOURS[(1 + list(pairs).index(pair)) % len(SIDE_COLOURS)]


def _dashes(place: int) -> tuple[float, float]:
    """Later sides are dashed, so that a curve under an equal one is seen."""
    return (1, 0) if place == 0 else (4, 1.5 * place)


def _ratio_ticks(limit: float) -> FixedLocator:
    ends = np.linspace(0, np.log(limit), 4)
    return FixedLocator(np.exp(np.concatenate((-ends[:0:-1], ends))).tolist())
