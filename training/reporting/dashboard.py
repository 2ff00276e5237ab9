"""The terminal dashboard of a run: `Dashboard.render()` draws one screen from what the files hold now.

Works on a directory in which nothing has been logged yet. Reads metrics.jsonl incrementally; the small files are read
again at each refresh. Text from the run is shown literally, never as rich markup.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from training.metrics import names
from training.reporting.facts import RunFacts, facts_from_run
from training.reporting.formatting import (
    as_number,
    format_count,
    format_duration,
    format_large,
    format_number,
    format_significant,
    format_time,
)
from training.reporting.palette import COLOURS, STACKING
from training.reporting.phases import load_phase_times, recorded_phases
from training.reporting.run_reader import MetricsLog, Run, load_run
from training.reporting.statistics import recent_part

BLOCKS = "▁▂▃▄▅▆▇█"
NUM_EVENTS = 6
KIND_STYLES = {
    "alert": "red", "error": "red", "not_finite": "red", "stall": "red",
    "signal": "yellow", "stop": "yellow", "attempt": "yellow", "skipped_step": "yellow",
}  # fmt: skip


class Dashboard:
    """Keeps the position in metrics.jsonl between screens."""

    def __init__(self, run_dir: Path | str):
        self.run_dir = Path(run_dir)
        self.metrics = MetricsLog(self.run_dir / "metrics.jsonl")

    def render(self, width: int = 100) -> RenderableType:
        """One screen, `width` columns. Raises `UserError` when the directory is no run."""
        run = load_run(self.run_dir, self.metrics)
        facts = facts_from_run(run)
        inner = max(width - 6, 20)
        return Group(
            _header(run, facts), _loss_panel(run, facts, inner), _speed_panel(run, facts, inner), _events_panel(run)
        )  # fmt: skip

    def is_over(self) -> bool:
        """Whether the trainer has left its last word."""
        return (self.run_dir / "summary.json").exists()


def draw_sparkline(values: np.ndarray, width: int) -> str:
    """`values` (n,) as at most `width` blocks, each the median of its share."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    edges = np.linspace(0, len(values), min(width, len(values)) + 1).astype(int)
    medians = np.array([np.median(part) for part in np.split(values, edges[1:-1])])
    low, high = medians.min(), medians.max()
    if high <= low:
        return BLOCKS[3] * len(medians)
    level = (medians - low) / (high - low) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[round(index)] for index in level.tolist())


def _header(run: Run, facts: RunFacts) -> Text:
    text = Text.assemble((run.name, "bold"), "  ", (_describe_status(run, facts), "cyan"))
    for note in run.notes:
        text.append(f"\n{note}", style="yellow")
    return text


def _describe_status(run: Run, facts: RunFacts) -> str:
    if run.summary:
        state = facts.status
    elif len(run.metrics):
        state = f"running or killed, last record {_age(run.metrics.path)} ago"
    else:
        state = "started, nothing logged yet"
    parts = [state, f"step {_of_total(run)}"]
    if facts.tokens is not None:
        parts.append(f"{format_large(facts.tokens)} tokens")
    if facts.train_seconds is not None:
        parts.append(format_duration(facts.train_seconds))
    return ", ".join(parts) + _remaining(run)


def _of_total(run: Run) -> str:
    total = as_number(run.recorded("max_steps"))
    return f"{run.metrics.last_step:,}" + (f" of {total:,.0f}" if total and total > 0 else "")


def _remaining(run: Run) -> str:
    """Time to go at the recent pace, when the run said how many steps it takes."""
    total, seconds = as_number(run.recorded("max_steps")), recent_part(run.series("time_s").finite())
    if run.summary or not total or len(seconds) < 2 or seconds.steps[-1] <= seconds.steps[0]:
        return ""
    pace = (seconds.values[-1] - seconds.values[0]) / (seconds.steps[-1] - seconds.steps[0])
    left = (total - run.metrics.last_step) * pace
    return f", {format_duration(float(left))} to go" if left > 0 else ""


def _age(path: Path) -> str:
    return format_duration(max(time.time() - path.stat().st_mtime, 0.0))


def _loss_panel(run: Run, facts: RunFacts, width: int) -> Panel:
    loss = run.series(names.TRAIN_LOSS).finite()
    recent = recent_part(loss)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "last", _strong(format_number(facts.loss_last, digits=4)),
        "first", format_number(facts.loss_first, digits=4),
    )  # fmt: skip
    table.add_row(
        "validation", _strong(format_number(facts.eval_loss_last, digits=4)),
        "unigram entropy", format_number(facts.unigram_entropy_nats, digits=4),
        "bits per byte", format_number(facts.eval_bits_per_byte_last, digits=4),
    )  # fmt: skip
    table.add_row(
        "gradient norm", format_significant(run.series(names.TRAIN_GRAD_NORM).last()),
        "learning rate", format_significant(run.series(names.TRAIN_LEARNING_RATE).last()),
    )  # fmt: skip
    lines: list[RenderableType] = [table]
    if len(loss):
        blue = COLOURS["blue"][1]
        lines.append(Text.assemble("whole   ", (draw_sparkline(loss.values, width - 8), blue)))
        lines.append(Text.assemble("recent  ", (draw_sparkline(recent.values, width - 8), blue)))
    return Panel(Group(*lines), title="loss", title_align="left", border_style="dim")


def _speed_panel(run: Run, facts: RunFacts, width: int) -> Panel:
    def last(key: str) -> float | None:
        return run.series(key).last()

    table = Table.grid(padding=(0, 2))
    table.add_row(
        "tokens/s", _strong(format_number(last(names.PERF_TOKENS_PER_SECOND), digits=0)),
        "step", format_number(last(names.PERF_STEP_MS), "ms"),
        "useful tokens", format_number(last(names.PERF_USEFUL_TOKENS_PCT), "%"),
    )  # fmt: skip
    table.add_row(
        "MFU", _strong(format_number(last(names.PERF_MFU_PCT), "%")),
        "memory peak", format_number(last(names.PERF_MEMORY_PEAK_GIB), "GiB", 2),
        "reserved", format_number(last(names.PERF_MEMORY_RESERVED_GIB), "GiB", 2),
    )  # fmt: skip
    lines: list[RenderableType] = [table]
    if facts.peak:
        lines.append(Text(f"MFU is relative to {facts.peak.describe()}", style="dim"))
    lines.extend(_phase_bar(run, width))
    return Panel(Group(*lines), title="speed, last record", title_align="left", border_style="dim")


def _phase_bar(run: Run, width: int) -> list[Text]:
    """The last line's phases as one bar with a legend; letters keep it readable without colour."""
    times = load_phase_times(run)
    if not len(times.steps):
        return [Text("phases: not measured", style="dim")]
    shares = {row.name: row for row in recorded_phases(dict(zip(times.names, times.ms[-1].tolist(), strict=True)), {})}
    bar, legend = Text(), Text()
    for phase in (phase for phase in STACKING if phase in shares):
        pct = shares[phase].pct or 0.0
        length = round(width * pct / 100)
        colour = COLOURS[f"phase-{phase}"][1]
        bar.append((phase[: length - 1] if length > 3 else "").ljust(length), style=f"black on {colour}")
        if pct >= 0.05:
            legend.append("■\N{NO-BREAK SPACE}", style=colour)
            entry = f"{phase} {format_number(shares[phase].ms)} ms {pct:.1f} %"
            legend.append(entry.replace(" ", "\N{NO-BREAK SPACE}"))
            legend.append("   ")
    return [bar, legend]


def _events_panel(run: Run) -> Panel:
    table = Table.grid(padding=(0, 2))
    for event in run.events[-NUM_EVENTS:]:
        kind = str(event.get("kind", "-"))
        style = KIND_STYLES.get(kind, "dim")
        step = as_number(event.get("step"))
        table.add_row(
            Text(format_time(event.get("time"))), Text(f"step {format_count(step)}" if step is not None else ""),
            Text(kind, style=style), Text(str(event.get("message", ""))),
        )  # fmt: skip
    content: RenderableType = table if run.events else Text("none yet", style="dim")
    return Panel(content, title="last events", title_align="left", border_style="dim")


def _strong(text: str) -> Text:
    return Text(text, style="bold")
