"""Numbers as text, the same on screen and in the report. A missing value reads "not measured", never 0."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

NOT_MEASURED = "not measured"


def as_number(value: Any, not_finite: float | None = None) -> float | None:
    """`value` as a float; `None` for text, booleans and the like, `not_finite` for NaN, infinity and beyond float64."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else not_finite
    except OverflowError:
        return not_finite


def format_number(value: float | None, unit: str = "", digits: int = 1) -> str:
    """A number with its unit; "not measured" for None."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.{digits}f} {unit}".rstrip() if unit != "%" else f"{value:,.{digits}f} %"


def format_significant(value: float | None, unit: str = "") -> str:
    """Three significant digits without an exponent where that reads well: 0.00123, 1.23, 12.3, 1,230."""
    if value is None:
        return NOT_MEASURED
    magnitude = 0 if value == 0 else math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 15:
        return format_number(value, unit, max(2 - magnitude, 0))
    return f"{value:.2e} {unit}".rstrip()


def format_count(value: float | None) -> str:
    """A whole number with separators; "not measured" for None."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def format_large(value: float | None) -> str:
    """10,023,456 -> 10.0M."""
    if value is None:
        return NOT_MEASURED
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def format_duration(seconds: float | None) -> str:
    """75 -> 1 min 15 s."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_time(seconds: Any) -> str:
    """Unix seconds -> UTC, `-` when it is no time."""
    number = as_number(seconds)
    if number is None or not 0 <= number < 2**38:
        return "-"
    try:
        return datetime.fromtimestamp(number, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def format_table(cells: list[list[str]]) -> list[str]:
    """A Markdown table with columns of even width."""
    cells = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return [rows[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *rows[1:]]
