"""`--help`: the program's name, types in words and lines that fit the terminal."""

import re
import sys

import pytest

from training.config import load_config
from training.plan import COMMAND, split_flags


def read_help(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    with pytest.raises(SystemExit):
        load_config(["--help"], None, *given)  # type: ignore[arg-type]
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "shown"), [("/bin/redline-train", "redline-train"), ("training/train.py", "python -m training.train")]
)
def test_usage_names_the_program(capsys, monkeypatch, typed: str, shown: str) -> None:
    monkeypatch.setattr(sys, "argv", [typed])
    assert read_help(capsys).startswith(f"usage: {shown} [--config NAME_OR_PATH]")


def test_the_plan_shows_its_own_options(capsys) -> None:
    text = read_help(capsys, COMMAND)
    assert text.startswith("usage: python -m training.plan ")
    for option in COMMAND.options:
        assert re.search(rf"^  {option} ", text, re.MULTILINE)
        split_flags([option, "1"])


@pytest.mark.parametrize(("columns", "widest"), [("60", 60), ("90", 90), ("500", 110), ("1", 40)])
def test_lines_fit_the_terminal(capsys, monkeypatch, columns: str, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lengths = [len(line) for line in read_help(capsys).splitlines() if " " in line.strip()]
    assert widest - 10 < max(lengths) <= widest


@pytest.mark.parametrize(
    ("key", "takes"),
    [
        ("target_modules", "text or a list of text (default 'all-linear')"),
        ("profile_steps", "a list of integers or null (default null)"),
        ("optim_target_modules", "text or a list of text or null (default null)"),
        ("report_to", "one of wandb, tensorboard, none or a list of any of wandb, tensorboard, none (default 'none')"),
    ],
)
def test_types_are_words(capsys, monkeypatch, key: str, takes: str) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    text = " ".join(read_help(capsys).split())
    assert f" {key} {takes} " in text
