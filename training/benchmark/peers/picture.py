"""The cost of a token against the length of a row and the rows of a micro-batch, from several measured pages."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from data_prep.atomic_files import write_atomically
from data_prep.errors import UserError
from training.benchmark.page import read_content
from training.reporting.charts import style_axes
from training.reporting.palette import light
from training.reporting.plots import PNG_DPI

COLOURS = ("blue", "orange", "green", "sky", "muted")
Shape = tuple[int, int]
"""Tokens of a row, rows of a micro-batch."""


def read_costs(pages: Sequence[Path]) -> dict[str, dict[Shape, float]]:
    """Microseconds of a token of pretraining, median over rounds, by side and shape.

    Raises UserError for a page without its JSON, and when none has measured `pretrain`.
    """
    costs: dict[str, dict[Shape, float]] = {}
    for page in pages:
        try:
            found = read_content(page)["situations"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"--picture {page}: no JSON of `peers` beside it ({type(error).__name__}: {error})"
            ) from None
        for situation in (one for one in found if one["name"] == "pretrain"):
            _, seq_len, batch = situation["shape"]
            for side, runs in situation["measured"].items():
                rate = statistics.median(run["tokens_per_second"] for run in runs)
                costs.setdefault(side, {})[seq_len, batch] = 1e6 / rate
    if not costs:
        raise UserError("--picture: no page has measured `pretrain`")
    return costs


def draw_costs(costs: Mapping[str, Mapping[Shape, float]]) -> bytes:
    """A PNG: on the left rows of different lengths, with as many tokens a micro-batch as can be; on the right
    micro-batches of different sizes."""
    shapes = {shape for of_side in costs.values() for shape in of_side}
    tokens = Counter(seq_len * batch for seq_len, batch in sorted(shapes)).most_common(1)[0][0]
    usual = Counter(seq_len for seq_len, _ in sorted(shapes)).most_common(1)[0][0]
    by_length = {min((s for s in shapes if s[0] == t), key=lambda s: abs(s[0] * s[1] - tokens)) for t, _ in shapes}
    by_batch = {shape for shape in shapes if shape[0] == usual}
    figure = Figure(figsize=(9, 3.8), dpi=PNG_DPI, facecolor=light("surface"), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, costs, by_length, 0)
    style_axes(left, "microseconds a token", f"tokens of a row (about {tokens:,} a micro-batch)")
    _draw(right, costs, by_batch, 1)
    style_axes(right, "", f"rows of a micro-batch, of {usual:,} tokens")
    for ax, index, chosen in ((left, 0, by_length), (right, 1, by_batch)):
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(shape[index] for shape in chosen))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
    right.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=light("ink"))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw(ax: Axes, costs: Mapping[str, Mapping[Shape, float]], shapes: set[Shape], index: int) -> None:
    for (side, of_side), colour in zip(costs.items(), COLOURS, strict=False):
        points = sorted((shape[index], of_side[shape]) for shape in shapes if shape in of_side)
        ax.plot(*zip(*points, strict=True), "o-", color=light(colour), label=side, markersize=4)


def write_picture(pages: Sequence[Path], output: Path) -> None:
    """Draw what the pages measured to `output`. Raises UserError as `read_costs` does."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, draw_costs(read_costs(pages)))
