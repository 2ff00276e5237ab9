"""A run directory for a training without a recipe: `args.output_dir`, beside the Trainer's own checkpoints.

It gets `metrics.jsonl`, `events.jsonl`, `env.json`, `config.yaml`, `summary.json` and `report.html`, which
`training.report`, `training.monitor` and `training.compare` read. Records of an earlier training in the same directory
are kept in `records.old-1/` (or the next number); a resumed training continues its own.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import yaml

from training.callbacks.sinks import MetricsFile, Record, Sink
from training.environment import describe_environment
from training.launch import read_world
from training.metrics import names
from training.models.adapters import trainable_share
from training.reporting.html import build_report
from training.reporting.run_reader import load_run
from training.reporting.screen import format_summary
from training.reporting.summary import Summary
from training.run_dir import RunDir, write_text_atomic

logger = logging.getLogger("redline.train")

WRITTEN_AT_THE_END = ("summary.json", "report.html")
RECORDS = ("metrics.jsonl", "events.jsonl", "env.json", "config.yaml", "summary.json", "report.html", "plots")


class OwnRun:
    """The files of one call of `train`."""

    def __init__(self, trainer: Any, max_steps: int) -> None:
        self._trainer = trainer
        self._max_steps = max_steps
        self._run_dir = RunDir(trainer.args.output_dir)

    @property
    def path(self) -> str:
        """The directory."""
        return str(self._run_dir.path)

    def open(self) -> list[Sink]:
        """Open the directory and say that training starts; the sinks of this rank."""
        trainer, run_dir = self._trainer, self._run_dir
        if not trainer.is_world_process_zero():
            return []
        step = trainer.state.global_step
        run_dir.path.mkdir(parents=True, exist_ok=True)
        run_dir.cut_metrics_after(step) if step else self._put_aside()
        is_ours = self._has_records()
        if is_ours or not run_dir.env.exists():
            run_dir.write_json(run_dir.env, describe_environment(read_world()))
        if is_ours or not run_dir.config.exists():
            write_text_atomic(run_dir.config, _describe_arguments(trainer.args))
        run_dir.append_event(
            "resume" if step else "start",
            step,
            f"training resumes from step {step}" if step else f"training for {self._max_steps} steps",
            max_steps=self._max_steps,
            peak=asdict(trainer.meter.peak) if trainer.meter and trainer.meter.peak else None,
        )
        return [MetricsFile(run_dir), StockTrackers(trainer)]

    def close(self, error: BaseException | None) -> None:
        """Write the summary and the report, and print the summary. Collective unless there was an error."""
        trainer, run_dir = self._trainer, self._run_dir
        totals = trainer.meter.run_totals() if trainer.meter and error is None else {}
        trainer.recorder.close()
        if not trainer.is_world_process_zero():
            return
        summary = summarize(trainer, run_dir, totals)
        if error is not None:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            run_dir.append_event("error", trainer.state.global_step, message)
            summary = replace(summary, status="failed", error=message)
        run_dir.write_json(run_dir.summary, summary.as_json())
        try:
            build_report(run_dir.path)
        except Exception as failed:  # the training is over: a page that cannot be drawn is no reason to fail it
            reason = f"{type(failed).__name__}: {failed}".splitlines()[0]
            logger.warning("report: not built (%s); python -m training.report %s builds it", reason, run_dir.path)
        if error is None and not trainer.args.disable_tqdm:
            sys.stdout.write(format_summary(summary, run_dir.path) + "\n")

    def _has_records(self) -> bool:
        """Whether a training of ours left its records here: files of the user's with such names stay as they are."""
        return self._run_dir.metrics.exists() or self._run_dir.events.exists()

    def _put_aside(self) -> None:
        """Keep the records of an earlier training in this directory, and files of the user's that would be written."""
        names = RECORDS if self._has_records() else WRITTEN_AT_THE_END
        older = [self._run_dir.path / name for name in names if (self._run_dir.path / name).exists()]
        if not older:
            return
        places = (self._run_dir.path / f"records.old-{number}" for number in count(1))
        place = next(place for place in places if not place.exists())
        place.mkdir()
        for file in older:
            file.rename(place / file.name)
        logger.info("%s: records that were here are kept in %s", self._run_dir.path, place.name)


class StockTrackers:
    """Performance metrics for the trackers that the Trainer itself started: they log the rest, and rename `perf/`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def write(self, record: Record) -> None:
        """Hand `perf/` metrics to TensorBoard and W&B where `report_to` names them."""
        measured = {key: value for key, value in record.items() if key.startswith("perf/")}
        if not measured:
            return
        for callback in self._trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                for key, value in measured.items():
                    writer.add_scalar(key, value, record["step"])
            run = getattr(getattr(callback, "_wandb", None), "run", None)
            if run is not None:
                run.log({**measured, "train/global_step": record["step"]})

    def close(self) -> None:
        """They are the Trainer's."""


def summarize(trainer: Any, run_dir: RunDir, totals: dict[str, float]) -> Summary:
    """The facts of a training that need no recipe.

    totals: `Meter.run_totals()`.
    """
    run = load_run(run_dir.path) if run_dir.events.exists() else None
    losses = run.metrics.series(names.TRAIN_LOSS).finite().values if run else []
    eval_losses = run.metrics.series(names.EVAL_LOSS).finite().values if run else []
    peaks_gib = run.metrics.series(names.PERF_MEMORY_PEAK_GIB).finite().values.tolist() if run else []
    peak, ceiling = (trainer.meter.peak, trainer.meter.ceiling) if trainer.meter else (None, None)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    share = trainable_share(model)
    step_ms = totals.get(names.PERF_STEP_MS)
    phases = find_phases_ms(totals)
    progress = trainer.recorder.progress
    return Summary(
        name=run_dir.name,
        status="finished",
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch,
        tokens=progress.tokens,
        train_seconds=progress.seconds,
        loss_first=_at(losses, 0),
        loss_last=_at(losses, -1),
        eval_loss_first=_at(eval_losses, 0),
        eval_loss_last=_at(eval_losses, -1),
        tokens_per_second=totals.get(names.PERF_TOKENS_PER_SECOND),
        mfu_pct=totals.get(names.PERF_MFU_PCT),
        mfu_palm_pct=totals.get(names.PERF_MFU_PALM_PCT),
        hfu_pct=totals.get(names.PERF_HFU_PCT),
        peak=asdict(peak) if peak else None,
        ceiling=asdict(ceiling) if ceiling else None,
        phases_ms=phases,
        phases_pct={phase: 100.0 * ms / step_ms for phase, ms in phases.items()} if step_ms else {},
        step_ms=step_ms,
        peak_memory_gib=max(peaks_gib, default=None),
        parameters=share.total,
        trainable_parameters=share.trainable,
        attn_implementation=getattr(model.config, "_attn_implementation", None) if hasattr(model, "config") else None,
        report="report.html",
    )


def find_phases_ms(totals: dict[str, float]) -> dict[str, float]:
    """Milliseconds a step by phase, of those that were measured."""
    return {p: totals[names.phase_key(p)] for p in names.PHASES if names.phase_key(p) in totals}


def _at(values: Any, index: int) -> float | None:
    return float(values[index]) if len(values) else None


def _describe_arguments(args: Any) -> str:
    """The arguments as a recipe's section; `to_dict` leaves out tokens for the hub."""
    return yaml.safe_dump({"training": _plain(args.to_dict())}, sort_keys=True, allow_unicode=True)


def _plain(value: Any) -> Any:
    """YAML's own types; anything else as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
