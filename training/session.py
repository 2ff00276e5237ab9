"""One training session: join the ranks, prepare the data, open the run directory, resume or start, train, finish.

The order matters. Rank 0 locks the run directory against other sessions, and alone touches it, before the others look
at it; what can fail without data is settled first (the place, the checkpoint and what changed since, the arguments);
one rank of each node prepares the data while the others wait. The run directory is opened when model, optimizer,
schedule and trackers stand: a run that is started anew over an older one then moves the old one aside and never writes
into it. A checkpoint is checked against its manifest before anything unpickles it.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers.utils import logging as transformers_logging

from data_prep.errors import UserError
from data_prep.prepare import Prepared, prepare
from training.build import build_trainer, build_training_arguments, find_run_path
from training.callbacks.sinks import Sink
from training.checkpoints.manifest import Manifest, check_resumable, find_checkpoints, find_resumable, read_manifest
from training.config import LoadedConfig, dump_resolved
from training.config.resume_changes import Change, describe_settings, find_changes
from training.environment import describe_machine
from training.launch import World, join_world, leave_world
from training.memory.comparison import MemoryBase, measure_base
from training.micro_batch import fit_micro_batch
from training.run_dir import RunDir, write_text_atomic
from training.run_lock import RunLock, check_writable

logger = logging.getLogger("redline.train")

Result = TypeVar("Result")
Finish = Callable[[LoadedConfig, Prepared, Any, MemoryBase], None]


def run_training(loaded: LoadedConfig, world: World, finish: Finish | None = None) -> None:
    """Prepare the data, train as configured and finish the run, by `finish.finish_run` unless another is given.

    Raises UserError for what the user can mend.
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
        on_main_rank(world, lambda: check_writable(run_dir.path))
        # What needs no data is settled before it is prepared: where to start, what changed since, the arguments.
        settings = describe_settings(loaded)  # the recipe's, before a micro-batch is chosen for this machine
        checkpoint = on_main_rank(world, lambda: find_start(loaded, run_dir, world))
        changes = on_main_rank(world, lambda: find_changes_since(checkpoint, settings))
        args = build_training_arguments(loaded, run_dir, device, world)
        prepared = on_each_node(world, lambda: prepare(config.data, config.tokenizer))
        if checkpoint is not None and is_over(run_dir, checkpoint, args.max_steps, world):
            return
        if config.perf.micro_batch_size == "auto":
            loaded = fit_micro_batch(loaded, prepared, world, device)
            args = build_training_arguments(loaded, run_dir, device, world)
        memory_base = measure_base(device)
        trainer = build_trainer(loaded, prepared, run_dir, args, world)
        by_epochs = args.max_steps <= 0
        trainer.start_data(checkpoint)
        if by_epochs and checkpoint is not None and is_over(run_dir, checkpoint, args.max_steps, world):
            return
        opening = Opening(loaded, run_dir, world, checkpoint, changes)
        trainer.on_open(opening)
        trainer.settings = settings
        trainer.changed_options = {change.key: (change.old, change.new) for change in changes}
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if finish is None:
                from training.finish import finish_run as finish  # its libraries are not loaded before the first step
            finish(loaded, prepared, trainer, memory_base)
        except BaseException as error:
            if world.is_main and opening.is_open:
                message = f"{type(error).__name__}: {error}".splitlines()[0]
                steps, details = trainer.state.global_step, getattr(error, "details", {})
                run_dir.append_event("error", steps, message)
                summary = {"name": run_dir.name, "status": "failed", "steps": steps, "error": message, **details}
                run_dir.write_json(run_dir.summary, summary)
            raise
        finally:
            trainer.close()
    finally:
        lock.release()
        leave_world()


@dataclass
class Opening:
    """Opens the run directory on rank 0 when the trainer says that all else stands; `is_open` from then on.

    Called with what builds the sinks; gives them back. Collective.
    """

    loaded: LoadedConfig
    run_dir: RunDir
    world: World
    checkpoint: Path | None
    changes: Sequence[Change]
    is_open: bool = False

    def __call__(self, build_sinks: Callable[[], list[Sink]]) -> list[Sink]:
        opened: list[Sink] = []

        def open_here() -> None:
            opened.extend(open_run(self.loaded, self.run_dir, self.world, self.checkpoint, build_sinks))
            for change in self.changes:
                logger.info("resume: %s", change.message)
                self.run_dir.append_event(
                    "change", change.step, change.message, key=change.key, old=change.old, new=change.new
                )

        on_main_rank(self.world, open_here)
        self.is_open = True
        return opened


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
        advice = "raise training.max_steps (or num_train_epochs) to go on"
        logger.info("%s is complete at step %d of %d: %s", checkpoint, step, max_steps, advice)
    else:
        logger.info("%s: all %d steps are done, but there is no checked final/: finishing the run", checkpoint, step)
    return finished


def open_run(
    loaded: LoadedConfig,
    run_dir: RunDir,
    world: World,
    checkpoint: Path | None,
    build_sinks: Callable[[], list[Sink]] = list,
) -> list[Sink]:
    """Make the run directory ready for a session that starts at `checkpoint`, or at step 0; the sinks.

    What the run did after that checkpoint will be done again: its later records are cut and its later checkpoints set
    aside, so that no other resume can take up the abandoned branch. A checkpoint of another run starts a new run here,
    with that run's records up to it. The sinks are built before anything but the directory's name changes: where one
    fails, an older run gets its name back. Raises UserError when the directory cannot be written.
    """
    aside = None
    try:
        if checkpoint is None or checkpoint.resolve().parent != run_dir.path.resolve():
            aside = move_aside(run_dir)
        run_dir.path.mkdir(parents=True, exist_ok=True)
        sinks = build_sinks()
    except BaseException as error:
        if aside is not None:
            shutil.rmtree(run_dir.path, ignore_errors=True)
            aside.rename(run_dir.path)
        if isinstance(error, OSError):
            raise _unwritable(run_dir, error) from error
        raise
    try:
        if aside is not None:
            logger.info("%s holds an older run: kept as %s (--resume auto would go on with it)", run_dir.path, aside)
        step = 0
        if checkpoint is not None:
            step = read_manifest(checkpoint).step
            logger.info("resuming from %s (step %d)", checkpoint, step)
            _take_over(run_dir, RunDir(checkpoint.parent), step)
        if dropped := run_dir.cut_metrics_after(step):
            logger.info("metrics.jsonl: %d records past step %d dropped, they will be trained again", dropped, step)
        write_text_atomic(run_dir.config, dump_resolved(loaded))
        run_dir.write_json(run_dir.env, describe_environment(world))
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    return sinks


def _unwritable(run_dir: RunDir, error: OSError) -> UserError:
    return UserError(f"training.output_dir: {run_dir.path} cannot be written: {error}")


def _take_over(run_dir: RunDir, source: RunDir, step: int) -> None:
    """Bring records of another run here, or set aside what this run did past `step`."""
    run_dir.summary.unlink(missing_ok=True)  # of the session that this one goes on from: the run is not over
    if source.path.resolve() != run_dir.path.resolve():
        if source.metrics.exists():
            shutil.copy(source.metrics, run_dir.metrics)
        return
    for later in find_checkpoints(run_dir.path):
        if int(later.name.split("-")[1]) > step:
            aside = _free_name(later.with_name(f"abandoned-{later.name}"))
            later.rename(aside)
            logger.info("%s is past step %d: kept as %s", later.name, step, aside.name)


def find_start(loaded: LoadedConfig, run_dir: RunDir, world: World) -> Path | None:
    """`--resume`: the checkpoint that it means, checked, or None to start anew."""
    if loaded.resume == "never":
        return None
    verify = loaded.config.checkpoint.verify_on_resume
    if loaded.resume != "auto":
        checkpoint = Path(loaded.resume)
        manifest = check_resumable(checkpoint, verify=verify)
        _check_world(checkpoint, manifest, loaded, world)
        return checkpoint
    checkpoint = find_resumable(run_dir.path, verify=verify)
    if checkpoint is not None:
        _check_world(checkpoint, read_manifest(checkpoint), loaded, world)
    elif find_checkpoints(run_dir.path):
        raise UserError(
            f"{run_dir.path}: no checkpoint in it can be resumed from; --resume never starts anew and keeps them aside"
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


def _check_world(checkpoint: Path, manifest: Manifest, loaded: LoadedConfig, world: World) -> None:
    """ZeRO shards are cut for one world size; without DeepSpeed another one only changes the order of the data."""
    if manifest.world_size == world.size:
        return
    if loaded.deepspeed is not None:
        raise UserError(
            f"{checkpoint}: DeepSpeed wrote it with world size {manifest.world_size}, this launch has {world.size}; "
            f"launch {manifest.world_size} ranks"
        )
    logger.warning(
        "%s was written with world size %d, this launch has %d: it goes on, but not bit for bit",
        checkpoint.name,
        manifest.world_size,
        world.size,
    )


def move_aside(run_dir: RunDir) -> Path | None:
    """An older run at this place is kept: `NAME` becomes `NAME.old-1` (or the next free number), which is returned."""
    if not run_dir.path.is_dir() or not any(run_dir.path.iterdir()):
        return None
    aside = _free_name(run_dir.path.with_name(f"{run_dir.path.name}.old"))
    run_dir.path.rename(aside)
    return aside


def _free_name(path: Path) -> Path:
    """`path-1`, or the next number that is free."""
    return next(free for number in itertools.count(1) if not (free := path.with_name(f"{path.name}-{number}")).exists())


def on_main_rank(world: World, function: Callable[[], Result]) -> Result:
    """Run `function` on rank 0 only and give every rank its result, or its exception: none waits for an answer."""
    if world.size == 1:
        return function()
    outcome: list[Any] = [None]
    if world.is_main:
        try:
            outcome = [function()]
        except Exception as error:  # whatever it is, the other ranks must hear of it
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def on_each_node(world: World, function: Callable[[], Result]) -> Result:
    """Run `function` on the first rank of each node and give its result to the others there, or the first exception of
    any node to all. It may take as long as it likes: `training.ddp_timeout` is not for it."""
    if world.size == 1:
        return function()
    waiting = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    outcome: Any = None
    if world.local_rank == 0:
        try:
            outcome = function()
        except Exception as error:  # whatever it is, the other ranks must hear of it
            outcome = error
    outcomes: list[Any] = [None] * world.size
    dist.all_gather_object(outcomes, outcome, group=waiting)
    for error in outcomes:
        if isinstance(error, Exception):
            raise error
    return outcomes[world.rank - world.local_rank]


def describe_environment(world: World) -> dict[str, Any]:
    """Versions, machine and command of this session."""
    packages = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "peft", "bitsandbytes", "flash-attn")
    return {
        **describe_machine(packages),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "command": " ".join(sys.argv),
        "launcher": world.launcher,
        "world_size": world.size,
        "num_threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
