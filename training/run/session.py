"""One training session: join the ranks, prepare the data, open the run directory, resume or start, train, finish.

The order matters. Rank 0 locks the run directory against other sessions, and alone touches it, before the others look
at it; what can fail without data is settled first (the place, the checkpoint and what changed since, the arguments);
one rank of each node prepares the data while the others wait. The run directory is opened when model, optimizer,
schedule and trackers stand: a run that starts over an older one then moves the old one aside and never writes into it.
A checkpoint is checked against its manifest before anything unpickles it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from data_prep.errors import UserError
from data_prep.prepare import Prepared, prepare
from training.activations.modes import AUTO
from training.callbacks.garbage import give_back
from training.callbacks.stall_signs import StallSigns
from training.callbacks.stopping import Stopping
from training.checkpoints.manifest import CheckpointManifest, check_resumable, find_checkpoints, read_manifest
from training.checkpoints.quarantine import QUARANTINE, check_seen_by_all, find_resumable
from training.checkpoints.store import sweep
from training.config import LoadedConfig
from training.config.resume_changes import Change, describe_settings, find_changes
from training.data.held_out import warn_of_warmup, without_empty_evaluation
from training.launch import World, join_world, leave_world
from training.memory.comparison import MemoryBase, measure_base
from training.precision import compute_float32
from training.ranks import Agreement, on_each_node, on_main_rank
from training.reporting.summary import Summary
from training.run.build import build_trainer, build_training_arguments, find_run_path
from training.run.checkpointing import fit_checkpointing
from training.run.micro_batch import fit_micro_batch
from training.run.opening import Opening
from training.run.stalling import build_stall_watch
from training.run_dir import RunDir
from training.run_lock import RunLock
from training.stop_signals import Stopped, StopSignals

logger = logging.getLogger("redline.train")

Finish = Callable[[LoadedConfig, Prepared, Any, MemoryBase], None]


def run_training(
    loaded: LoadedConfig, world: World, finish: Finish | None = None, signals: StopSignals | None = None
) -> None:
    """Prepare the data, train as configured and finish the run, by `finish.finish_run` unless another is given.

    signals: what a signal asks for; None: signals are the caller's. Raises UserError for what the user can correct,
    and `Stopped` when a signal has ended the run.
    """
    config = loaded.config
    transformers_logging.disable_progress_bar()
    device = join_world(
        world,
        timeout_seconds=config.training.get("ddp_timeout", 1800),
        use_cpu=config.training.get("use_cpu", False),
        deepspeed=loaded.deepspeed,
    )
    run_dir = RunDir(find_run_path(config, loaded.recipe))
    lock = RunLock(run_dir.path)
    try:
        on_main_rank(world, lock.acquire)
        with compute_float32(config.perf.float32_products, config.arguments(), device.type):
            _run_locked(loaded, world, finish, run_dir, device, signals or StopSignals())
    finally:
        lock.release()
        leave_world()


def _run_locked(
    loaded: LoadedConfig,
    world: World,
    finish: Finish | None,
    run_dir: RunDir,
    device: torch.device,
    signals: StopSignals,
) -> None:
    config = loaded.config
    # What needs no data is settled before it is prepared: where to start, what changed since, the arguments.
    settings = describe_settings(loaded)  # the recipe's, before a micro-batch is chosen for this machine
    checkpoint = on_main_rank(world, lambda: find_start(loaded, run_dir, world))
    check_seen_by_all(checkpoint, world)
    changes = on_main_rank(world, lambda: find_changes_since(checkpoint, settings))
    args = build_training_arguments(loaded, run_dir, device, world)
    prepared = on_each_node(world, lambda: prepare(config.data, config.tokenizer))
    if (evaluated := without_empty_evaluation(loaded, prepared)) is not loaded:
        loaded, args = evaluated, build_training_arguments(evaluated, run_dir, device, world)
    if checkpoint is not None and is_over(run_dir, checkpoint, args.max_steps, world):
        return
    if (fitted := _fit_memory(loaded, prepared, world, device)) is not loaded:
        loaded, args = fitted, build_training_arguments(fitted, run_dir, device, world)
    memory_base = measure_base(device)
    watch = build_stall_watch(config.monitor, run_dir, world)
    trainer = build_trainer(loaded, prepared, run_dir, args, world)
    trainer.add_callback(StallSigns(run_dir, watch))
    by_epochs = args.max_steps <= 0
    trainer.start_data(checkpoint)
    if by_epochs and checkpoint is not None and is_over(run_dir, checkpoint, args.max_steps, world):
        return
    warn_of_warmup(args)
    opening = Opening(loaded, run_dir, world, checkpoint, changes)
    trainer.on_open(opening)
    trainer.settings = settings
    agreement = Agreement(args.ddp_timeout)
    trainer.add_callback(Stopping(run_dir, signals, agreement, writes=world.is_main))  # the last: `on_save` may raise
    trainer.changed_options = {change.key: (change.old, change.new) for change in changes}
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if finish is None:
            from training.run.finish import (
                finish_run as finish,  # its libraries are not loaded before the first step
            )
        finish(loaded, prepared, trainer, memory_base)
    except Stopped as stopped:
        if world.is_main and opening.is_open:
            record_stop(run_dir, trainer.state.global_step, stopped)
        raise
    except BaseException as error:
        error.add_note(f"after step {trainer.state.global_step}")
        # What fails after the run has finished leaves it finished.
        if world.is_main and opening.is_open and not run_dir.is_finished():
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            steps, details = trainer.state.global_step, getattr(error, "details", {})
            run_dir.append_event("error", steps, message)
            summary = Summary(name=run_dir.name, status="failed", steps=steps, error=message, **details)
            run_dir.write_json(run_dir.summary, summary.as_json())
        raise
    finally:
        watch.stop()
        give_back()
        trainer.close()


def _fit_memory(loaded: LoadedConfig, prepared: Prepared, world: World, device: torch.device) -> LoadedConfig:
    """The recipe with what it leaves to the memory of this machine."""
    if loaded.config.perf.activation_checkpointing == AUTO:
        loaded = fit_checkpointing(loaded, world, device)
    if loaded.config.perf.micro_batch_size == "auto":
        loaded = fit_micro_batch(loaded, prepared, world, device)
    return loaded


def record_stop(run_dir: RunDir, steps: int, stopped: Stopped) -> None:
    """Write the event and the summary of a run that a signal has ended. No report: it takes seconds to draw."""
    run_dir.append_event("stop", steps, f"{stopped} after step {steps}", exit_code=stopped.exit_code)
    summary = Summary(name=run_dir.name, status="stopped", steps=steps, error=str(stopped))
    run_dir.write_json(run_dir.summary, summary.as_json())
    logger.info("stopped after step %d; python -m training.report %s draws the report", steps, run_dir.path)


def is_over(run_dir: RunDir, checkpoint: Path, max_steps: int, world: World) -> bool:
    """Whether nothing is left to do: all steps done and `final/` written and checked. Steps alone: it is finished now.

    max_steps: not positive where it is not known yet. Says what is so.
    """
    step = read_manifest(checkpoint).step
    if not 0 < max_steps <= step:
        return False
    is_here = checkpoint.parent.resolve() == run_dir.path.resolve()
    finished = on_main_rank(world, lambda: is_here and run_dir.is_finished())
    if finished:
        advice = "raise training.max_steps (or num_train_epochs) to continue"
        logger.info("%s is complete at step %d of %d: %s", checkpoint, step, max_steps, advice)
    else:
        logger.info("%s: all %d steps are done, but there is no checked final/: finishing the run", checkpoint, step)
    return finished


def find_start(loaded: LoadedConfig, run_dir: RunDir, world: World) -> Path | None:
    """`--resume`: the checkpoint that it means, checked, or None to start from scratch."""
    if loaded.resume == "never":
        return None
    verify = loaded.config.checkpoint.verify_on_resume
    if loaded.resume != "auto":
        checkpoint = Path(loaded.resume)
        manifest = check_resumable(checkpoint, verify=verify)
        _check_world(checkpoint, manifest, loaded, world)
        return checkpoint
    sweep(run_dir)
    checkpoint = find_resumable(run_dir.path, verify=verify)
    if checkpoint is not None:
        _check_world(checkpoint, read_manifest(checkpoint), loaded, world)
    elif find_checkpoints(run_dir.path) or (run_dir.path / QUARANTINE).is_dir():
        raise UserError(
            f"{run_dir.path}: no checkpoint in it can be resumed from; --resume never starts from scratch and "
            "keeps them aside"
        )
    else:
        older = sorted(path.name for path in run_dir.path.parent.glob(f"{run_dir.path.name}.old-*"))
        hint = f" (older runs are kept: {', '.join(older)})" if older else ""
        logger.info("--resume auto: no checkpoint in %s, starting at step 0%s", run_dir.path, hint)
    return checkpoint


def find_changes_since(checkpoint: Path | None, settings: Mapping[str, Any]) -> list[Change]:
    """What of `settings` is another than in the checkpoint and takes effect. UserError for what cannot change."""
    if checkpoint is None:
        return []
    manifest = read_manifest(checkpoint)
    return find_changes(checkpoint, manifest.step, manifest.settings, settings)


def _check_world(checkpoint: Path, manifest: CheckpointManifest, loaded: LoadedConfig, world: World) -> None:
    """ZeRO shards are cut for one world size; without DeepSpeed another one only changes the order of the data."""
    if manifest.world_size == world.size:
        return
    if loaded.deepspeed is not None:
        raise UserError(
            f"{checkpoint}: DeepSpeed wrote it with world size {manifest.world_size}, this launch has {world.size}; "
            f"launch {manifest.world_size} ranks"
        )
    logger.warning(
        "%s was written with world size %d, this launch has %d: the run continues, but not bit for bit",
        checkpoint.name,
        manifest.world_size,
        world.size,
    )
