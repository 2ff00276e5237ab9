"""What torch's compiler has done in this process, from dynamo's own counters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch._dynamo.utils import counters, get_compilation_metrics

REASON_LENGTH = 300


@dataclass(frozen=True)
class Compilations:
    """Counts since the process began."""

    frames: int
    """Functions compiled, again or for the first time."""
    graphs: int
    graph_breaks: int


def count_compilations() -> Compilations:
    """So far. Costs three look-ups."""
    return Compilations(
        frames=counters["frames"]["total"],
        graphs=counters["stats"]["unique_graphs"],
        graph_breaks=sum(counters["graph_break"].values()),
    )


def list_graph_breaks() -> list[str]:
    """Dynamo's reasons, the first line of each."""
    return [shorten(reason) for reason in counters["graph_break"]]


def find_last_reason() -> str:
    """Why dynamo compiled something again the last time; empty: it has not."""
    reasons = (one.recompile_reason for one in reversed(get_compilation_metrics()))
    return shorten(next((reason for reason in reasons if reason), ""))


def sum_compile_seconds() -> float:
    """Of all compilations that dynamo still remembers (the last 64)."""
    return sum(one.entire_frame_compile_time_s or 0.0 for one in get_compilation_metrics())


def count_cache_hits() -> tuple[int, int]:
    """Graphs that were found in the cache, and those that were not."""
    found = counters["aot_autograd"]
    return found["autograd_cache_hit"], found["autograd_cache_miss"] + found["autograd_cache_bypass"]


def shorten(reason: str) -> str:
    """One line of at most `REASON_LENGTH` characters."""
    return re.sub(r"\s+", " ", reason).strip()[:REASON_LENGTH]
