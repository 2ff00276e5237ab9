"""The whole benchmark at tiny sizes in this process, and what it refuses."""

import json

import pytest

from training.benchmark.__main__ import main as dispatch
from training.benchmark.data import command, packing
from training.benchmark.data.command import ROWS, main
from training.benchmark.isolation import Outcome, PeakMemory


def run_here(function, *args, watch=False):
    """Instead of a fresh process: quicker by the imports."""
    return Outcome(function(*args), PeakMemory(300 * 10**6, 200 * 10**6))


@pytest.fixture
def alone(monkeypatch):
    """One core, so that nothing here forks a process with threads; a machine without TRL."""
    monkeypatch.setattr(command, "count_cores", lambda: 1)
    monkeypatch.setattr(packing, "find_spec", lambda name: None)


def test_a_quick_run_measures_every_row_and_writes_the_page(tmp_path, alone):
    page = tmp_path / "results" / "data.md"
    assert main(["--quick", "--output", str(page)], run_here) == 0
    result = json.loads(page.with_suffix(".json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == list(ROWS)
    assert all(row["reached"] is None for row in rows.values())  # tiny sizes prove nothing
    text = page.read_text()
    assert "TRL is not installed: pip install -r requirements-dev.txt" in rows["packing"]["measured"]
    assert "Both sides give" in text and "NOT THE SAME WORK" not in text
    assert rows["memory"]["measured"].startswith("1.00 times; 300 MB")
    assert page.with_suffix(".png").read_bytes()[:4] == b"\x89PNG" and "](data.png)" in text
    assert result["machine"]["command"].startswith("python -m training.benchmark data --quick")
    page.unlink()
    assert main(["--render", "--output", str(page)]) == 0
    assert page.read_text() == text


def test_without_input_it_says_what_it_needs(capsys, tmp_path):
    assert main(["--output", str(tmp_path / "page.md")]) == 2
    error = capsys.readouterr().err
    assert "error: --input: name JSONL files with a `text` key, 1,000 MB in all" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"content": "a"}\n', "line 1 of {path} has none"),
        (b"plain text\n", "line 1 of {path} has none"),
        (b'{"text": "a"}\n', "these hold 0 MB"),
        (None, "{path} cannot be read (No such file or directory)"),
    ],
)
def test_input_that_will_not_do_is_refused_before_anything_runs(tmp_path, capsys, content, message):
    path = tmp_path / "input.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main(["--input", str(path), "--output", str(tmp_path / "page.md")]) == 2
    assert message.format(path=path) in capsys.readouterr().err


def test_an_unknown_benchmark_is_an_error_that_lists_the_known(capsys):
    assert dispatch(["dta"]) == 2
    assert "data " in capsys.readouterr().err
    assert dispatch(["--help"]) == 0
