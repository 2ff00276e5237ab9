"""report.html: one self-contained page on a run.

Guarantees: no script, no network, nothing outside the file; every value from the run directory is escaped by Jinja2
(configs, samples and events may hold markup); light and dark follow the reader's system. A value that was not
measured reads "not measured". Costs about a second, nearly all of it for drawing; SVG sizes do not grow with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data_prep.atomic_files import write_atomically
from training.metrics import names
from training.reporting import formatting
from training.reporting.charts import describe_loss
from training.reporting.facts import RunFacts, facts_from_run
from training.reporting.formatting import as_number, format_count, format_large, format_number, format_significant
from training.reporting.limits import find_limits
from training.reporting.palette import css_variables
from training.reporting.plots import PANELS, plot_run, render_loss_svg, render_panel_svg
from training.reporting.run_reader import Run, load_run
from training.reporting.statistics import recent_window

TEMPLATE_DIR = Path(__file__).parent
MAX_EVENTS = 500
BAD_RECORD_KINDS = ("bad_record", "bad_records")


@dataclass(frozen=True)
class Card:
    """A headline figure: what it is, the value, and the detail that gives it meaning."""

    label: str
    value: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Chart:
    """`svg` is our own markup; `None` when `keys` were not measured."""

    title: str
    svg: Markup | None
    keys: str


def build_report(run_dir: Path | str) -> Path:
    """(Re)build every plot in `run_dir/plots/` and `run_dir/report.html`; the path of the page.

    Raises `UserError` when `run_dir` is no run directory, `OSError` when it cannot be written.
    """
    run = load_run(run_dir)
    plot_run(run)
    return write_atomically(run.path / "report.html", render_report(run).encode())


def render_report(run: Run) -> str:
    """The page as text."""
    facts = facts_from_run(run)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_DIR), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"time": formatting.format_time, "number": format_number, "significant": format_significant}
    return environment.get_template("report.html.j2").render(
        run=run,
        facts=facts,
        css=_style(),
        subtitle=_describe_setup(run, facts),
        cards=_build_cards(run, facts),
        findings=find_limits(run, facts),
        losses=_build_loss_charts(run),
        panels=_build_panels(run),
        statistics=describe_loss(run.metrics, facts.unigram_entropy_nats),
        config_lines=_split_comments(run.config_text),
        ds_config=_to_text(run.ds_config) if run.ds_config is not None else None,
        env={key: _to_line(value) for key, value in run.env.items()},
        events=run.events[-MAX_EVENTS:],
        event_details=[_describe_event(event) for event in run.events[-MAX_EVENTS:]],
        num_hidden_events=max(len(run.events) - MAX_EVENTS, 0),
        bad_records=_find_bad_records(run),
    )


def _style() -> Markup:
    sheet = (TEMPLATE_DIR / "report.css").read_text("utf-8")
    dark = f"@media (prefers-color-scheme:dark){{:root{{{css_variables(dark=True)}}}}}"
    return Markup(f":root{{{css_variables(dark=False)}}}{dark}\n{sheet}")


def _build_cards(run: Run, facts: RunFacts) -> list[Card]:
    return [
        Card("Status", facts.status, _describe_progress(facts), _status_tone(facts.status)),
        Card(
            "Training loss",
            _arrow(facts.loss_first, facts.loss_last),
            _describe_losses(facts),
            "" if facts.loss_finite_until is None else "bad",
        ),
        Card(
            "Validation loss",
            format_number(facts.eval_loss_last, digits=3),
            f"nats per token{_in_bits(facts.eval_bits_per_byte_last)}; "
            f"unigram entropy {format_number(facts.unigram_entropy_nats, digits=3)}",
            {True: "good", False: "bad", None: ""}[facts.is_below_unigram],
        ),
        Card("Throughput", format_number(facts.tokens_per_second, digits=0), "tokens/s, all devices"),
        Card("MFU", format_significant(facts.mfu_pct, "%"), _describe_mfu(facts)),
        Card("Step time", format_number(facts.step_ms, "ms"), "mean per optimizer step"),
        Card("Peak memory", format_number(facts.peak_memory_gib, "GiB", 2), _describe_memory(run, facts)),
        Card("Parameters", format_large(facts.parameters), _describe_trainable(facts)),
    ]


def _describe_progress(facts: RunFacts) -> str:
    steps = f"{format_count(facts.steps)} steps" if facts.steps is not None else "no step logged yet"
    parts = [steps]
    if facts.tokens is not None:
        parts.append(f"{format_large(facts.tokens)} tokens")
    if facts.train_seconds is not None:
        parts.append(formatting.format_duration(facts.train_seconds))
    if facts.error:
        parts.append(facts.error)
    return ", ".join(parts)


def _status_tone(status: str) -> str:
    return {"finished": "good", "failed": "bad", "stopped": "warn"}.get(status, "")


def _describe_losses(facts: RunFacts) -> str:
    if facts.loss_finite_until is not None:
        return f"first to last finite, nats per token; not finite after step {facts.loss_finite_until:,}"
    return "first to last, nats per token" + _in_bits(facts.bits_per_byte_last)


def _in_bits(bits_per_byte: float | None) -> str:
    return "" if bits_per_byte is None else f"; last {bits_per_byte:.3f} bits per byte"


def _arrow(first: float | None, last: float | None) -> str:
    if first is None and last is None:
        return formatting.NOT_MEASURED
    return f"{format_number(first, digits=3)} → {format_number(last, digits=3)}"


def _describe_mfu(facts: RunFacts) -> str:
    if facts.mfu_pct is None:
        return ""
    against = f"of {facts.peak.describe()}" if facts.peak else "peak not recorded"
    palm = (
        f"; {format_significant(facts.mfu_palm_pct, '%')} by PaLM's formula" if facts.mfu_palm_pct is not None else ""
    )
    alone = facts.ceiling_sentence()
    return against + (f"; {alone}" if alone else "") + palm


def _describe_memory(run: Run, facts: RunFacts) -> str:
    """Only CUDA's allocator reserves; without it, memory is the resident set of the process."""
    if len(run.series(names.PERF_MEMORY_RESERVED_GIB)):
        what = "allocated on the device of rank 0"
    else:
        what = "resident set of rank 0" if len(run.series(names.PERF_MEMORY_ALLOCATED_GIB)) else ""
    planned = facts.memory_plan.describe() if facts.memory_plan else ""
    return "; ".join(part for part in (what, planned) if part)


def _describe_trainable(facts: RunFacts) -> str:
    if facts.trainable_parameters is None or not facts.parameters:
        return ""
    share = 100 * facts.trainable_parameters / facts.parameters
    return f"{format_large(facts.trainable_parameters)} trainable ({share:.3g} %)"


def _describe_setup(run: Run, facts: RunFacts) -> str:
    """Device, ranks, launcher, attention, versions: what is known of them."""
    env = run.env
    gpus = env.get("gpus")
    device = f"{len(gpus)} x {gpus[0]}" if isinstance(gpus, list) and gpus else env.get("cpu")
    ranks = f"{env['world_size']} rank(s)" if env.get("world_size") else None
    launcher = f"launched by {env['launcher']}" if env.get("launcher") else None
    attention = f"attention {facts.attn_implementation}" if facts.attn_implementation else None
    torch_version = f"torch {env['torch']}" if env.get("torch") else None
    return " · ".join(str(part) for part in (device, ranks, launcher, attention, torch_version) if part)


def _build_loss_charts(run: Run) -> list[Chart]:
    keys = f"{names.TRAIN_LOSS}, {names.EVAL_LOSS}"
    num_recent = recent_window(run.metrics.last_step)
    recent = f"Loss, last {num_recent:,} steps" if num_recent else "Loss, recent steps"
    return [
        Chart("Loss, whole run", _markup(render_loss_svg(run, recent=False)), keys),
        Chart(recent, _markup(render_loss_svg(run, recent=True)), keys),
    ]


def _build_panels(run: Run) -> list[Chart]:
    svgs = {name: _markup(render_panel_svg(run, name)) for name in PANELS}
    return [Chart(panel.title, svgs[name], ", ".join(panel.keys)) for name, panel in PANELS.items()]


def _markup(svg: str | None) -> Markup | None:
    return Markup(svg) if svg else None


def _split_comments(text: str | None) -> list[tuple[str, str]] | None:
    """Lines as (value, comment), so that origins can be set in a quieter colour."""
    if text is None:
        return None
    lines = []
    for line in text.splitlines():
        value, mark, comment = (line, "", "") if line.lstrip().startswith("#") else line.partition("  #")
        lines.append(("", line) if line.lstrip().startswith("#") else (value, mark + comment))
    return lines


def _find_bad_records(run: Run) -> list[str]:
    """Records that data preparation left out, bad or not, from the summary and from events."""
    found = [_describe_event(event) for event in run.events if event.get("kind") in BAD_RECORD_KINDS]
    recorded = run.summary and run.summary.bad_records
    if isinstance(recorded, list):
        found += [_to_line(item) for item in recorded]
    elif (number := as_number(recorded)) is not None and number > 0:
        found.insert(0, f"{number:,.0f} record(s) were excluded")
    left_out = run.summary and run.summary.left_out
    counts = left_out.items() if isinstance(left_out, Mapping) else ()
    return found + [f"{count:,.0f} excluded: {_to_line(why)}" for why, n in counts if (count := as_number(n) or 0) > 0]


def _describe_event(event: Mapping[str, Any]) -> str:
    message = str(event.get("message") or "")
    on_cards = {"max_steps", "unigram_entropy_nats", "peak", "ceiling", "tokenizer_cuts"}
    known = {"time", "step", "kind", "message"} | on_cards
    rest = {key: value for key, value in event.items() if key not in known}
    return " ".join(filter(None, (message, ", ".join(f"{key}={_to_line(value)}" for key, value in rest.items()))))


def _to_line(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return formatting.NOT_MEASURED
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return orjson.dumps(value).decode()


def _to_text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
