"""A launch that is still running: what tests send signals to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.conftest import LAUNCHERS, ROOT, Finished, find_environment, own_port

TRAIN = str(ROOT / "training" / "train.py")


@dataclass
class Running:
    """A launch in a session of its own, with its run directory and the file of what it prints."""

    path: Path
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """All that belong to the launch: its session, and whoever names the run directory."""
        found = []
        for one in psutil.process_iter():
            try:
                is_ours = os.getsid(one.pid) == self.process.pid or str(self.path) in one.cmdline()
                if is_ours and one.status() != psutil.STATUS_ZOMBIE and one.pid != os.getpid():
                    found.append(one)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def rank(self, number: int) -> int:
        """Process number of a rank."""
        found = []
        for one in self.processes():
            try:
                words = one.cmdline()
                alone = 0 if words[1:2] == [TRAIN] else -1
                if int(one.environ().get("RANK", alone)) == number and str(self.path) in words:
                    found.append((one.create_time(), one.pid))
            except psutil.Error:
                continue
        assert found, f"no rank {number}: {self.output()[-3000:]}"
        return min(found)[1]  # the others are data workers of it

    def send(self, signal_number: int, target: str) -> None:
        """target: `rank N`, `launcher` or `group`."""
        if target == "group":
            os.killpg(self.process.pid, signal_number)
        else:
            pid = self.process.pid if target == "launcher" else self.rank(int(target.split()[1]))
            os.kill(pid, signal_number)

    def steps(self) -> list[int]:
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
            return [json.loads(line)["step"] for line in lines if line.endswith("}")]
        except FileNotFoundError:
            return []

    def events(self, kind: str) -> list[dict]:
        path = self.path / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event for event in events if event["kind"] == kind]

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.output()[-6000:]
            time.sleep(0.02)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: (self.steps() or [0])[-1] >= step)

    def end(self, seconds: float = 60) -> Finished:
        """Wait for the launch and for all of its processes; fails, and kills them, if some stay."""
        deadline = time.monotonic() + seconds
        try:
            code = self.process.wait(seconds)
            while left := self.processes():
                assert time.monotonic() < deadline, [one.cmdline() for one in left]
                time.sleep(0.05)
        finally:
            self.kill()
        return Finished(self.path, code, self.output())

    def kill(self) -> None:
        for one in self.processes():
            try:
                one.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue


def start(launcher: str, config: Path, path: Path, *flags: str, before: Sequence[str] = ()) -> Running:
    """Launch in the background. before: words before the launcher's."""
    command = [*before, *LAUNCHERS[launcher], *own_port(launcher), TRAIN]
    command += ["--config", str(config), "--output_dir", str(path), *flags]
    log = path.with_name(f"{path.name}.log")
    environ = {**find_environment(), "PYTHONPATH": str(ROOT)}  # for what comes before: a run finds itself
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environ, cwd=path.parent, stdout=file, stderr=file, start_new_session=True
        )
    return Running(path, process, log)
