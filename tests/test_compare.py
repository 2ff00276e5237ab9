"""The command: sides, files, errors."""

import json
from pathlib import Path

import pytest

from tests.comparing.conftest import write_timed  # noqa: F401
from training.compare import main


def test_two_runs_are_printed_and_written(tmp_path, write_timed, capsys):  # noqa: F811
    a, b = write_timed("a"), write_timed("b", seed=1, slower=1.3)
    page = tmp_path / "pages" / "ab.md"
    assert main([str(a), str(b), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "## B compared with A" in out and "tokens/s: needs repeats for an interval" in out
    assert "![Ratios, losses and phases](ab.png)" in page.read_text()
    assert page.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert list(json.loads(page.with_suffix(".json").read_text())["sides"]) == ["A", "B"]


def test_repeats_may_be_named_or_lie_in_a_directory(write_timed, capsys):  # noqa: F811
    runs = [str(write_timed(f"{side}/{seed}", seed=seed)) for seed, side in enumerate("aabb")]
    assert main(["--a", *runs[:2], "--b", *runs[2:], "--json"]) == 0
    named = json.loads(capsys.readouterr().out)
    assert main(["--a", str(Path(runs[0]).parent), "--b", str(Path(runs[2]).parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == named
    assert main(["--a", *runs[:2], "--b", *runs[2:], "--paired"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "name two sides"),
        (["--a", "a"], "name two sides"),
        (["a", "b", "--a", "a"], "not both"),
        (["a", "nothing"], "no such directory"),
        (["a", "empty"], "nothing was logged"),
        (["--a", "a", "b", "--b", "b", "--paired"], "A has 2, B has 1 runs"),
        (["--a", "a", "b", "--b", "b/../a"], "a: named twice"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, write_timed, capsys, monkeypatch, arguments, message):  # noqa: F811
    write_timed("a")
    write_timed("b")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
