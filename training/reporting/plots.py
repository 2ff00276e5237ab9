"""Plots as files: PNGs in the run directory, SVGs inside the report.

matplotlib is used through its object API (no pyplot, no global figure state), so that it is safe inside a trainer.
PNGs are written to a temporary name and renamed: a reader never sees half a picture. A call of `plot_losses` costs
about 0.2 s per figure at any length of the run (lines are downsampled), plus reading what metrics.jsonl gained.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.atomic_files import write_atomically
from training.metrics import names
from training.reporting.charts import describe_loss, draw_lines, draw_loss, draw_phases, style_axes
from training.reporting.formatting import as_number
from training.reporting.palette import light, to_css_variables
from training.reporting.run_reader import MetricsLog, Run, find_run_dir

LOSS_KEYS = frozenset({names.TRAIN_LOSS, names.EVAL_LOSS})
PNG_DPI = 110
LEFT_INCHES, RIGHT_INCHES, BELOW_INCHES = 0.75, 0.12, 0.52  # tick labels and the axis' name stand left and below
TITLE_INCHES, LEGEND_INCHES = 0.32, 0.22  # a row of the legend

MEMORY_KEYS = {
    names.PERF_MEMORY_PEAK_GIB: ("peak", "orange"),
    names.PERF_MEMORY_RESERVED_GIB: ("reserved", "sky"),
    names.PERF_MEMORY_ALLOCATED_GIB: ("allocated", "blue"),
}
DEVICE_KEYS = {
    names.PERF_GPU_MEMORY_USED_PCT: ("memory in use", "orange"),
    names.PERF_GPU_UTILIZATION_PCT: ("utilisation", "blue"),
}
MFU_KEYS = {
    names.PERF_HFU_PCT: ("HFU, all FLOPs executed", "purple"),
    names.PERF_MFU_PALM_PCT: ("MFU, PaLM's formula", "sky"),
    names.PERF_MFU_PCT: ("MFU", "blue"),
}

PHASE_KEYS = tuple(names.phase_key(phase) for phase in names.PHASES)


@dataclass(frozen=True)
class Panel:
    """A chart below the losses. `draw` returns the rows of its legend, 0 when none of `keys` was measured."""

    title: str
    keys: tuple[str, ...]
    draw: Callable[[Axes, Run], int]


def _build_lines_panel(title: str, keys: dict[str, tuple[str, str]], ylabel: str, smoothed: bool = True) -> Panel:
    return Panel(title, tuple(keys), lambda ax, run: draw_lines(ax, run, keys, ylabel, smoothed))


# One table for PNG files (named so) and the report.
PANELS: dict[str, Panel] = {
    "phases": Panel("Phases, ms per step", PHASE_KEYS, partial(draw_phases, share=False)),
    "phases_share": Panel("Phases, share of the step", PHASE_KEYS, partial(draw_phases, share=True)),
    "tokens_per_second": _build_lines_panel(
        "Throughput", {names.PERF_TOKENS_PER_SECOND: ("all devices", "blue")}, "tokens/s"
    ),
    "mfu": _build_lines_panel("FLOPs utilisation", MFU_KEYS, "% of peak"),
    "memory": _build_lines_panel("Memory", MEMORY_KEYS, "GiB"),
    "gpu": _build_lines_panel("GPU, as the driver reports it", DEVICE_KEYS, "%"),
    "grad_norm": _build_lines_panel("Gradient norm", {names.TRAIN_GRAD_NORM: ("before clipping", "blue")}, "norm"),
    "learning_rate": _build_lines_panel(
        "Learning rate", {names.TRAIN_LEARNING_RATE: ("first group", "green")}, "learning rate", smoothed=False
    ),
}


def plot_losses(
    run_dir: Path | str,
    *,
    checkpoint_step: int | None = None,
    final: bool = False,
    unigram_entropy_nats: float | None = None,
    metrics: MetricsLog | None = None,
) -> list[Path]:
    """Write the loss curves to `run_dir/plots/` and return the paths; an empty list when no loss was logged yet.

    Always `loss.png` (the whole run) and `loss_recent.png` (last 1,000 steps, see `statistics.recent_window`).
    With `checkpoint_step` N also `loss_step_N.png` and `loss_latest.png`, with `final` also `loss_final.png` and
    `loss_latest.png`: both curves and their statistics.
    Pass the same `metrics` at every call to read only what is new. Raises `UserError` when `run_dir` is no run,
    `OSError` when the disk refuses.
    """
    run_dir = find_run_dir(run_dir)
    metrics = MetricsLog(run_dir / "metrics.jsonl", LOSS_KEYS) if metrics is None else metrics
    metrics.poll()
    if not len(metrics.series(names.TRAIN_LOSS).finite()) and not len(metrics.series(names.EVAL_LOSS).finite()):
        return []
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    title = f"{run_dir.resolve().name}, step {metrics.last_step:,}"
    files = {
        "loss.png": _loss_figure(metrics, unigram_entropy_nats, f"Loss: {title}", (False,)),
        "loss_recent.png": _loss_figure(metrics, unigram_entropy_nats, f"Loss, recent: {title}", (True,)),
    }
    if checkpoint_step is not None or final:
        both = _loss_figure(metrics, unigram_entropy_nats, f"Loss: {title}", (False, True))
        if checkpoint_step is not None:
            files |= {f"loss_step_{checkpoint_step}.png": both, "loss_latest.png": both}
        if final:
            files |= {"loss_final.png": both, "loss_latest.png": both}
    return [write_atomically(folder / name, content) for name, content in files.items()]


def plot_run(run: Run) -> list[Path]:
    """Write every plot of the report as PNG too; what was not measured has no file."""
    entropy = as_number(run.recorded("unigram_entropy_nats"))
    paths = plot_losses(run.path, final=True, unigram_entropy_nats=entropy)
    for name, panel in PANELS.items():
        figure = Figure(figsize=(8, 3.8), dpi=PNG_DPI, facecolor=light("surface"))
        if rows := panel.draw(figure.add_subplot(), run):
            _set_title(figure, f"{panel.title}: {run.name}")
            _place_axes(figure, rows, TITLE_INCHES)
            (run.path / "plots").mkdir(exist_ok=True)
            paths.append(write_atomically(run.path / "plots" / f"{name}.png", to_png(figure)))
    return paths


def render_loss_svg(run: Run, recent: bool) -> str | None:
    """The loss curve as an inline SVG; `None` when there is no loss."""
    entropy = as_number(run.recorded("unigram_entropy_nats"))
    label = "loss of the recent steps" if recent else "loss over the whole run"
    return _render_svg(lambda ax: draw_loss(ax, run.metrics, entropy, recent), (6.2, 3.3), label)


def render_panel_svg(run: Run, name: str) -> str | None:
    """A chart of `PANELS` as an inline SVG; `None` when nothing of it was measured."""
    panel = PANELS[name]
    return _render_svg(lambda ax: panel.draw(ax, run), (6.2, 3.0), panel.title)


def _loss_figure(metrics: MetricsLog, entropy: float | None, title: str, panels: tuple[bool, ...]) -> bytes:
    """One row per panel (recent or not), and the statistics in a column on the right."""
    figure = Figure(figsize=(11, 4.2 * len(panels)), dpi=PNG_DPI, facecolor=light("surface"))
    grid = figure.add_gridspec(len(panels), 2, width_ratios=(4.2, 1.4))
    axes = [(figure.add_subplot(grid[row, 0]), recent) for row, recent in enumerate(panels)]
    legend_rows = max(draw_loss(ax, metrics, entropy, recent) for ax, recent in axes)
    _write_statistics(figure.add_subplot(grid[0, 1]), describe_loss(metrics, entropy))
    _set_title(figure, title)
    _place_axes(figure, legend_rows, TITLE_INCHES)
    return to_png(figure)


def _place_axes(figure: Figure, legend_rows: int, title_inches: float = 0.0) -> None:
    """Margins of fixed widths. matplotlib's own layout measures every text, which takes as long as drawing it all."""
    width, height = figure.get_size_inches()
    above = title_inches + LEGEND_INCHES * legend_rows
    figure.subplots_adjust(
        left=LEFT_INCHES / width,
        right=1 - RIGHT_INCHES / width,
        bottom=BELOW_INCHES / height,
        top=1 - (above + RIGHT_INCHES) / height,
        wspace=0.05,
        hspace=0.4,
    )


def _write_statistics(ax: Axes, rows: list[tuple[str, str]]) -> None:
    style_axes(ax)
    ax.set_axis_off()
    for number, (label, value) in enumerate(rows):
        top = 0.99 - number * 0.078
        ax.text(0.0, top, label, transform=ax.transAxes, va="top", fontsize=9, color=light("muted"))
        ax.text(1.0, top, value, transform=ax.transAxes, va="top", ha="right", fontsize=9.5, color=light("ink"))


def _set_title(figure: Figure, title: str) -> None:
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=12, weight="bold", color=light("ink"))


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _render_svg(draw: Callable[[Axes], int], size: tuple[float, float], label: str) -> str | None:
    """Text stays text (the page's font), colours become CSS variables, nothing points outside."""
    figure = Figure(figsize=size)
    figure.patch.set_visible(False)
    if not (rows := draw(figure.add_subplot())):
        return None
    _place_axes(figure, rows)
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue(), flags=re.DOTALL)
    root = rf'<svg \1 role="img" aria-label="{label}">'
    svg = re.sub(r'^.*?<svg [^>]*?(viewBox="[^"]*")[^>]*>', root, svg, count=1, flags=re.DOTALL)
    return to_css_variables(svg.replace("xlink:href", "href"))
