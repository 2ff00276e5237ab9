"""What was tried, as Markdown that reads as well in a terminal, and the YAML to paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from training.benchmark.advise.judging import Verdict
from training.benchmark.advise.levers import DEEPSPEED, Variant
from training.comparing.intervals import Interval
from training.comparing.page import TOO_NOISY
from training.reporting.formatting import format_table


@dataclass(frozen=True)
class Advice:
    """All that was tried. failed: variant -> why; left_out: lever -> why it has nothing to turn; confirmed: what is
    advised, run once more in new rounds."""

    machine: str
    baseline: str
    verdicts: Sequence[Verdict]
    failed: dict[str, str]
    left_out: dict[str, str]
    confirmed: Sequence[Verdict]
    json_file: str | None = None
    notes: Sequence[str] = ()


def format_advice(advice: Advice) -> str:
    """The whole page."""
    lines = ["# Levers tried", "", advice.machine, "", advice.baseline, ""]
    lines += ["## Each lever alone, compared with the unchanged configuration", "", HOW_TO_READ, ""]
    lines += _format_table(sorted(advice.verdicts, key=lambda verdict: -verdict.speed.estimate))
    for title, reasons in (("Failed", advice.failed), ("No variant to try", advice.left_out)):
        if reasons:
            lines += ["", f"## {title}", "", *(f"- {name}: {reason}" for name, reason in reasons.items())]
    lines += ["", "## Advice", "", *_format_confirmed(advice)]
    lines += _format_others(advice.verdicts)
    if advice.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in advice.notes)]
    return "\n".join(lines) + "\n"


HOW_TO_READ = """\
Each ratio compares a variant with the runs of the unchanged configuration in the same groups, with a 95 % interval.
Memory is the peak of the process (CPU: resident, GPU: allocated). Loss is the largest relative difference at a step:
"same" is within rounding, "changed" is another training."""


def _format_table(verdicts: Sequence[Verdict]) -> list[str]:
    cells = [["lever", "variant", "tokens/s", "interval", "memory", "loss", "verdict"]]
    for verdict in verdicts:
        speed = verdict.speed
        memory = f"{verdict.memory.estimate:.3f} {_interval(verdict.memory)}" if verdict.memory else "not measured"
        cells.append(
            [
                verdict.variant.lever, verdict.variant.label, f"{speed.estimate:.3f}", _interval(speed), memory,
                describe_loss(verdict), describe_speed(verdict),
            ]
        )  # fmt: skip
    return format_table(cells)


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "(one round)"
    if interval.high > 100 * interval.estimate:
        return "(unbounded)"
    return f"({interval.low:.3f} to {interval.high:.3f})"


def describe_loss(verdict: Verdict) -> str:
    """Whether the loss is the same, and by how much it differs."""
    change = verdict.loss_change
    size = "equal in every digit" if change == 0 else f"{100 * change:.2g} %"
    if verdict.variant.changes_training:
        return f"changed: {verdict.variant.changes_training}, {size}"
    if change == 0:
        return size
    return f"{'same' if verdict.keeps_training else 'changed'}, {size}"


def describe_speed(verdict: Verdict) -> str:
    """Faster, slower, no difference, or why that is not known."""
    speed = verdict.speed
    if speed.differs is None:
        return "inconclusive"
    if speed.differs:
        return "faster" if speed.estimate > 1 else "slower"
    shown = speed.detectable
    if shown is None or shown > TOO_NOISY:
        return "inconclusive: the runs vary too much"
    return f"no difference (detectable {100 * shown:.1f} %)"


def _format_confirmed(advice: Advice) -> list[str]:
    if not advice.verdicts:
        return ["Nothing was measured."]
    if not advice.confirmed:
        untold = sum(verdict.speed.differs is not True for verdict in advice.verdicts)
        lines = ["No variant was measurably faster without changing what is trained."]
        return lines + [
            f"{untold} differed by less than these rounds can detect; more rounds (--repeat) detect smaller ones."
        ] * bool(untold)
    lines = ["What was faster and trains the same, run again in new rounds beside the unchanged configuration:", ""]
    lines += _format_table(advice.confirmed)
    best = max(advice.confirmed, key=lambda verdict: verdict.speed.estimate)
    if not best.is_faster:
        return [*lines, "", "The gain did not hold in the new rounds: change nothing."]
    if not best.keeps_training:
        return [*lines, "", "Together they change the losses: apply them one by one."]
    lines += ["", f"YAML to paste ({describe_gain(best)}):", "", "```yaml", build_yaml(best.variant), "```"]
    if best.variant.json:
        keys = ", ".join(f"{key}: {value}" for key, value in best.variant.json.items())
        lines += ["", f"and in the DeepSpeed JSON {keys} (written as {advice.json_file})."]
    return lines


def describe_gain(verdict: Verdict) -> str:
    """The ratio of tokens/s with its interval."""
    return f"{verdict.speed.estimate:.3f} times the tokens/s {_interval(verdict.speed)}"


def _format_others(verdicts: Sequence[Verdict]) -> list[str]:
    """Gains that are not free, and memory that is."""
    lines: list[str] = []
    changed = [verdict for verdict in verdicts if verdict.is_faster and not verdict.keeps_training]
    if changed:
        lines += ["", "Faster, but another training; compare complete runs first"]
        lines += ["(`python -m training.benchmark compare`):", ""]
        lines += [f"- {_name(one.variant)}: {describe_gain(one)}; `{_inline(one.variant)}`" for one in changed]
    saving = [verdict for verdict in verdicts if verdict.saves_memory and verdict.keeps_training]
    if saving:
        lines += ["", "Less memory, the same training:", ""]
        for one in saving:
            assert one.memory is not None
            memory = f"{one.memory.estimate:.3f} times the memory {_interval(one.memory)}"
            lines.append(f"- {_name(one.variant)}: {memory}, {describe_gain(one)}; `{_inline(one.variant)}`")
    return lines


def _name(variant: Variant) -> str:
    return f"{variant.lever} {variant.label}"


def _inline(variant: Variant) -> str:
    changes = {**variant.recipe, **{f"JSON {key}": value for key, value in variant.json.items()}}
    return ", ".join(f"{key}: {_as_yaml(value)}" for key, value in changes.items())


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value).splitlines()[0]


def build_yaml(variant: Variant) -> str:
    """The changes of a variant as sections of a recipe."""
    nested: dict[str, Any] = {}
    for key, value in variant.recipe.items():
        if key == DEEPSPEED:
            nested["deepspeed"] = None if value == "none" else value
            continue
        section, name = key.split(".", 1)
        nested.setdefault(section, {})[name] = value
    return yaml.safe_dump(nested, sort_keys=False, default_flow_style=False).strip() if nested else "{}"
