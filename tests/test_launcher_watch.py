"""A rank sees that its launcher is gone: its parent, or under DeepSpeed the parent of its parent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from training.launch import World
from training.launcher_watch import Launcher

RANK = """
    import sys
    from training.launch import World
    from training.launcher_watch import Launcher, LauncherWatch
    import threading
    gone = threading.Event()
    launcher = Launcher.find(World({launcher!r}, 0, 0, 2, 2))
    with LauncherWatch(launcher, gone.set):
        print(launcher.runner is not None, flush=True)
        print(gone.wait(3), flush=True)
"""
# The command starts a program that stays, which starts the rank.
STAYS = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {program!r}]).wait()"


def test_a_run_of_python_has_no_launcher():
    assert Launcher.find(World("python", 0, 0, 1, 1)) is None


@pytest.mark.parametrize(
    ("launcher", "command", "seen"),
    [("deepspeed", "deepspeed", "True\nTrue\n"), ("torchrun", "torchrun", "False\nFalse\n"),
     ("deepspeed", "ssh", "False\nFalse\n")],
)  # fmt: skip
def test_only_deepspeeds_own_command_is_watched_above_the_parent(tmp_path: Path, launcher, command, seen):
    script = tmp_path / command
    rank = textwrap.dedent(RANK).format(launcher=launcher)
    script.write_text(STAYS.format(program=STAYS.format(program=rank)))
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, str(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True) as started:
        assert started.stdout
        first = started.stdout.readline()
        started.send_signal(signal.SIGKILL)
        assert first + started.stdout.read() == seen


def test_a_parent_that_ended_is_gone():
    assert Launcher(parent=os.getppid(), runner=None).is_gone() is False
    assert Launcher(parent=1 if os.getppid() != 1 else 2, runner=None).is_gone()
