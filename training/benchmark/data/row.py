"""What one line of the benchmark's table says, and the sentences below it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchmarkRow:
    """`reached` is None where `reach` could not be judged: something was not installed, or the run was a quick one.

    `notes` are sentences for the reader; `values` holds every raw number, for the JSON.
    """

    name: str
    what: str
    against: str
    reach: str
    measured: str
    reached: bool | None
    notes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
