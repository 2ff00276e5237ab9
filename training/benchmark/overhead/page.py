"""A result as Markdown."""

from __future__ import annotations

from typing import Any

from training.benchmark.interleave import find_median
from training.benchmark.overhead.result import LEVEL, PLOTS_PCT, TRIM, Result
from training.benchmark.page import format_machine


def format_page(result: Result, machine: dict[str, Any]) -> str:
    """The page of a result."""
    pct, drawing, schedule = result.pct, result.drawing, result.schedule
    step_ms = 1e3 * find_median(result.seconds).median
    plots = f"{len(drawing) - 1} after the first, which took {drawing[0]:.1f} s" if drawing else "none was due"
    records = schedule.periods - 1
    shown = {"has_interval": result.has_intervals}
    length = ""
    if result.has_intervals and result.least_step_ms > 0:
        length = (
            f"reached with steps of {result.least_step_ms:,.0f} ms or more at the same cost in ms, {PLOTS_PCT} % "
            "left for plots"
        )
    lines = [
        "# Profiling overhead",
        "",
        format_machine(machine),
        "",
        f"Recipe `{result.recipe}`, {result.ranks} rank{'s' * (result.ranks > 1)} on {result.device}: "
        f"{len(result.seconds):,} steps of {step_ms:,.1f} ms (median), a record every {schedule.period}. "
        "Measuring and reporting are on and off in turn, and neighbouring steps are compared. Means over pairs without "
        f"the highest and lowest {100 * TRIM:.0f} %; intervals of {100 * LEVEL:.0f} %, bootstrapped over periods.",
        "",
        "| what | result | aim |",
        "|---|---|---|",
        f"| a step without a record: on / off - 1, {records * ((schedule.period - 4) // 2):,} pairs | "
        f"{pct.plain.format(3, '%', **shown)} | |",
        f"| a record's step and the next: on / off - 1, {records:,} pairs | {pct.record.format(3, '%', **shown)} | |",
        f"| plots: share of all time ({plots}) | {result.drawing_pct:.3f} % | |",
        f"| together, over a period of {schedule.period} steps | {pct.together.format(3, '%', **shown)} | "
        f"<= {result.limit_pct} %: {result.verdict} |",
        "| together, untrimmed: rare but expensive events included | "
        f"{result.untrimmed_pct.together.format(3, '%', **shown)} | |",
        f"| in ms a step, without plots | {result.ms.together.format(2, 'ms', **shown)} | {length} |",
        f"| accounted: time inside the meter's calls and the sinks / time of the period | "
        f"{result.accounted_pct.format(4, '%')} | |",
    ]
    if result.verdict == "not resolved":
        lines += ["", "Not resolved: on this machine steps vary too much, or there were too few of them."]
    return "\n".join(lines) + "\n"
