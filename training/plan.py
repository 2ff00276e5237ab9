"""What a run needs, before it starts: memory of each rank, FLOPs, time, disk. Needs no GPU, no weights and no data.

    python -m training.plan --config qwen2.5_0.5b_sft_full --device "NVIDIA L4"
    python -m training.plan --config minigpt_124m_pretrain --deepspeed zero2_bf16 --world_size 8 --device 24GiB --json

Takes everything `training/train.py` takes, and `--world_size N` (default 1), `--device NAME` (as the driver names it,
or a size such as 24GiB; left out: a CPU), `--like RUN` (a finished run on such a device: the time is predicted at the
rate it reached, not at an assumed MFU) and `--json`. Formulas and what is an estimate: docs/memory.md.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from data_prep.command import run_command, with_exit_code
from data_prep.errors import UserError
from data_prep.progress import progress
from training.comparing.sides import STEP_WITHOUT_PERIODIC, find_windows
from training.config import load_config
from training.config.usage import Command
from training.metrics import names
from training.reporting.facts import facts_from_run
from training.reporting.run_reader import load_run

if TYPE_CHECKING:
    from training.memory.run_plan import RunPlan

GIB = 2**30
MIB = 2**20


COMMAND = Command(
    "training.plan",
    "Predict what a run needs before it starts: memory of each rank, FLOPs, time and disk space. The plan needs no "
    "GPU, no weights and no data. docs/memory.md explains the formulas and lists what is only estimated.",
    {
        "--world_size": "Number of ranks (default 1).",
        "--device": 'Device that the run is planned for: a name as the driver reports it, such as "NVIDIA L4", or a '
        "memory size, such as 24GiB. By default, a CPU.",
        "--like": "Run directory of a finished run on such a device. The time is predicted from the rate that this run "
        "reached instead of an assumed MFU.",
        "--json": "Print the plan as JSON.",
    },
    ("[--world_size N]", "[--device NAME_OR_SIZE]", "[--like RUN]", "[--json]"),
)


@dataclass(frozen=True)
class PlanFlags:
    """The flags that only the plan has."""

    world_size: int
    device: str | None
    like: str | None
    as_json: bool

    @property
    def target(self) -> dict[str, Any]:
        """Keyword arguments of `plan_run`."""
        return {"world_size": self.world_size, "device": self.device}


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; the exit code."""
    flags, rest = split_flags(list(sys.argv[1:] if argv is None else argv))
    loaded = load_config(rest, flags.world_size, COMMAND)
    rate = read_rate(flags.like) if flags.like else None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # theirs to follow

    # torch comes in after everything that can fail without it
    from training.memory.run_plan import plan_run
    from training.models.planned import build_planned_model

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("redline.data").setLevel(logging.INFO)  # how far it has come
    with progress("planning"):
        plan = plan_run(loaded, partial(build_planned_model, loaded.config), rate=rate, **flags.target)
    print(json.dumps(dataclasses.asdict(plan), indent=2) if flags.as_json else format_plan(plan))
    return 0


def split_flags(argv: list[str]) -> tuple[PlanFlags, list[str]]:
    """The plan's own flags, and the rest for `load_config`. `-` and `_` are the same, as everywhere."""
    values: dict[str, str] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        name, equals, value = item.partition("=")
        name = name.replace("-", "_")
        if name == "__json":
            values[name] = "true"
        elif name in ("__world_size", "__device", "__like"):
            values[name] = value if equals else next(items, "")
            if not values[name]:
                raise UserError(f"command line: {item}: name a value")
        else:
            rest.append(item)
    world_size = values.get("__world_size", "1")
    if not world_size.isdigit() or int(world_size) < 1:
        raise UserError(f"command line: --world_size = {world_size!r}: must be a whole number from 1 on")
    return PlanFlags(int(world_size), values.get("__device"), values.get("__like"), "__json" in values), rest


def read_rate(run: str) -> tuple[float, str]:
    """Model TFLOP/s per device that a finished run reached, and the run. Raises UserError when it has none."""
    finished = load_run(run)
    facts = facts_from_run(finished)
    if facts.mfu_pct is None or facts.peak is None or facts.peak.tflops is None:
        raise UserError(f"command line: --like = {run!r}: this run has no MFU in its summary.json or metrics.jsonl")
    # MFU is over all of the time, a plan's over the steps alone
    rate, step = (find_windows(finished, key) for key in (names.PERF_MFU_PCT, names.PERF_STEP_MS))
    work = find_windows(finished, STEP_WITHOUT_PERIODIC)
    mfu_pct = rate.mean() * step.mean() / work.mean() if rate and step and work else facts.mfu_pct
    return mfu_pct / 100 * facts.peak.tflops, run


def format_plan(plan: RunPlan) -> str:
    """The plan as text."""
    lines = [
        f"{plan.recipe}: {plan.parameters / 1e6:,.1f} M parameters, {plan.trained_parameters / 1e6:,.2f} M trained; "
        f"{plan.setup}; {plan.world_size} rank{'s' * (plan.world_size > 1)} on {plan.device or 'CPU'}",
        "",
        f"memory of one rank at micro-batch {plan.micro_batch_size} x {plan.seq_len} tokens",
    ]
    for part in plan.parts:
        where = "host" if part.place == "host" else {"always": "", "passes": "passes", "step": "step"}[part.at]
        lines.append(f"  {part.name:<40}{_size(part.bytes):>13}  {where:<7} {part.note}".rstrip())
    lines.append(f"  {'peak on the device':<40}{_size(plan.device_peak_bytes):>13}")
    if plan.evaluation_peak_bytes is not None:
        rows = plan.evaluation_rows or 0
        what = f"peak of an evaluation, {rows} row{'s' * (rows > 1)}"
        lines.append(f"  {what:<40}{_size(plan.evaluation_peak_bytes):>13}")
    if plan.host_bytes:
        lines.append(f"  {'on the host':<40}{_size(plan.host_bytes):>13}")
    lines += [
        "",
        *_format_checkpointing(plan),
        *_format_fit(plan),
        *_format_work(plan),
        "",
        *(f"note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def _format_checkpointing(plan: RunPlan) -> list[str]:
    if not plan.checkpointing_modes:
        return []
    lines = [
        f"activation checkpointing: auto takes {plan.checkpointing}",
        f"  {'mode':<12}{'peak':>13}  forward pass done again",
    ]
    for mode in plan.checkpointing_modes:
        lines.append(f"  {mode.name:<12}{_size(mode.peak_bytes):>13}  {mode.recomputed_pct:.0f} %")
    return [*lines, ""]


def _format_fit(plan: RunPlan) -> list[str]:
    from training.memory.estimate import LARGEST_MICRO_BATCH

    if plan.capacity_bytes is None:
        return []
    fits = "fits" if plan.device_peak_bytes <= plan.capacity_bytes else "does NOT fit"
    largest: Any = plan.largest_micro_batch_size or "none: not even 1 fits"
    if largest == LARGEST_MICRO_BATCH:
        largest = f"{largest} or more"
    size = f"{plan.capacity_bytes / GIB:.1f} GiB"
    lines = [f"{plan.device}: {size}; the recipe's micro-batch {fits}; largest micro-batch that fits: {largest}"]
    if (plan.evaluation_peak_bytes or 0) > plan.capacity_bytes:
        rows = plan.evaluation_rows
        lines.append(f"{plan.device}: evaluation does NOT fit: lower training.per_device_eval_batch_size, now {rows}")
    return lines


def _format_work(plan: RunPlan) -> list[str]:
    lines = [
        f"step: {plan.tokens_per_step:,} tokens, {_flops(plan.step_flops)} over all ranks (model FLOPs, full rows)"
    ]
    if plan.steps is not None:
        lines.append(f"run: {plan.steps:,} steps, {plan.total_tokens:,} tokens, {_flops(plan.total_flops)}")
    if plan.step_seconds is not None:
        rate = plan.tokens_per_step / plan.step_seconds
        total = f"about {_duration(plan.seconds)}; " if plan.seconds is not None else ""
        lines.append(f"time: {total}{1e3 * plan.step_seconds:,.0f} ms per step, {rate:,.0f} tokens/s, at {plan.rate}")
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk_bytes.items())
    return [*lines, f"disk: {disk}"]


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 10 else f"{count / MIB:,.2f} MiB"


def _flops(value: int | None) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if value is not None and value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{(value or 0) / 1e9:,.2f} GFLOP"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
