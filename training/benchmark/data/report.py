"""The benchmark's result as JSON, and from that alone `docs/results/data.md` with its plot.

Three files side by side: `data.json` (every raw number), `data.md`, `data.png`. `--render` writes the last two again
from the first.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.atomic_files import write_atomically
from training.benchmark.data.row import BenchmarkRow
from training.benchmark.page import format_machine, read_content, write_page
from training.reporting.charts import style_axes
from training.reporting.palette import light
from training.reporting.plots import PNG_DPI

VERDICTS = {True: "yes", False: "**no**", None: "-"}

PROSE = """\
Medians of interleaved repeats (A B, B A, …), each in a fresh process; in brackets the interval that covers the median
with 95 %, or, below 6 repeats, the whole range. A ratio is taken within each round. MB is 10^6 bytes.
"""

HOW = """\
## Run it again

    make bench-data INPUT=linux.jsonl

The text of the full run is Debian's `linux-source-6.1` (GPL-2.0), every file of it that is UTF-8, as JSONL:

    apt-get download linux-source-6.1
    dpkg -x linux-source-6.1_*.deb deb && mkdir tree && tar -xf deb/usr/src/linux-source-6.1.tar.xz -C tree
    python -m training.benchmark text tree linux.jsonl

Any other JSONL with a `text` key works (`--input FILES`, 1 GB in all). `python -m training.benchmark data --quick`
runs every row on the embedded corpus, at sizes too small for conclusions, in a minute.
"""


def write_result(rows: list[BenchmarkRow], machine: dict[str, Any], output: Path) -> None:
    """Write `output` (a .md), and the JSON and the plot beside it."""
    result = {"machine": machine, "rows": [asdict(row) for row in rows]}
    _write(output, result)


def render(output: Path) -> None:
    """Write `output` and its plot from the JSON beside it."""
    _write(output, read_content(output))


def _write(output: Path, result: dict[str, Any]) -> None:
    scaling = next((row for row in result["rows"] if row["name"] == "scaling"), None)
    plot = output.with_suffix(".png")
    write_page(output, format_markdown(result, plot.name if scaling else None), result)
    if scaling is not None:
        write_atomically(plot, draw_scaling(scaling["values"]))


def format_markdown(result: dict[str, Any], plot: str | None) -> str:
    """The page: machine, table, a section a row, the plot, how to run it."""
    lines = ["# Data, as measured", "", describe_machine(result["machine"]), "", PROSE]
    lines += ["| what | compared with | aim | measured | reached |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        cells = (row["what"], row["against"], row["reach"], row["measured"], VERDICTS[row["reached"]])
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    for row in result["rows"]:
        lines += ["", f"## {row['name']}: {row['what']}", "", *(f"- {note}" for note in row["notes"])]
        if plot and row["name"] == "scaling":
            lines += ["", f"![Seconds of a build against MB of text]({plot})"]
    return "\n".join([*lines, "", HOW])


def describe_machine(machine: dict[str, Any]) -> str:
    """Two sentences on what the numbers were measured on."""
    loads = f"load average at the start {machine['load_average']:.2f}"
    warning = f" **It was not idle: {loads}; trust ratios more than speeds.**" if machine["busy"] else f" {loads}."
    return format_machine(machine, remark=warning)


def draw_scaling(values: dict[str, Any]) -> bytes:
    """Every repeat as a dot, the fitted line through the medians; a PNG."""
    sizes, seconds, line = values["text_mb"], values["seconds"], values["line"]
    figure = Figure(figsize=(8, 4.2), dpi=PNG_DPI, facecolor=light("surface"), layout="constrained")
    ax = figure.add_subplot()
    style_axes(ax, "build time (s)", "MB of text")
    ends = (0.0, max(sizes) * 1.05)
    label = f"{line['intercept']:.2f} s + {line['slope'] * 1000:.2f} ms per MB, R² = {line['r_squared']:.4f}"
    ax.plot(ends, [line["intercept"] + line["slope"] * end for end in ends], color=light("sky"), label=label)
    for size, repeats in zip(sizes, seconds, strict=True):
        ax.plot([size] * len(repeats), repeats, "o", color=light("blue"), markersize=4)
    ax.set_xlim(ends)
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=light("ink"))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
