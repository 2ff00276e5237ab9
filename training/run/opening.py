"""The run directory of a session, opened when all else stands: an older run aside, later records cut, who trains here.

Rank 0 alone touches it. The trackers are built before anything but the directory's name changes.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from training.callbacks.sinks import Sink
from training.checkpoints.manifest import find_checkpoints, read_manifest
from training.config import LoadedConfig, dump_resolved
from training.config.resume_changes import Change
from training.environment import describe_environment
from training.launch import World
from training.outcomes import tell
from training.ranks import on_main_rank
from training.run_dir import RunDir, write_text_atomic

logger = logging.getLogger("redline.train")


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
        """Open the run directory and build the sinks. Collective."""
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
        if self.world.is_main:
            tell({"run_dir": str(self.run_dir.path.resolve())})
        return opened


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
            logger.info("%s holds an older run: kept as %s (--resume auto would continue it)", run_dir.path, aside)
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
    run_dir.summary.unlink(missing_ok=True)  # of the session that this one resumes: the run is not over
    if source.path.resolve() != run_dir.path.resolve():
        if source.metrics.exists():
            shutil.copy(source.metrics, run_dir.metrics)
        return
    for later in find_checkpoints(run_dir.path):
        if int(later.name.split("-")[1]) > step:
            aside = _free_name(later.with_name(f"abandoned-{later.name}"))
            later.rename(aside)
            logger.info("%s is past step %d: kept as %s", later.name, step, aside.name)


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
