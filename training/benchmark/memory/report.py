"""The grid's result as JSON, and from that alone `docs/results/memory.md`."""

import statistics
from pathlib import Path
from typing import Any

from training.benchmark.page import format_machine, read_content, write_page

AIMS_PCT = {"CPU": (3.0, 8.0), "GPU": (2.0, 5.0)}
"""Median and worst absolute error that the plan aims at, in percent."""

HOW = """\
## How it was measured

Each configuration is a recipe: data prepared, model built and trained by the code of `training/train.py`, in a process
of its own, for two optimizer steps, of which the second is measured, from the end of the first to its own end
(batches, passes, clipping, optimizer). Predicted is the peak of `training.plan` without its allowances. An error above
0 means that the plan predicted too much.

Of two ranks (gloo, or a GPU each) the one with the higher peak counts. Base models of adapters are stored in float16,
so that loading casts them. Otherwise, on a CPU, weights in the type of the run would stay mapped from their file, and
no allocator would count them.

- CPU: the balance of PyTorch's allocator over all threads, from its own events (`torch.profiler`, `profile_memory`),
  followed from before the model is built and read at the events of the main thread. One thread computes, because each
  has workspaces inside kernels. *Resident* is a second measurement for some configurations: the system's peak of
  resident memory over the measured step, less what was resident before the model was built. It includes what the
  allocator does not see: libraries that are loaded on first use, kernels' buffers and Python's objects. These are
  similar in all configurations.
- CUDA: `torch.cuda.max_memory_allocated`, reset as the step begins.

## Run it again

    python -m training.benchmark memory
"""


def write_result(rows: list[dict[str, Any]], machine: dict[str, Any], output: Path) -> None:
    """Write `output` (a .md) and the JSON beside it."""
    result = {"machine": machine, "rows": rows}
    write_page(output, format_markdown(result), result)


def render(output: Path) -> None:
    """Write `output` from the JSON beside it."""
    result = read_content(output)
    write_page(output, format_markdown(result), result)


def format_markdown(result: dict[str, Any]) -> str:
    """The page: machine, verdict, table, what could not be measured, how it was done."""
    machine, rows = result["machine"], result["rows"]
    lines = [
        "# Memory, predicted and measured",
        "",
        format_machine(machine, "" if machine["device"] == "CPU" else f"{machine['device']}; "),
        "",
        _describe_errors(machine, rows),
    ]
    lines += ["", "| | configuration | predicted MB | measured MB | error | resident MB |", "|--:|---|--:|--:|--:|--:|"]
    for number, row in enumerate(rows, 1):
        if "reason" in row:
            lines.append(f"| {number} | {row['name']} | | not measured | | |")
            continue
        resident = f"{row['resident'] / 1e6:,.1f}" if row.get("resident") else ""
        sizes = f"{row['predicted'] / 1e6:,.1f} | {row['measured'] / 1e6:,.1f} | {row['error_pct']:+.2f} %"
        lines.append(f"| {number} | {row['name']} | {sizes} | {resident} |")
    missing = [f"- {row['name']}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([*lines, "", *missing, *[""] * bool(missing), HOW])


def _describe_errors(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    errors = {row["name"]: abs(row["error_pct"]) for row in rows if "reason" not in row}
    if not errors:
        return "Nothing could be measured."
    median, worst = statistics.median(errors.values()), max(errors, key=lambda name: errors[name])
    aims = AIMS_PCT["CPU" if machine["device"] == "CPU" else "GPU"]
    verdict = [f"{'' if value <= aim else '**not** '}within {aim:.0f} %" for value, aim in
               zip((median, errors[worst]), aims, strict=True)]  # fmt: skip
    return (
        f"{len(errors)} configurations: median absolute error {median:.2f} % ({verdict[0]}), worst "
        f"{errors[worst]:.2f} % ({verdict[1]}), in {worst}."
    )
