"""Keep a training going: `python -m training.supervise [OPTIONS] -- COMMAND…`.

    python -m training.supervise -- torchrun --nproc_per_node=8 training/train.py --config my

Starts the command with `--resume auto`, and again after a failure, from the last good checkpoint, with a wait that
doubles from failure to failure. What is left of a failed attempt is killed before the next. It ends when the command
has succeeded, was stopped by a signal or has found a user error (exit code 2); when the same error has come twice in
the same step, which is a fault of the code or the data and not of the machine; or after so many failures in a row
without progress. SIGTERM, SIGINT and SIGHUP go to the ranks, which save and end, and so does the supervisor, with
their exit code; SIGUSR1 has them save. Attempts are events of the run (`attempt`), and its report lists them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.errors import UserError
from training.outcomes import VARIABLE, Outcomes
from training.run_dir import RunDir
from training.sessions import end_sessions, list_sessions
from training.stop_signals import SAVES, STOPS

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 10.0
"""How long what a launcher has left behind may take to save and end."""
LOST_SECONDS = 5.0
"""How long a launcher may take to end the others when a rank is lost."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Decision:
    """What came of an attempt: to end with `code`, or, with None, to try again; and why."""

    code: int | None
    reason: str


@dataclass
class Supervisor:
    """Runs attempts of a command until one is the last."""

    command: list[str]
    max_failures: int
    wait_seconds: float
    max_wait_seconds: float
    stop_seconds: float
    received: list[int] = field(default_factory=list)
    """Signals that are not passed on yet."""
    attempt: int = 0
    failures: int = 0
    """In a row, without progress."""
    run_dir: Path | None = None
    _stopping: bool = False
    _step: int = -1
    _last_error: str | None = None

    def run(self) -> int:
        """Start attempts until the command has ended for good; the exit code."""
        while True:
            self.attempt += 1
            with tempfile.TemporaryDirectory(prefix="redline-") as folder:
                verdict = self._try_once(Path(folder) / "outcomes.jsonl")
            wait = min(self.max_wait_seconds, self.wait_seconds * 2 ** max(0, self.failures - 1))
            follows = f"again in {wait:g} s" if verdict.code is None else "the last attempt"
            self._tell(f"attempt {self.attempt}: {verdict.reason}: {follows}", verdict)
            if verdict.code is not None:
                return verdict.code
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline:
                if self.received:
                    return 128 + self.received[0]
                time.sleep(POLL_SECONDS)

    def _try_once(self, path: Path) -> Decision:
        started = time.time()
        command = with_resume(self.command, begun=self.run_dir is not None)
        process = subprocess.Popen(
            command, env={**os.environ, VARIABLE: str(path)}, start_new_session=True, preexec_fn=_end_with_parent
        )
        code = self._wait(process, path)
        ranks = set(Outcomes.read(path).pids.values())
        sessions = {process.pid, *ranks}  # torchrun gives each rank one of its own
        may_save = code is not None and any(map(psutil.pid_exists, ranks))
        orphans = end_sessions(sessions, PATIENCE_SECONDS if may_save else 0.0)
        outcomes = Outcomes.read(path)
        self.run_dir = outcomes.run_dir or self.run_dir
        verdict = self._judge(process.wait(), outcomes)
        seconds = time.time() - started
        left = f", {orphans} processes killed" if orphans else ""
        return Decision(verdict.code, f"{verdict.reason} after {seconds:.0f} s{left}")

    def _wait(self, process: subprocess.Popen[bytes], path: Path) -> int | None:
        """Until the command ends; None: it did not, within `stop_seconds` of a signal, or soon after a rank had failed:
        launchers give the others half a minute."""
        deadline = float("inf")
        while (code := process.poll()) is None:
            if time.monotonic() > deadline:
                return None
            if deadline == float("inf") and _has_lost_a_rank(path):
                deadline = time.monotonic() + LOST_SECONDS
            while self.received:
                number = self.received.pop(0)
                self._pass_on(number, process.pid, path)
                if number in STOPS and not self._stopping:
                    self._stopping, deadline = True, time.monotonic() + self.stop_seconds
            time.sleep(POLL_SECONDS)
        return code

    def _pass_on(self, number: int, session: int, path: Path) -> None:
        """To the ranks, which the launcher then follows; to the launcher while there are none."""
        ranks = set(Outcomes.read(path).pids.values())
        ranks &= {one.pid for one in list_sessions({session, *ranks})}
        for pid in ranks or ({session} if number in STOPS else ()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _judge(self, code: int, outcomes: Outcomes) -> Decision:
        shown = 128 - code if code < 0 else code
        stop, cause = outcomes.find_stop(), outcomes.find_cause()
        if stop is not None and -code not in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS):
            return Decision(stop.code, stop.message)
        if self._stopping:
            return Decision(shown or 1, f"ended with code {shown} on the way to a stop")
        if cause is not None and cause.code == 2:
            return Decision(2, cause.message)
        if -code in STOPS:
            return Decision(shown, f"the launcher was stopped by {signal.Signals(-code).name}")
        if code == 0 and not any(one.code for one in outcomes.ended):
            return Decision(0, "succeeded")
        reason = _describe_failure(code, outcomes)
        error, self._last_error = self._last_error, f"{cause.message}" if cause is not None else None
        if cause is not None and error == cause.message:
            return Decision(
                shown or 1, f"{reason}, as in the attempt before: a fault of the code or the data, not of the machine"
            )
        self._count_failure()
        if self.failures >= self.max_failures:
            return Decision(shown or 1, f"{reason}; failure {self.failures} in a row without a new checkpoint")
        return Decision(None, reason)

    def _count_failure(self) -> None:
        step = find_last_save(self.run_dir)
        self.failures = 1 if step > self._step else self.failures + 1
        self._step = max(step, self._step)

    def _tell(self, message: str, verdict: Decision) -> None:
        sys.stderr.write(f"supervise | {message}\n")
        if self.run_dir is None or (verdict.code == 0 and self.attempt == 1):
            return
        with suppress(OSError):  # a full disk is no reason to give up
            RunDir(self.run_dir).append_event(
                "attempt", max(0, find_last_save(self.run_dir)), message, attempt=self.attempt, exit_code=verdict.code
            )


def _has_lost_a_rank(path: Path) -> bool:
    """Whether a rank has ended with an error, or without a word."""
    outcomes = Outcomes.read(path)
    if any(one.code and not one.is_stop for one in outcomes.ended):
        return True
    return any(not psutil.pid_exists(outcomes.pids[rank]) for rank in outcomes.find_silent())


def _describe_failure(code: int, outcomes: Outcomes) -> str:
    cause = outcomes.find_cause()
    if cause is not None:
        return f"rank {cause.rank}: {cause.message}"
    silent = sorted(outcomes.find_silent())
    if code < 0:
        return f"the launcher was killed by {signal.Signals(-code).name}"
    if silent:
        ranks = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        return f"{ranks} ended without a word (killed?), exit code {code}"
    return f"exit code {code}"


def with_resume(command: Sequence[str], *, begun: bool) -> list[str]:
    """The command with `--resume auto`, unless it names another; one that has begun here always continues."""
    words = list(command)
    at = next((index for index, word in enumerate(words) if word.split("=")[0] == "--resume"), None)
    if at is None:
        return [*words, "--resume", "auto"]
    if begun:
        words[at : at + (1 if "=" in words[at] else 2)] = ["--resume", "auto"]
    return words


def find_last_save(run_dir: Path | None) -> int:
    """Step of the last checkpoint that the events tell of; -1 where there is none."""
    lines = RunDir(run_dir).events.read_text(encoding="utf-8").splitlines() if run_dir else []
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            if event["kind"] == "save":
                return int(event["step"])
    return -1


def _end_with_parent() -> None:
    """In the new process: Linux sends it SIGTERM when the supervisor dies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: that of the last attempt, by its ranks; 2 with one line on stderr for wrong arguments."""
    program = program_name("training.supervise")
    parser = CommandParser(
        prog=program,
        description="Start a training, and again from its last good checkpoint after a failure.",
        usage=f"{program} [OPTIONS] -- COMMAND ...",
        epilog=f"Example: {program} -- torchrun --nproc_per_node=8 training/train.py --config my",
    )
    parser.add_argument("--max_failures", type=int, default=5, metavar="N", help="failures in a row without a new "
                        "checkpoint after which it gives up (default 5)")  # fmt: skip
    parser.add_argument("--wait", type=float, default=1.0, metavar="SECONDS", help="before the second attempt; doubles "
                        "with each failure in a row (default 1)")  # fmt: skip
    parser.add_argument("--max_wait", type=float, default=300.0, metavar="SECONDS", help="longest wait (default 300)")
    parser.add_argument("--stop_seconds", type=float, default=120.0, metavar="SECONDS", help="that a job has to end "
                        "after a signal, before it is killed (default 120)")  # fmt: skip
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="after --")
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UserError(f"command line: no command: {program} -- torchrun … training/train.py …")
    supervisor = Supervisor(command, max(1, args.max_failures), args.wait, args.max_wait, args.stop_seconds)

    def receive(number: int, frame: FrameType | None) -> None:
        supervisor.received.append(number)

    for number in (*STOPS, SAVES):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, receive)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
