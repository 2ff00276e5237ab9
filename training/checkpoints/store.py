"""Saves checkpoints so that at every instant the newest one under its name is whole.

| file | what |
|---|---|
| `RUN/.staging/checkpoint-N/` | a save under way; what a killed process left there goes at the next start or save |
| `RUN/checkpoint-N/` | renamed from there, once, when every file and `manifest.json` are flushed to disk |
| `RUN/quarantine/` | checkpoints that were found broken, with an event each |

All ranks take part in each call and agree on its outcome: where one cannot write, none has saved. In the background, a
save is written by a thread of each rank, which takes no part in collectives; `poll` at the end of a step agrees, on a
gloo group of its own, whether all have written, and only then the checkpoint gets its name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from data_prep.atomic_files import sync
from data_prep.errors import UserError
from training.checkpoints.disk import find_lack, is_disk_full
from training.checkpoints.manifest import FileEntry, find_checkpoints, is_whole, read_manifest, write_manifest
from training.checkpoints.quarantine import put_in_quarantine
from training.checkpoints.rotation import choose_removals, remove_checkpoint
from training.checkpoints.staging import Staging, clear_staging
from training.run_dir import RunDir

logger = logging.getLogger("redline.checkpoints")


@dataclass(frozen=True)
class StoreOptions:
    """limit, keep_every: `rotation`. on_disk_full: whether training goes on without the checkpoint."""

    limit: int | None = None
    keep_every: int = 0
    on_disk_full: Literal["continue", "stop"] = "continue"
    in_background: bool = False


@dataclass(frozen=True)
class SavingRank:
    """Who a rank is in a save. writes: whether it writes files for all (rank 0, or the first of each node)."""

    rank: int = 0
    size: int = 1
    writes: bool = True


@dataclass(frozen=True)
class SaveFailure:
    """Why a save came to nothing, in words that all ranks get."""

    rank: int
    message: str
    is_full: bool

    @classmethod
    def of(cls, rank: int, error: BaseException) -> SaveFailure:
        """From what was raised on a rank."""
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return cls(rank, (name + str(error)).splitlines()[0], is_disk_full(error))


@dataclass(frozen=True)
class _InFlight:
    staging: Staging
    facts: Mapping[str, Any]
    best: str | None
    thread: threading.Thread


class CheckpointStore:
    """The checkpoints of a run. Every method is collective."""

    def __init__(self, run_dir: RunDir, options: StoreOptions, writer: SavingRank) -> None:
        self._run_dir = run_dir
        self._options = options
        self._writer = writer
        self._in_flight: _InFlight | None = None
        several = options.in_background and writer.size > 1
        self._group = dist.new_group(backend="gloo") if several else None

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight. The same on all ranks."""
        return self._in_flight is not None

    def begin(self, step: int, estimated_bytes: float) -> Staging | None:
        """Prepare a save, for which `commit` has to be called; None where there is nothing to save, or no room.

        estimated_bytes: of the run's first checkpoint; later ones are as large as the one before.
        Raises UserError when the disk is too full and training is to stop then, or the directory cannot be written.
        """
        self.drain()
        staging = Staging(
            self._run_dir.path, step, in_background=self._options.in_background, writes=self._writer.writes
        )
        is_there: list[bool] = []
        failure = self._agree(lambda: is_there.append(self._prepare(staging, estimated_bytes)))
        if failure is not None:
            self._give_up(staging, failure)
            return None
        if any(self._gather(any(is_there))):
            logger.info("%s is there already", staging.target.name)
            return None
        return staging

    def commit(self, staging: Staging, facts: Mapping[str, Any], best: str | None) -> bool:
        """Complete a save, or leave the rest of it to the background; whether it did not fail.

        facts: of its manifest. best: the checkpoint that rotation keeps. Raises what `begin` does.
        """
        thread = threading.Thread(target=staging.run, name="checkpoint")
        if self._options.in_background:
            self._in_flight = _InFlight(staging, facts, best, thread)
            thread.start()
            return True
        staging.run()
        return self._complete(staging, facts, best)

    def poll(self) -> None:
        """At the end of a step: complete a save that all ranks have written. Raises what `begin` does."""
        flight = self._in_flight
        if flight is not None and self._all_are(not flight.thread.is_alive()):
            self.drain()

    def drain(self) -> None:
        """Wait for a save in the background and complete it. Raises what `begin` does."""
        flight, self._in_flight = self._in_flight, None
        if flight is not None:
            flight.thread.join()
            self._complete(flight.staging, flight.facts, flight.best)

    def abandon(self) -> None:
        """Wait for this rank's thread, after an error that other ranks may not have. Not collective."""
        flight, self._in_flight = self._in_flight, None
        if flight is not None:
            flight.thread.join()

    # ---- one save ----

    def _prepare(self, staging: Staging, estimated_bytes: float) -> bool:
        """Whether the checkpoint is there already; else make room for it."""
        run = self._run_dir.path
        run.mkdir(parents=True, exist_ok=True)
        if staging.target.exists():
            if is_whole(staging.target):
                return True
            put_in_quarantine(run, staging.target, "it is not whole, and is saved again")
        clear_staging(run)
        last = next((path for path in find_checkpoints(run) if is_whole(path)), None)
        if lack := find_lack(run, read_manifest(last).total_bytes if last else estimated_bytes):
            raise OSError(28, lack)
        staging.path.mkdir(parents=True)
        return False

    def _complete(self, staging: Staging, facts: Mapping[str, Any], best: str | None) -> bool:
        own = None if staging.error is None else SaveFailure.of(self._writer.rank, staging.error)
        written: list[tuple[SaveFailure | None, dict[str, FileEntry]]] = self._gather((own, staging.files))
        failure = next((failed for failed, _ in written if failed), None)
        if failure is None:
            hashed = {name: entry for _, files in written for name, entry in files.items()} | staging.files
            failure = self._agree(lambda: self._publish(staging, hashed, facts))
        if failure is not None:
            self._give_up(staging, failure)
            return False
        if self._writer.writes:
            self._run_dir.append_event("save", staging.step, f"{staging.target.name} saved")
            for checkpoint in choose_removals(self._run_dir.path, self._options.limit, best, self._options.keep_every):
                remove_checkpoint(self._run_dir.path, checkpoint)
            clear_staging(self._run_dir.path)
        return True

    def _publish(self, staging: Staging, hashed: Mapping[str, FileEntry], facts: Mapping[str, Any]) -> None:
        write_manifest(staging.path, hashed, **facts)
        sync(staging.path.parent)
        staging.path.rename(staging.target)
        for directory in (self._run_dir.path, staging.path.parent):
            sync(directory)

    def _give_up(self, staging: Staging, failure: SaveFailure) -> None:
        """The older checkpoints are as they were. Raises UserError unless training goes on without this one."""
        if self._writer.writes:
            clear_staging(self._run_dir.path)
        stops = not failure.is_full or self._options.on_disk_full == "stop"
        where = f" on rank {failure.rank}" if self._writer.size > 1 else ""
        message = f"{staging.target.name} was not saved: {failure.message}{where}; older checkpoints are whole"
        if self._writer.writes:
            kind = "disk_full" if failure.is_full else "save_failed"
            self._note(kind, staging.step, message, stops=stops)
        if not stops:
            if self._writer.writes:
                logger.warning("%s; training goes on (checkpoint.on_disk_full: continue): free space there", message)
            return
        if isinstance(staging.error, Exception) and not failure.is_full and not isinstance(staging.error, OSError):
            raise staging.error  # a fault of code keeps its traceback
        advice = ": free space there, then --resume auto" if failure.is_full else ""
        raise UserError(f"{message}{advice}")

    def _note(self, kind: str, step: int, message: str, **details: Any) -> None:
        try:
            self._run_dir.append_event(kind, step, message, **details)
        except OSError as error:  # of a full disk
            logger.warning("events.jsonl: %s", error)

    # ---- agreement ----

    def _agree(self, function: Callable[[], object]) -> SaveFailure | None:
        """Run `function` on the ranks that write for all; the first failure, on every rank."""
        failure = None
        if self._writer.writes:
            try:
                function()
            except Exception as error:  # whatever it is, the other ranks must hear of it
                failure = SaveFailure.of(self._writer.rank, error)
        return next((failed for failed in self._gather(failure) if failed), None)

    def _gather(self, value: Any) -> list[Any]:
        if self._writer.size == 1:
            return [value]
        values = [None] * self._writer.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _all_are(self, own: bool) -> bool:
        if self._writer.size == 1:
            return own
        value = torch.tensor(int(own))
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=self._group)
        return bool(value.item())


def sweep(run_dir: RunDir) -> None:
    """At the start of a session: remove what killed saves have left, and say so in one line."""
    count, size = clear_staging(run_dir.path)
    if count:
        message = f"{count} unfinished save(s) of a killed process removed ({size / 1e6:,.1f} MB)"
        logger.info("%s: %s", run_dir.path, message)
        run_dir.append_event("sweep", 0, message)
