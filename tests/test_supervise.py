"""The supervisor over small programs that end as trainings do: what it starts again, and what stays behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from training.outcomes import Outcomes, RankEnd, describe_error
from training.supervise import with_resume

ROOT = Path(__file__).parents[1]
JOB = """
    import json, os, signal, subprocess, sys, time
    from pathlib import Path
    from training.outcomes import RankEnd, tell
    from training.run_dir import RunDir
    run = RunDir({run!r})
    count = Path({run!r} + ".count")
    attempt = len(count.read_text()) + 1 if count.exists() else 1
    count.write_text("x" * attempt)
    print("job", attempt, *sys.argv[1:], flush=True)
    tell({{"rank": 0, "pid": os.getpid()}})
    tell({{"run_dir": {run!r}}})
    run.append_event("start", 0, "begins")
    def end(code, message="", **more):
        tell(vars(RankEnd(0, code, message, **more)))
        sys.exit(code)
"""


def start(tmp_path: Path, body: str, *options: str) -> subprocess.Popen[str]:
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB).format(run=str(tmp_path / "run")) + textwrap.dedent(body))
    words = [sys.executable, "-m", "training.supervise", "--wait", "0.1", *options, "--", sys.executable, str(script)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(tmp_path: Path, body: str, *options: str) -> tuple[int, str, str]:
    with start(tmp_path, body, *options) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def attempts(tmp_path: Path) -> list[dict]:
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "attempt"]


def test_a_killed_job_starts_again_where_it_was(tmp_path):
    code, out, err = finish(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if attempt < 3 else end(0)")
    assert code == 0, err
    assert out.splitlines() == [f"job {number} --resume auto" for number in (1, 2, 3)]
    first, second, third = attempts(tmp_path)
    assert "killed by SIGKILL" in first["message"] and "again in 0.1 s" in first["message"]
    assert "again in 0.2 s" in second["message"] and third["exit_code"] == 0


def test_the_same_error_in_the_same_step_is_no_fault_of_the_machine(tmp_path):
    code, out, err = finish(tmp_path, "end(1, 'ValueError: no such row; after step 7')")
    assert code == 1 and out.count("job") == 2
    assert "rank 0: ValueError: no such row; after step 7, as in the attempt before: a fault of the code" in err


def test_other_steps_are_other_errors_until_there_are_too_many(tmp_path):
    code, out, err = finish(tmp_path, "end(1, f'ValueError: bad; after step {attempt}')", "--max_failures", "3")
    assert code == 1 and out.count("job") == 3 and "failure 3 in a row without a new checkpoint" in err


def test_a_new_checkpoint_is_progress(tmp_path):
    body = "run.append_event('save', attempt, 'saved'); end(1, f'ValueError: {attempt}') if attempt < 5 else end(0)"
    code, out, _ = finish(tmp_path, body, "--max_failures", "2")
    assert code == 0 and out.count("job") == 5


@pytest.mark.parametrize(
    ("body", "code"),
    [("end(2, 'data.sources: no such file')", 2), ("end(143, 'stopped by SIGTERM', is_stop=True)", 143)],
)
def test_user_errors_and_stops_are_not_tried_again(tmp_path, body, code):
    found, out, _ = finish(tmp_path, body)
    assert found == code and out.count("job") == 1


def test_a_rank_whose_launcher_was_killed_is_started_again(tmp_path):
    body = "end(143, 'stopped by SIGTERM', is_stop=True, is_orphan=True) if attempt == 1 else end(0)"
    code, out, _ = finish(tmp_path, body)
    assert code == 0 and out.count("job") == 2


def test_a_signal_goes_to_the_ranks_and_their_code_comes_back(tmp_path):
    body = """
        signal.signal(signal.SIGTERM, lambda *_: end(143, "stopped by SIGTERM", is_stop=True))
        print("ready", flush=True)
        time.sleep(30)
    """
    with start(tmp_path, body) as process:
        assert process.stdout and [process.stdout.readline() for _ in range(2)][1] == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 143 and "attempt 1: stopped by SIGTERM" in err


def test_what_an_attempt_leaves_behind_is_killed(tmp_path):
    body = """
        if attempt == 1:
            stays = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Path(run.path, "stays").write_text(str(stays.pid))
            os.kill(os.getpid(), signal.SIGKILL)
        end(0)
    """
    began = time.monotonic()
    code, _, err = finish(tmp_path, body)
    assert code == 0 and "1 processes killed" in err and time.monotonic() - began < 40
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run" / "stays").read_text()), 0)


def test_a_job_ends_with_its_supervisor(tmp_path):
    with start(tmp_path, "print('ready', flush=True); time.sleep(60)") as process:
        assert process.stdout and [process.stdout.readline() for _ in range(2)][1] == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.stdout.read()  # to its end: the job has closed it


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["train.py"], False, ["train.py", "--resume", "auto"]),
        (["train.py", "--resume", "never"], False, ["train.py", "--resume", "never"]),
        (["train.py", "--resume", "never", "--x"], True, ["train.py", "--resume", "auto", "--x"]),
        (["train.py", "--resume=PATH"], True, ["train.py", "--resume", "auto"]),
    ],
)
def test_what_has_begun_is_resumed(words, begun, expected):
    assert with_resume(words, begun=begun) == expected


def test_the_cause_is_not_the_loss_of_another_rank():
    lost = RankEnd(0, 1, "RuntimeError: [/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    own = RankEnd(1, 1, "ValueError: x")
    assert Outcomes(ended=[lost, own]).find_cause() == own and Outcomes(ended=[lost]).find_cause() is None


def test_notes_of_an_error_are_part_of_it():
    error = ValueError("first\nsecond")
    error.add_note("after step 3")
    assert describe_error(error) == "ValueError: first; after step 3"
