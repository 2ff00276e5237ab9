"""What a run prints at its end: plain ASCII, at most 100 columns, so that it survives any log file.

Both functions take a summary in which any field may be None; that reads "not measured".
Only what a trace saw of the GPU standing idle is read from metrics.jsonl, where there is one.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.metrics import names
from training.reporting.advice import format_advise
from training.reporting.bottleneck import Bottleneck, find_bottleneck
from training.reporting.facts import RunFacts, facts_from_summary
from training.reporting.formatting import (
    NOT_MEASURED,
    format_count,
    format_duration,
    format_large,
    format_number,
    format_significant,
)
from training.reporting.run_reader import MetricsLog, parse_object
from training.reporting.statistics import mean_per_step
from training.reporting.summary import Summary

WIDTH = 100
BAR_WIDTH = 20


def format_phase_table(summary: Summary) -> str:
    """Phases as a table: ms per step, % of the step, a bar, and what the phase is."""
    facts = facts_from_summary(summary)
    if not facts.phases:
        return f"Phases: {NOT_MEASURED}"
    table = Table(box=box.ASCII2, show_footer=True, pad_edge=True)
    total = sum(phase.ms for phase in facts.phases if phase.ms is not None)
    share = sum(phase.pct for phase in facts.phases if phase.pct is not None)
    table.add_column("phase", footer="sum", no_wrap=True)
    table.add_column("ms/step", footer=f"{total:,.2f}", justify="right", no_wrap=True)
    table.add_column("%", footer=f"{share:.1f}", justify="right", no_wrap=True)
    table.add_column("", footer="", width=BAR_WIDTH, no_wrap=True)
    table.add_column("what it is", footer=f"step as measured: {format_number(facts.step_ms, 'ms', 2)}")
    for phase in facts.phases:
        bar = "#" * round(BAR_WIDTH * min(max(phase.pct or 0.0, 0.0), 100.0) / 100)
        ms, pct = format_number(phase.ms, digits=2), format_number(phase.pct, digits=1)
        table.add_row(Text(phase.name), ms, pct, bar, Text(phase.meaning))
    return _to_text(table)


def format_summary(summary: Summary, run_dir: Path | str) -> str:
    """The last word of a run: status, phase table, throughput, MFU, losses, sample, path of the report."""
    facts = facts_from_summary(summary)
    name = summary.name or Path(run_dir).name
    lines = [
        f"== {name}: {facts.status}, {_describe_progress(facts)} ".ljust(WIDTH, "="),
        *([_row("error", facts.error)] if facts.error else []),
        format_phase_table(summary),
        _row("tokens/s", format_number(facts.tokens_per_second, digits=0)),
        _row("MFU", _describe_mfu(facts)),
        *_format_bottleneck(find_bottleneck(facts, _read_idle(Path(run_dir))), Path(run_dir)),
        _row("peak memory", format_number(facts.peak_memory_gib, "GiB", 2)),
        *([_row("planned", facts.memory_plan.describe())] if facts.memory_plan else []),
        _row("parameters", _describe_parameters(facts)),
        _row("loss", _describe_loss(facts)),
        _row("eval loss", _describe_evaluation(facts)),
        _row("", facts.entropy_sentence()),
        _row("sample", "" if facts.sample_text is not None else "none was written"),
        *_format_sample(facts),
        _row("report", str(Path(run_dir) / (summary.report or "report.html")), wrap=False),
    ]
    return "\n".join(lines)


def _format_bottleneck(found: Bottleneck | None, run_dir: Path) -> list[str]:
    if found is None:
        return []
    env = parse_object((run_dir / "env.json").read_bytes()) if (run_dir / "env.json").is_file() else None
    first, *others = format_advise(run_dir, env or {}, found.levers)
    command = " \\\n".join([_row("try", first, wrap=False), *(f"{'':<16}{line}" for line in others)])
    if not found.rest_leads:
        return [_row("bottleneck", found.describe()), command]
    return [
        _row("not training", f"{found.describe_rest()}; {found.thin_rest()}".removesuffix("; ")),
        _row("bottleneck", f"{found.base}: {found.describe()}"),
        command,
    ]


def _read_idle(run_dir: Path) -> float | None:
    """What a trace said, so that the screen names the same kind as the report."""
    log = MetricsLog(run_dir / "metrics.jsonl", keys=frozenset({names.PERF_GPU_IDLE_LAUNCH_MS}))
    log.poll()
    return mean_per_step(log.series(names.PERF_GPU_IDLE_LAUNCH_MS))


def _describe_progress(facts: RunFacts) -> str:
    time = format_duration(facts.train_seconds)
    return f"{format_count(facts.steps)} steps, {format_large(facts.tokens)} tokens, {time}"


def _describe_mfu(facts: RunFacts) -> str:
    if facts.mfu_pct is None:
        return NOT_MEASURED
    against = facts.peak.describe() if facts.peak else "a peak that was not recorded"
    mfu, palm = format_significant(facts.mfu_pct, "%"), format_significant(facts.mfu_palm_pct, "%")
    alone = facts.ceiling_sentence()
    return f"{mfu} of {against}; {f'{alone}; ' if alone else ''}by PaLM's formula: {palm}"


def _describe_parameters(facts: RunFacts) -> str:
    text = format_count(facts.parameters)
    if facts.parameters and facts.trainable_parameters is not None:
        share = 100 * facts.trainable_parameters / facts.parameters
        text += f", of which {format_count(facts.trainable_parameters)} trainable ({share:.3g} %)"
    return text


def _loss(value: float | None) -> str:
    return format_number(value, digits=4)


def _describe_loss(facts: RunFacts) -> str:
    bits = "" if facts.bits_per_byte_last is None else f"; last {_loss(facts.bits_per_byte_last)} bits per byte"
    return f"{_loss(facts.loss_first)} -> {_loss(facts.loss_last)} (first -> last, nats per token{bits})"


def _describe_evaluation(facts: RunFacts) -> str:
    bits = facts.eval_bits_per_byte_last
    known = "" if bits is None else f" nats per token, {_loss(bits)} bits per byte"
    return f"{_loss(facts.eval_loss_last)}{known} (unigram entropy {_loss(facts.unigram_entropy_nats)})"


def _row(label: str, text: str, wrap: bool = True) -> str:
    """`label` in a column of 14, `text` beside it, wrapped to the width unless it is a path."""
    if not wrap or not text:
        return f"{label:<14}{text}".rstrip()
    return "\n".join(textwrap.wrap(text, WIDTH, initial_indent=f"{label:<14}", subsequent_indent=" " * 14))


def _format_sample(facts: RunFacts) -> list[str]:
    """The sample as written, indented; control characters would reach the terminal and are shown escaped."""
    if facts.sample_text is None:
        return []
    text = (facts.sample_prompt or "") + facts.sample_text
    safe = "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text.expandtabs(4))
    lines = [piece for line in safe.splitlines() for piece in textwrap.wrap(
        line, WIDTH - 4, drop_whitespace=False, replace_whitespace=False) or [""]]  # fmt: skip
    return [f"  | {line}".rstrip() for line in lines]


def _to_text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
