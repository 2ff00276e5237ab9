"""The tables of all situations, for the terminal and for the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from training.benchmark.interleave import Median, find_median, find_ratio
from training.benchmark.page import format_machine
from training.benchmark.peers.reading import Measurement
from training.benchmark.peers.running import BASE, SituationResult
from training.benchmark.peers.sides import SIDES, PeerSide
from training.benchmark.peers.situations import WARMUP_STEPS, Figure

LOSS_TOLERANCE = 0.01
RATIO_DIGITS = 3
PROSE = f"""\
Each side runs in processes of its own, as its documentation launches it; sides take turns over the rounds. The rate is
over the wall time of the whole loop after the first {WARMUP_STEPS} steps. The step is the median in a run. Memory is
the high water mark of rank 0's resident memory. Medians over rounds, in brackets the interval. A ratio is taken within
each round and is above 1 where Redline is better. A side that starts from the same weights and reads the same rows must
end with the same loss within {100 * LOSS_TOLERANCE:.0f} %; the difference is in brackets.
"""


def format_page(results: Sequence[SituationResult], machine: dict[str, Any]) -> str:
    """The whole page."""
    lines = ["# Redline compared with its alternatives", "", format_machine(machine), "", PROSE]
    for result in results:
        lines += [f"## {result.situation.name}", "", result.situation.what, "", *format_table(result), ""]
        if result.peak:
            lines += [f"MFU is in PaLM's convention over {result.peak.tflops:g} TFLOP/s ({result.peak.document}).", ""]
    return "\n".join(lines)


def format_table(result: SituationResult) -> list[str]:
    """Lines of the Markdown table of a situation, and what its intervals cover."""
    base = result.measured.get(BASE, [])
    figure = result.situation.figure
    is_memory = figure.name.startswith("peak memory")
    columns = [
        "side",
        figure.name,
        "ratio",
        *([] if is_memory else ["peak memory, GiB"]),
        *(["MFU, %"] if result.peak else []),
        "step, ms",
        "loss",
        "setting",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---|" + "--:|" * (len(columns) - 2) + "---|"]
    for side in (side for side in SIDES if side.name in {**result.measured, **result.obstacles}):
        if why := result.obstacles.get(side.name):
            reason = " ".join(why.replace("|", "/").split())
            cells = [side.name, f"not measured: {reason}", *[""] * (len(columns) - 3), side.what]
        else:
            own = result.measured[side.name]
            memory = [] if is_memory else [format_median([one.peak_gib for one in own], 2)]
            step = format_median([one.step_ms for one in own], 0)
            mfu = [format_median(read_mfu(own, result), 1)] if result.peak else []
            loss = format_loss(own, base, side, compares=not result.situation.padded)
            ratio = "" if side.name == BASE else format_ratio(base, own, figure)
            cells = [
                side.name,
                format_median(read_all(own, figure), figure.digits),
                ratio,
                *memory,
                *mfu,
                step,
                loss,
                side.what,
            ]
        lines.append(f"| {' | '.join(cells)} |")
    if base:
        covered = find_median(read_all(base, figure))
        lines += ["", f"{covered.repeats} rounds; an interval covers the median with {100 * covered.coverage:.0f} %."]
    return lines


def read_mfu(runs: Sequence[Measurement], result: SituationResult) -> list[float]:
    """Per cent of the device's peak that the model's FLOPs take, of one rank."""
    assert result.peak is not None
    per_rank = result.flops_per_token / result.situation.ranks
    return [100 * one.tokens_per_second * per_rank / (1e12 * result.peak.tflops) for one in runs]


def read_all(runs: Sequence[Measurement], figure: Figure) -> list[float]:
    """The figure of each run; NaN where a run has none."""
    return [float("nan") if (value := figure.read(one)) is None else value for one in runs]


def compute_ratio(base: Sequence[Measurement], own: Sequence[Measurement], figure: Figure) -> Median:
    """Median over rounds, above 1 where the base is better. Raises ValueError for different numbers of rounds."""
    a, b = read_all(base, figure), read_all(own, figure)
    return find_ratio(a, b) if figure.higher_is_better else find_ratio(b, a)


def format_ratio(base: Sequence[Measurement], own: Sequence[Measurement], figure: Figure) -> str:
    """Empty where Redline was not measured."""
    return compute_ratio(base, own, figure).format(RATIO_DIGITS) if base else ""


def format_median(values: Sequence[float], digits: int) -> str:
    """Median and interval."""
    return find_median(values).format(digits)


def find_loss_difference(base: Sequence[Measurement], own: Sequence[Measurement]) -> float:
    """Relative difference of the losses, that of the evaluation where there is one; the one furthest from 0."""
    pairs = [(_loss(a), _loss(b)) for a, b in zip(base, own, strict=True)]
    return max(((b - a) / a for a, b in pairs), key=abs)


def _loss(one: Measurement) -> float:
    return one.loss if one.eval_loss is None else one.eval_loss


def format_loss(own: Sequence[Measurement], base: Sequence[Measurement], side: PeerSide, *, compares: bool) -> str:
    """The loss, with its difference from Redline's where both did the same training; a difference above 1 % is bold."""
    loss = f"{statistics.median(_loss(one) for one in own):.4f}"
    if not side.same_training or not compares:
        return f"{loss} (not compared)" if side.name != BASE else loss
    if side.name == BASE or not base:
        return loss
    difference = find_loss_difference(base, own)
    text = f"{100 * difference:+.2f} %"
    return f"{loss} ({text})" if abs(difference) <= LOSS_TOLERANCE else f"{loss} (**not equal: {text}**)"


def list_unequal(results: Sequence[SituationResult]) -> list[str]:
    """A sentence for each side whose loss is not Redline's although it must be."""
    found = []
    for result in (one for one in results if not one.situation.padded and BASE in one.measured):
        base = result.measured[BASE]
        for side in (one for one in SIDES if one.same_training and one.name in result.measured):
            difference = find_loss_difference(base, result.measured[side.name])
            if abs(difference) > LOSS_TOLERANCE:
                found.append(f"{result.situation.name}, {side.name}: its loss differs by {100 * difference:+.2f} %")
    return found
