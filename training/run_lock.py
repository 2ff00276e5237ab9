"""One session at a time in a run directory: `runs/.NAME.lock`, beside it, so that the directory can be moved aside.

A POSIX record lock (`fcntl.lockf`) holds it: the kernel lets go of it when the process dies, however it dies, and a
forked child (a data worker) never has it. Over NFS it holds between machines. The file names the holder and its time
stamp is renewed every `HEARTBEAT_SECONDS`, for file systems whose locks other machines do not see, and for those that
have none: there the stamp alone tells a live holder from a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from data_prep.errors import UserError

logger = logging.getLogger("redline.train")

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 3 * HEARTBEAT_SECONDS
_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_HELD = {errno.EACCES, errno.EAGAIN}


@dataclass(frozen=True)
class Holder:
    """Who holds a run directory. `started`: when its process was, in seconds since 1970; tells it from a later one of
    the same number."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_alive_here(self) -> bool:
        """Whether the process runs on this machine."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 1
        except psutil.Error:
            return False


class RunLock:
    """Holds a run directory from `acquire` to `release`, or to the death of the process."""

    def __init__(self, run_path: Path) -> None:
        path = run_path.resolve()
        self.run_path = run_path
        self.path = path.with_name(f".{path.name}.lock")
        self._file: int | None = None
        self._done = threading.Event()

    def acquire(self) -> None:
        """Raises UserError when another session holds the directory, naming its machine and process, or when nothing
        can be written beside it. Nothing else on disk is touched."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._open()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"training.output_dir: {self.run_path} cannot be written: {reason}") from error
        self._file = file
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(Holder.this())).encode() + b"\n", 0)
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Let go and remove the file. Harmless where nothing is held."""
        self._done.set()
        if self._file is not None:
            self.path.unlink(missing_ok=True)  # before the lock goes: who gets it then sees that the file is another
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        """The locked file. One that its last holder removed in the meantime is opened again."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(file)
                if _is_at(file, self.path):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _lock(self, file: int) -> None:
        """Raises UserError when somebody else has it."""
        has_locks = True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise self._refusal(_read_holder(file)) from None
            if error.errno not in _NOT_SUPPORTED:
                raise
            has_locks = False
            logger.warning("%s: this file system has no locks (%s): heartbeats have to do", self.path, error.strerror)
        holder = _read_holder(file)
        if holder is None or holder == Holder.this():
            return
        if holder.host == socket.gethostname():  # with locks, it is dead: the kernel has said so
            if not has_locks and holder.is_alive_here():
                raise self._refusal(holder)
        elif self._beats(file):
            raise self._refusal(holder)
        logger.info("%s: was held by process %d on %s, which is gone: taken over", self.path, holder.pid, holder.host)

    def _beats(self, file: int) -> bool:
        """Whether a holder on another machine still renews the time stamp. Waits for it where the last is recent."""
        last = os.fstat(file).st_mtime
        if abs(time.time() - last) > STALE_SECONDS:
            return False
        logger.info("%s: last used on another machine moments ago: waiting for a sign of life", self.path)
        deadline = time.monotonic() + 2.5 * HEARTBEAT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_SECONDS / 10)
            if os.stat(self.path).st_mtime != last:
                return True
        return False

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError as error:
                logger.warning("%s: cannot be renewed (%s)", self.path, error.strerror)
                return

    def _refusal(self, holder: Holder | None) -> UserError:
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        return UserError(
            f"training.output_dir: {self.run_path} is in use by {who}: wait for it, stop it, or give this run another "
            "--output_dir"
        )


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(file: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (ValueError, TypeError):  # empty: it has only just been made
        return None
