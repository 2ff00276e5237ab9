"""One training of a benchmark in processes of its own, its output in a log.

What it started ends with it: on a time limit, Ctrl-C or SIGTERM the whole process group is ended, launcher, ranks and
workers.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import UserError

GRACE_SECONDS = 10
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Surroundings:
    """environment: variables added to those of this process. folder: where the command runs; None: here. look: called
    with the process id once a second while it runs."""

    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    look: Callable[[int], None] | None = None


def run_logged(
    command: Sequence[str], log: Path, timeout_seconds: float, around: Surroundings = Surroundings()
) -> None:
    """Run `command` to its end, its output in `log`.

    Raises UserError with the exit code and what the log says last when it fails or takes longer than
    `timeout_seconds`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **around.environment}
    with log.open("w") as file, _terminated_as_interrupted():
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment, cwd=around.folder
        )
        try:
            code = _wait(process, timeout_seconds, around.look)
        except subprocess.TimeoutExpired:
            raise UserError(f"{log.stem} was ended after {timeout_seconds:,.0f} s, see {log}") from None
        finally:
            _end_group(process)
    if code:
        raise UserError(f"{log.stem} failed with exit code {code}, see {log}: {find_reason(log)}")


def _wait(process: subprocess.Popen[bytes], seconds: float, look: Callable[[int], None] | None) -> int:
    """Exit code. Raises TimeoutExpired after `seconds`."""
    if look is None:
        return process.wait(seconds)
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > LOOK_SECONDS:
        try:
            return process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            look(process.pid)
    return process.wait(max(0.0, left))


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt: otherwise it would end this process and leave the run behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the group; a rank that has gone on without its launcher would disturb the next run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def find_reason(log: Path) -> str:
    """The line that says why: the last that names an error, else the last one."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error") or "Error: " in line or "OutOfMemory" in line]
    return (errors or lines or [""])[-1]
