"""What limits a run: rules over its numbers, each finding with its arithmetic.

A rule speaks only when a number of this run is past its threshold, shows that number, and names the key to turn.
What would be gained is an upper bound: the step without the phase. Nothing here is general advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.metrics import names
from training.reporting.advice import format_advise
from training.reporting.bottleneck import find_bottleneck
from training.reporting.facts import RunFacts, facts_from_run
from training.reporting.phases import PhaseShare
from training.reporting.run_reader import Run
from training.reporting.statistics import compute_statistics, mean_per_step


@dataclass(frozen=True)
class PhaseRule:
    """Speaks when `phase` takes more than `limit_pct` of the step."""

    phase: str
    limit_pct: float
    title: str
    advice: str


PHASE_RULES = (
    PhaseRule(
        names.DATA_WAIT, 10, "The loop waits for batches",
        "Raise data.num_workers, or training.dataloader_prefetch_factor if there are workers already.",
    ),
    PhaseRule(
        names.H2D, 5, "Copying batches to the device costs time",
        "Set training.dataloader_pin_memory to true.",
    ),
    PhaseRule(
        names.COMM_EXPOSED, 10, "Exposed communication",
        "Raise training.gradient_accumulation_steps (fewer reductions per token), or reduce_bucket_size in the "
        "DeepSpeed JSON. If perf/slowest_rank_behind_pct is high, the other ranks wait for that rank.",
    ),
    PhaseRule(
        names.OPTIMIZER, 25, "The optimizer step takes a large share",
        "Raise training.gradient_accumulation_steps (fewer optimizer steps per token; the global batch grows with it), "
        "or choose a fused optimizer in training.optim.",
    ),
    PhaseRule(
        names.CHECKPOINT, 5, "Checkpoints cost time",
        "Raise training.save_steps: twice the interval halves this share.",
    ),
    PhaseRule(
        names.EVAL, 10, "Evaluation costs time",
        "Raise training.eval_steps: twice the interval halves this share.",
    ),
    PhaseRule(
        names.LOGGING, 3, "Logging costs time",
        "Raise monitor.train_every, perf.log_every or monitor.plot_every.",
    ),
    PhaseRule(
        names.CACHE_CLEAR, 2, "Clearing the cache costs time",
        "Raise perf.empty_cache_every, or set it to 0 if memory suffices without it.",
    ),
    PhaseRule(
        names.OTHER, 10, "Time outside all phases",
        "Trace a few steps with perf.profile_steps to see what it is.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """`arithmetic` holds the numbers of this run and what follows from them; `advice` the keys to turn, `command` what
    to paste."""

    title: str
    arithmetic: str
    advice: str = ""
    command: str = ""


def find_limits(run: Run, facts: RunFacts | None = None) -> list[Finding]:
    """What binds the run, then findings, the largest share of the step first, then FLOPs, memory and the loss."""
    facts = facts or facts_from_run(run)
    shares = {phase.name: phase.pct or 0.0 for phase in facts.phases}
    rules = sorted(PHASE_RULES, key=lambda rule: -shares.get(rule.phase, 0.0))
    findings = list(_name_bottleneck(run, facts))
    findings += [finding for rule in rules if (finding := _apply(rule, facts.phase(rule.phase)))]
    for check in (_check_ranks, _check_compute, _check_padding, _check_recompute, _check_memory, _check_trend):
        findings.extend(check(run, facts))
    return findings


def _name_bottleneck(run: Run, facts: RunFacts) -> Iterator[Finding]:
    """The rule is in `bottleneck.py`; the rooflines of the phases that compute are its arithmetic."""
    found = find_bottleneck(facts, mean_per_step(run.series(names.PERF_GPU_IDLE_LAUNCH_MS)))
    if found is None or facts.roofline is None or facts.peak is None:
        return
    lines = [
        f"{phase.phase} takes {phase.ms:,.1f} ms and needs at least {phase.least_ms:,.1f} ms "
        f"({phase.bound}): {phase.reached_pct:.0f} %"
        for phase in facts.roofline.phases
    ]
    if found.rest_leads:
        yield Finding(
            "The largest part of the step is not training",
            f"{found.describe_rest()}.",
            f"{found.thin_rest()}.".capitalize() if found.thin_rest() else "",
        )
    yield Finding(
        f"The training is {found.kind}-bound" if found.rest_leads else f"{found.kind.capitalize()}-bound",
        f"{found.base.capitalize()}: {found.describe()}. Against {facts.peak.tflops:.3g} TFLOP/s and "
        f"{facts.roofline.gigabytes_per_second:,.3g} GB/s, {'; '.join(lines)}.",
        "Measure which settings help:",
        " ".join(format_advise(run.path, run.env, found.levers)),
    )


def _apply(rule: PhaseRule, phase: PhaseShare | None) -> Finding | None:
    if phase is None or phase.pct is None or phase.pct <= rule.limit_pct or phase.pct >= 100:
        return None
    time = f"{phase.ms:,.1f} ms of {phase.ms * 100 / phase.pct:,.1f} ms = " if phase.ms is not None else ""
    gain = 100 / (100 - phase.pct)
    return Finding(
        rule.title,
        f"{rule.phase}: {time}{phase.pct:.1f} % of the step (limit {rule.limit_pct:g} %). "
        f"Without it tokens/s would be at most 100 / (100 - {phase.pct:.1f}) = {gain:.2f} times as high.",
        rule.advice,
    )


def _check_ranks(run: Run, facts: RunFacts) -> Iterator[Finding]:
    """A rank that the others wait for, most of the time the same one."""
    slowest, behind = run.series(names.PERF_SLOWEST_RANK), run.series(names.PERF_SLOWEST_RANK_BEHIND_PCT)
    mean_behind = mean_per_step(behind)
    if not len(slowest) or mean_behind is None or mean_behind < 5:
        return
    ranks, counts = np.unique(slowest.values, return_counts=True)
    rank, times = int(ranks[counts.argmax()]), int(counts.max())
    yield Finding(
        f"The other ranks wait for rank {rank}",
        f"It was the slowest in {times} of {len(slowest)} records. The slowest rank was {mean_behind:.0f} % behind the "
        "median rank.",
        "The keys perf/PHASE_rank_max_ms show in which phase. Only rank 0 draws plots (monitor.plot_every)."
        if rank == 0
        else "The keys perf/PHASE_rank_max_ms show in which phase. Check its data, its device, other programs.",
    )


def _check_compute(run: Run, facts: RunFacts) -> Iterator[Finding]:
    """MFU inside forward and backward: what remains when every other phase is gone."""
    forward, backward = facts.phase(names.FORWARD), facts.phase(names.BACKWARD)
    if facts.mfu_pct is None or forward is None or backward is None:
        return
    compute = (forward.pct or 0.0) + (backward.pct or 0.0)
    if not 0 < compute <= 100.5:
        return
    inside = facts.mfu_pct * 100 / compute
    peak = f" against {facts.peak.describe()}" if facts.peak else ""
    yield Finding(
        "MFU without any overhead",
        f"Forward and backward are {compute:.1f} % of the step. Without the other phases, MFU would be "
        f"{facts.mfu_pct:.1f} % / {compute / 100:.3f} = {inside:.1f} %{peak}; the other "
        f"{max(100 - inside, 0):.1f} % is lost inside forward and backward.",
        _room_for_batch(run) if inside < 50 else "",
    )


def _room_for_batch(run: Run) -> str:
    used = mean_per_step(run.series(names.PERF_GPU_MEMORY_USED_PCT))
    if used is None or used > 70:
        return ""
    return f"GPU memory is {used:.0f} % full: raise training.per_device_train_batch_size."


def _check_padding(run: Run, facts: RunFacts) -> Iterator[Finding]:
    useful = mean_per_step(run.series(names.PERF_USEFUL_TOKENS_PCT))
    if useful is not None and 0 < useful < 90:
        yield Finding(
            "Computation on padding",
            f"{useful:.1f} % of the tokens are useful: {100 / useful:.2f} tokens are computed for each useful one.",
            "Set data.packing to best_fit.",
        )


def _check_recompute(run: Run, facts: RunFacts) -> Iterator[Finding]:
    if not facts.hfu_pct or not facts.mfu_pct or facts.hfu_pct < 1.15 * facts.mfu_pct:
        return
    share = 100 * (facts.hfu_pct - facts.mfu_pct) / facts.hfu_pct
    recomputes = re.search(
        r"^\s*(gradient|activation)_checkpointing: (true|full|every_\d+)\b", run.config_text or "", re.MULTILINE
    )
    yield Finding(
        "More FLOPs are executed than the model needs",
        f"HFU {facts.hfu_pct:.1f} % against MFU {facts.mfu_pct:.1f} %: "
        f"({facts.hfu_pct:.1f} - {facts.mfu_pct:.1f}) / {facts.hfu_pct:.1f} = {share:.0f} % of the executed FLOPs are "
        "recomputation, padding or masked-out attention.",
        f"{recomputes[1]}_checkpointing is {recomputes[2]}: perf.activation_checkpointing: auto computes again only "
        "what does not fit in memory."
        if recomputes
        else "",
    )


def _check_memory(run: Run, facts: RunFacts) -> Iterator[Finding]:
    peak, reserved = run.series(names.PERF_MEMORY_PEAK_GIB).last(), run.series(names.PERF_MEMORY_RESERVED_GIB).last()
    if run.env.get("gpus") and peak and reserved and reserved > 1.3 * peak:
        yield Finding(
            "Reserved memory is unused",
            f"{reserved:.2f} GiB reserved against a peak of {peak:.2f} GiB allocated: {reserved - peak:.2f} GiB "
            f"({100 * (reserved - peak) / reserved:.0f} %) is fragmentation or a past peak.",
            "Set this environment variable for the run:",
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        )


def _check_trend(run: Run, facts: RunFacts) -> Iterator[Finding]:
    """A loss that still falls by more than its own noise at the end."""
    stats = compute_statistics(run.series(names.TRAIN_LOSS))
    if stats is None or stats.recent_slope is None or stats.recent_points < 20:
        return
    fall = -stats.recent_slope * stats.recent_steps / 1000
    if fall > stats.recent_std:
        yield Finding(
            "The loss is still falling",
            f"Slope over the last {stats.recent_steps:,} steps: {stats.recent_slope:+.4f} per 1,000 steps, "
            f"a fall of {fall:.4f} against a standard deviation of {stats.recent_std:.4f}.",
            "More steps (training.max_steps) would lower it further.",
        )
