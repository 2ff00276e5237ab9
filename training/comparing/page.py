"""A comparison as Markdown that reads as well in a terminal: tables are padded, lines are short."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.comparing.comparison import ComparedRow, Comparison, Pair, is_phase, name_unit
from training.comparing.intervals import Interval
from training.comparing.losses import SHARES, LossComparison
from training.comparing.sides import SPEED, STEP_WITHOUT_PERIODIC, find_windows
from training.comparing.units import AXES, choose_units, explain_units
from training.metrics import names
from training.reporting.formatting import format_duration, format_large, format_significant, format_table

NO_DIFFERENCE = "no difference"
INCONCLUSIVE = "inconclusive"
TOO_NOISY = 0.5  # what runs could not even show this relative difference of, they say nothing of
TOO_MUCH_NOISE = "inconclusive: varies too much"
EQUAL = "equal in every digit"
NEEDS_REPEATS = "needs repeats for an interval"
AXIS_UNITS = {"tokens": "tokens", "text_bytes": "bytes of text"}
HOW_TO_READ = """\
Ratios are {b} / {a}, each with its interval. With a probability of 95 %, all intervals of this page contain the true
values. "Detectable" is the minimum detectable effect: the smallest true change that such runs show with a power of
80 %."""


def format_page(comparison: Comparison, picture: str | None = None) -> str:
    """The whole page; `picture` is the name of the PNG beside it."""
    lines = ["# Comparison", "", *(f"- {side.describe()}" for side in comparison.sides), ""]
    for pair in comparison.pairs:
        lines += [*_format_pair(pair), ""]
    if comparison.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in comparison.notes), ""]
    if picture:
        lines += [f"![Ratios, losses and phases]({picture})", ""]
    return "\n".join(lines)


def _format_pair(pair: Pair) -> list[str]:
    a, b = pair.a.name, pair.b.name
    metrics = [row for row in pair.rows if not is_phase(row)]
    phases = [row for row in pair.rows if is_phase(row)]
    lines = [f"## {b} compared with {a}", "", *(f"- {line}" for line in describe_verdict(pair))]
    if metrics:
        lines += ["", HOW_TO_READ.format(a=a, b=b), "", *_format_metrics(metrics, a, b, share=False)]
    if phases:
        lines += ["", f"### Phases, {b} compared with {a}", "", *_format_metrics(phases, a, b, share=True)]
    if pair.losses:
        units = " and ".join(dict.fromkeys(name_unit(loss.key) for loss in pair.losses))
        lines += ["", f"### Loss, {b} minus {a}, {units}", "", *_format_losses(pair.losses, a, b)]
    lines += ["", f"### Settings, {b} compared with {a}", "", *_format_settings(pair, a, b)]
    return lines


def describe_verdict(pair: Pair) -> list[str]:
    """One line a question: speed, loss, everything else."""
    speed = pair.find(names.PERF_STEP_MS)
    lines = []
    lines.append(f"speed: {_describe_row(speed, pair.b.name) if speed else _find_why_untimed(pair)}")
    work = pair.find(STEP_WITHOUT_PERIODIC)
    if work and speed and work.interval.differs != speed.interval.differs:
        lines.append(f"speed between checkpoints and evaluations: {_describe_row(work, pair.b.name)}")
    rate = pair.find(names.PERF_TOKENS_PER_SECOND)
    if rate:
        lines.append(f"tokens/s: {_describe_row(rate, pair.b.name)}")
    for loss in pair.losses:
        lines.append(f"{_name_loss(loss)}: {_judge_loss(loss, pair.b.name)}")
    if not choose_units((pair.a, pair.b)):
        lines.append(f"loss: cannot be compared. {explain_units((pair.a, pair.b))}")
    lines.append(f"everything else: {_sum_up([row for row in pair.rows if row.key not in SPEED], pair.b.name)}")
    return lines


def _find_why_untimed(pair: Pair) -> str:
    why = []
    for side in (pair.a, pair.b):
        if any(find_windows(run, names.PERF_STEP_MS) is None for run in side.runs):
            measured = all(len(run.series(names.PERF_STEP_MS)) for run in side.runs)
            what = "no record after its first steps" if measured else f"no {names.PERF_STEP_MS} (perf.enabled: false?)"
            why.append(f"{side.name} has {what}")
    return f"{INCONCLUSIVE}: {', '.join(why)}"


def _sum_up(rows: Sequence[ComparedRow], b: str) -> str:
    """What differs, or that nothing does; how many rows have no answer, and why."""
    verdicts = [judge(row, b) for row in rows]
    is_open = [verdict.startswith((INCONCLUSIVE, NEEDS_REPEATS)) for verdict in verdicts]
    untold, why = sum(is_open), NEEDS_REPEATS if NEEDS_REPEATS in verdicts else INCONCLUSIVE
    differing = [
        f"{row.key} {verdict}"
        for row, verdict, left in zip(rows, verdicts, is_open, strict=True)
        if not left and verdict not in (EQUAL, NO_DIFFERENCE)
    ]
    if untold == len(rows):
        return why
    found = ", ".join(differing) or NO_DIFFERENCE
    return f"{found} ({untold} of {len(rows)} rows: {why})" if untold else found


def _describe_row(row: ComparedRow, b: str) -> str:
    verdict = judge(row, b)
    return verdict if row.equal else f"{verdict} ({row.key} {_ratio(row.interval)})"


def judge(row: ComparedRow, b: str) -> str:
    """`no difference`, `B higher`, `B lower`; `inconclusive` without an interval; of a phase, which side has none."""
    if row.equal:
        return EQUAL
    if is_phase(row) and not (row.a and row.b):
        return f"in {b} only" if row.b else f"not in {b}"
    if row.interval.differs is None:
        return NEEDS_REPEATS if math.isfinite(row.interval.estimate) else INCONCLUSIVE
    if not row.interval.differs:
        return NO_DIFFERENCE if (row.interval.detectable or 0.0) <= TOO_NOISY else TOO_MUCH_NOISE
    return f"{b} {'higher' if row.interval.estimate > 1 else 'lower'}"


def _format_metrics(rows: Sequence[ComparedRow], a: str, b: str, share: bool) -> list[str]:
    cells = [["metric", a, b, f"{b} / {a}", "interval", "detectable", "verdict"]]
    totals = [sum(getattr(row, side) for row in rows) or math.nan for side in ("a", "b")]
    for row in rows:
        values = [format_significant(row.a), format_significant(row.b)]
        if share:
            parts = (100 * row.a / totals[0], 100 * row.b / totals[1])
            values = [f"{value} ({part:.1f} %)" for value, part in zip(values, parts, strict=True)]
        ratio, interval = _split_ratio(row.interval)
        cells.append([row.key, *values, ratio, interval, _percent(row.interval.detectable), judge(row, b)])
    return format_table(cells)


def _format_losses(losses: Sequence[LossComparison], a: str, b: str) -> list[str]:
    cells = [["loss", "at", a, b, f"{b} - {a}"]]
    for loss in losses:
        shares = SHARES if len(loss.x) > 1 else (1.0,)
        for share, x, value_a, value_b in zip(shares, loss.x, loss.a, loss.b, strict=True):
            where = format_duration(x) if loss.axis == "time_s" else f"{format_large(x)} {AXIS_UNITS[loss.axis]}"
            values = (f"{value_a:.4f}", f"{value_b:.4f}", f"{value_b - value_a:+.4f}")
            cells.append([loss.key, f"{where} ({share:.0%})" if len(loss.x) > 1 else where, *values])
    lines = format_table(cells)
    lines.append("")
    for loss in losses:
        over = "mean of the last quarter" if len(loss.x) > 1 else "last evaluation that all have"
        lines.append(f"- {_name_loss(loss)}, {over}: {_judge_loss(loss, b)}")
    return lines


def _name_loss(loss: LossComparison) -> str:
    return f"{loss.key} at {AXES[loss.axis]}"


def _judge_loss(loss: LossComparison, b: str) -> str:
    if loss.equal or loss.interval is None:
        return EQUAL
    found = loss.interval
    if found.low is None or found.high is None or found.detectable is None:
        return f"{NEEDS_REPEATS} ({found.estimate:+.4f})"
    verdict = (f"{b} {'higher' if found.estimate > 0 else 'lower'}") if found.differs else NO_DIFFERENCE
    interval = f"{found.estimate:+.4f}, {found.low:+.4f} to {found.high:+.4f}"
    return f"{verdict} ({interval}; detectable {found.detectable:.4f})"


def _format_settings(pair: Pair, a: str, b: str) -> list[str]:
    if not pair.settings:
        return ["The same."]
    return format_table([["key", a, b], *([one.key, str(one.a), str(one.b)] for one in pair.settings)])


def _split_ratio(interval: Interval) -> tuple[str, str]:
    if not math.isfinite(interval.estimate):
        return "-", "-"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.4f}", "-"
    return f"{interval.estimate:.4f}", f"{_short(interval.low)} to {_short(interval.high)}"


def _ratio(interval: Interval) -> str:
    ratio, between = _split_ratio(interval)
    return ratio if between == "-" else f"{ratio}, {between}; detectable {_percent(interval.detectable)}"


def _short(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.3g}"


def _percent(change: float | None) -> str:
    if change is None:
        return "-"
    return f"{100 * change:.2g} %" if change < 10 else "> 10 x"
