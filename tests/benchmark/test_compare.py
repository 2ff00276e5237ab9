"""Two configurations in turn, with a stand-in for training that writes run directories."""

import itertools
import json
import shlex

import pytest

from tests.comparing.conftest import write_timed  # noqa: F401
from training.benchmark.compare import main


@pytest.fixture
def trained(write_timed, tmp_path, monkeypatch):  # noqa: F811
    """Calls of the stand-in, in order: (name of the run, arguments)."""
    calls, seeds = [], itertools.count()
    monkeypatch.chdir(tmp_path)

    def train(arguments, path):
        slower = 1.1 if "--weight_decay" in arguments else 1.0
        run = write_timed(f"made/{next(seeds)}", seed=len(calls), slower=slower, steps=200)
        path.parent.mkdir(parents=True, exist_ok=True)
        run.rename(path)
        calls.append((path.name, arguments))

    return calls, train


def test_sides_take_turns_and_are_compared_within_rounds(trained, tmp_path, capsys):
    calls, train = trained
    other = "--config debug --weight_decay 0"
    arguments = ["--a", "--config debug", "--b", other, "--repeat", "3", "--max_steps", "200"]
    assert main([*arguments, "--seeds", "--output", str(tmp_path / "page.md")], train) == 0
    names = [name for name, _ in calls]
    assert names[:2] == ["warmup-a", "warmup-b"] and sorted(names[2:]) == ["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"]
    assert {names[2], names[3]} == {"a-1", "b-1"} and names[4:6] == [names[3][0] + "-2", names[2][0] + "-2"]
    assert dict(calls)["b-2"] == [
        "--config", "debug", "--weight_decay", "0", "training.output_dir=runs/compare/b-2", "training.max_steps=200",
        "training.seed=2",
    ]  # fmt: skip
    assert "training.max_steps=3" in dict(calls)["warmup-b"]
    out = capsys.readouterr().out
    assert out.startswith("step time B / A by round: 1.") and "covers it" not in out
    data = json.loads((tmp_path / "page.json").read_text())
    assert data["paired"] and len(data["sides"]["A"]) == 3
    step = next(row for row in data["pairs"][0]["metrics"] if row["key"] == "perf/step_ms")
    assert step["interval"]["estimate"] == pytest.approx(1.1, rel=0.02)


def test_what_will_not_do_is_refused_before_anything_trains(trained, tmp_path, capsys):
    calls, train = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["--a", "", "--b", "", "--repeat", "1"], train) == 2
    assert main(["--a", "", "--b", "", "--work_dir", "full"], train) == 2
    assert main(["--a", "", "--b", "trainin.max_steps=3"], train) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--repeat 1" in errors[0] and "it is not empty" in errors[1] and "trainin" in errors[2] and not calls


def test_ctrl_c_is_one_line_that_says_where_the_runs_are(tmp_path, capsys):
    def train(*_):
        raise KeyboardInterrupt

    assert main(["--a", "", "--b", "", "--work_dir", str(tmp_path / "runs")], train) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: stopped") and f"--a {tmp_path / 'runs'}/a-1" in error


def test_a_training_that_fails_is_one_line_with_its_log(tmp_path, capsys):
    missing = shlex.quote(f"data.sources=[{{path: {tmp_path / 'nothing'}}}]")
    arguments = ["--a", missing, "--b", "", "--repeat", "2", "--work_dir", str(tmp_path / "runs")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: warmup-a failed with exit code 2, see ") and "nothing is not a file" in error
