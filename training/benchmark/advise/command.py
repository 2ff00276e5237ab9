"""Which settings make this configuration faster or smaller? Measures them on this machine, one lever at a time.

    python -m training.benchmark advise --config minigpt_quickstart [any argument of train.py] \\
        [--launcher "deepspeed --num_gpus 2"] [--levers micro-batch,packing,…] [--steps 10] [--repeat 4] \\
        [--work_dir runs/advise] [--output PAGE.md]

Levers: micro-batch, packing, attention, loss-kernel, compile, precision, checkpointing, workers, pinned-memory,
optimizer, zero-stage, bucket-size, threads. By default all of them are tried that have a variant here.

Each run is a short training with the configuration's data, model and launcher: `--steps` steps without evaluation,
checkpoints and report. A round runs every variant once, in groups of three, each group with a run of the unchanged
configuration, in random order. A variant that is slower by a fifth in two rounds is not run again. At the end, all
variants that were faster and train the same are combined and compared with the unchanged configuration in new rounds,
because with many variants one may look faster by chance. The page that is printed is also written to `--output`, with
its JSON.

The time is (variants + a third) x rounds x (a start and a few steps). The first run shows how long that is.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep.errors import UserError
from training.benchmark.advise.judging import Trial, Verdict, find_loss_limit, judge, read_trial
from training.benchmark.advise.levers import LEVERS, Variant, combine, list_variants
from training.benchmark.advise.page import Advice, format_advice
from training.benchmark.advise.running import (
    LIMIT_RATIO,
    LIMIT_SECONDS,
    Runner,
    change_json,
    describe_baseline,
    name_files,
)
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import draw_orders
from training.benchmark.launching import run_logged
from training.benchmark.page import format_machine, look_at_machine, write_page
from training.comparing.sides import WARMUP_STEPS
from training.config import load_config
from training.reporting.formatting import format_duration
from training.run_dir import write_text_atomic

logger = logging.getLogger("redline.benchmark")

GROUP = 3
SLOW, SLOW_ROUNDS = 0.8, 2
MIN_STEPS = WARMUP_STEPS + 2


@dataclass
class Session:
    """Runs and what they gave. pairs: by variant, (as it is, with it) of each round; failed: by variant, why; lost: the
    last failure of the configuration as it is."""

    runner: Runner
    baselines: list[Trial] = field(default_factory=list)
    pairs: dict[str, list[tuple[Trial, Trial]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    number: int = 0

    def run(self, variant: Variant | None) -> Trial:
        """One run. Raises UserError when it fails or measured nothing."""
        self.number += 1
        run = self.runner.run(variant, self.number)
        trial = read_trial(run)
        if trial is None:
            raise UserError(f"{run.path}: no step past the first ones was measured; raise --steps")
        if variant is None:
            self.baselines.append(trial)
        return trial

    def run_group(self, group: Sequence[Variant | None]) -> None:
        """Runs of neighbours, one of them the configuration as it is: a pair for each variant that did not fail.

        A group in which the configuration itself fails is lost, and no other; so is what has none beside it yet when
        Ctrl-C comes.
        """
        trials: dict[str, Trial] = {}
        baseline: Trial | None = None
        try:
            for variant in group:
                name = "as it is" if variant is None else name_files(variant)
                try:
                    trial = self.run(variant)
                except UserError as error:
                    logger.info("%s: %s", name, error)
                    (self.lost if variant is None else self.failed)[name_files(variant)] = str(error)
                    continue
                if variant is None:
                    baseline = trial
                else:
                    trials[name] = trial
        finally:
            if baseline is not None:
                for name, trial in trials.items():
                    self.pairs.setdefault(name, []).append((baseline, trial))

    def is_open(self, variant: Variant) -> bool:
        """Whether another round of it is worth its time."""
        name = name_files(variant)
        if name in self.failed:
            return False
        ratios = [after.tokens_per_second / before.tokens_per_second
                  for before, after in self.pairs.get(name, [])]  # fmt: skip
        return len(ratios) < SLOW_ROUNDS or max(ratios) > SLOW

    def run_rounds(self, variants: Sequence[Variant], rounds: int, seed: int) -> None:
        """Run the variants in groups, each beside the configuration as it is, in a drawn order."""
        for number, order in enumerate(draw_orders(variants, rounds, seed)):
            groups = [order[at : at + GROUP] for at in range(0, len(order), GROUP)]
            draw = random.Random(f"{seed} {number}")
            for group in groups:
                open_ones: list[Variant | None] = [variant for variant in group if self.is_open(variant)]
                if open_ones:
                    open_ones.insert(draw.randrange(len(open_ones) + 1), None)
                    self.run_group(open_ones)
            logger.info("round %d of %d is done", number + 1, rounds)

    def judge(self, variants: Sequence[Variant]) -> list[Verdict]:
        """A verdict for each variant that has a round."""
        limit = find_loss_limit(self.baselines)
        return [judge(one, self.pairs[name_files(one)], limit) for one in variants if self.pairs.get(name_files(one))]


def main(argv: list[str], launch: Callable[[Sequence[str], Path, float], None] = run_logged) -> int:
    """Try the levers and print the advice; the exit code."""
    options, arguments = _parse(argv)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at each import that a kernel is missing
    logging.basicConfig(level=logging.INFO, format="benchmark | %(message)s", stream=sys.stderr)
    try:
        levers = _read_levers(options)
        load_config(arguments)  # its errors are reported before anything runs
        runner = Runner(arguments, shlex.split(options.launcher), options.steps, options.work_dir, launch)
        advice = advise(Session(runner), levers, options.repeat, shlex.join(["advise", *argv]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    page = format_advice(advice)
    print(page)
    output = options.output or options.work_dir / "advice.md"
    write_page(output, page, asdict(advice))
    return 0


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command; the rest are train.py's."""
    parser = build_parser("advise", __doc__)
    parser.allow_abbrev = False
    parser.add_argument("--levers", metavar="A,B", help="only these levers")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="optimizer steps of a run (default 10)")
    parser.add_argument("--repeat", type=int, default=4, metavar="N", help="rounds (default 4)")
    parser.add_argument("--launcher", default=sys.executable, metavar='"CMD"', help="command that starts a script")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/advise"), help="empty directory for the runs")
    parser.add_argument("--output", type=Path, metavar="PAGE.md", help="default: advice.md in the work_dir")
    return parser.parse_known_args(argv)


def _read_levers(options: argparse.Namespace) -> list[str]:
    """Raises UserError for what cannot be tried so."""
    levers = options.levers.split(",") if options.levers else list(LEVERS)
    for name in levers:
        if name not in LEVERS:
            raise UserError(f"--levers {name}: unknown, one of {', '.join(LEVERS)}")
    if options.steps < MIN_STEPS:
        raise UserError(f"--steps {options.steps}: name {MIN_STEPS} or more, as the first {WARMUP_STEPS} do not count")
    if options.repeat < 2:
        raise UserError(f"--repeat {options.repeat}: name 2 or more: one run does not show the variation between runs")
    if options.work_dir.is_dir() and any(options.work_dir.iterdir()):
        raise UserError(f"--work_dir {options.work_dir}: it is not empty; name another directory, or remove it")
    return levers


def advise(session: Session, levers: Sequence[str], rounds: int, command: str) -> Advice:
    """All rounds, then what was best once more. Raises UserError when the configuration itself does not run.

    On Ctrl-C what is known so far is reported.
    """
    machine = look_at_machine(f"python -m training.benchmark {command}")
    runner = session.runner
    variants: list[Variant] = []
    confirmed: list[Verdict] = []
    notes: list[str] = []
    left_out: dict[str, str] = {}
    logger.info("first run (not counted): it builds the token store")
    first = runner.run(None, 0)
    base = describe_baseline(runner.arguments, first)
    runner.world_size = base.world_size
    started = time.monotonic()
    try:
        session.run(None)
        seconds = time.monotonic() - started
        runner.limit_seconds = max(LIMIT_SECONDS, LIMIT_RATIO * seconds)
        found, left_out = list_variants(base, levers)
        variants = _check_arguments(session, found)
        num_runs = (len(variants) + math.ceil(len(variants) / GROUP)) * rounds
        time_left = format_duration(num_runs * seconds)
        logger.info("%d variants, %d rounds, about %s, then the confirming rounds", len(variants), rounds, time_left)
        session.run_rounds(variants, rounds, seed=0)
        confirmed = _confirm(session, variants, rounds)
    except KeyboardInterrupt:
        notes.append("Stopped by Ctrl-C: runs without one of the unchanged configuration beside them do not count.")
    notes += [f"The unchanged configuration failed, and groups without it do not count: {why}"
              for why in session.lost.values()]  # fmt: skip
    ranks = f"{base.world_size} rank{'s' * (base.world_size > 1)}"
    best = max(confirmed, key=lambda verdict: verdict.speed.estimate, default=None)
    return Advice(
        machine=format_machine(machine, remark=f" {ranks} on {base.device}."),
        baseline=_describe_baseline(session, runner.steps),
        verdicts=session.judge(variants) if session.baselines else [],
        failed={f"{one.lever} {one.label}": session.failed[name_files(one)]
                for one in variants if name_files(one) in session.failed},
        left_out=left_out,
        confirmed=confirmed,
        json_file=_write_json(runner, best.variant) if best and best.variant.json else None,
        notes=notes,
    )  # fmt: skip


def _check_arguments(session: Session, variants: Sequence[Variant]) -> list[Variant]:
    """What contradicts the configuration is found before hours of runs; it is reported with what failed."""
    for variant in variants:
        try:
            session.runner.build_arguments(variant, session.runner.work_dir / "unused")
        except UserError as error:
            session.failed[name_files(variant)] = str(error)
    return list(variants)


def _confirm(session: Session, variants: Sequence[Variant], rounds: int) -> list[Verdict]:
    """New rounds of everything that was faster and trains the same: all together, and the best alone."""
    gains = [verdict for verdict in session.judge(variants) if verdict.is_faster and verdict.keeps_training]
    best: dict[str, Verdict] = {}
    for verdict in sorted(gains, key=lambda verdict: verdict.speed.estimate):
        best[verdict.variant.lever] = verdict
    if not best:
        return []
    ranked = sorted(best.values(), key=lambda verdict: -verdict.speed.estimate)
    chosen = [_again(ranked[0].variant)]
    if len(ranked) > 1:
        chosen.append(combine([verdict.variant for verdict in ranked]))
    logger.info("confirming in new rounds: %s", "; ".join(one.label for one in chosen))
    session.run_rounds(chosen, rounds, seed=1)
    return session.judge(chosen)


def _again(variant: Variant) -> Variant:
    """Under another name, so that its new rounds are judged on their own."""
    return Variant(f"again: {variant.lever}", variant.label, variant.recipe, variant.json)


def _write_json(runner: Runner, variant: Variant) -> str:
    path = runner.work_dir / "advised_deepspeed.json"
    write_text_atomic(path, json.dumps(change_json(load_config(runner.arguments), variant.json), indent=2) + "\n")
    return str(path)


def _describe_baseline(session: Session, steps: int) -> str:
    trials = session.baselines
    if not trials:
        return "The unchanged configuration was not measured."
    rates = sorted(trial.tokens_per_second for trial in trials)
    peaks = [trial.peak_gib for trial in trials if trial.peak_gib]
    memory = f", at most {max(peaks):.2f} GiB" if peaks else ""
    return (
        f"Unchanged configuration: {rates[len(rates) // 2]:,.0f} tokens/s (median of {len(rates)} runs of "
        f"{steps} steps, {rates[0]:,.0f} to {rates[-1]:,.0f}){memory}."
    )
