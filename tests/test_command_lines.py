"""Wrong arguments of every command are one line and exit code 2."""

import importlib
import re

import pytest

from tests.integration.conftest import ROOT

MODULES = [
    "data_prep.inspect", "training.export", "training.generate", "training.monitor", "training.report",
    "training.benchmark.data.text",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_missing_arguments_are_one_line(module, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: command line: the following arguments are required: .* \(--help explains the arguments\)\n", error
    )


def test_an_unknown_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("training.compare").main(["--no-such-flag"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: command line: ") and "--no-such-flag" in line


@pytest.mark.parametrize("name", ["compare", "monitor", "report"])
def test_help_ends_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"training.{name}").main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith(f"Example: python -m training.{name} runs/")


def test_all_commands_use_the_same_parser():
    sources = [path for package in ("training", "data_prep") for path in (ROOT / package).rglob("*.py")]
    sources = [path for path in sources if path.parent.parts[-2:] != ("peers", "scripts")]  # of other programs
    own = [path.name for path in sources if "ArgumentParser(" in path.read_text(encoding="utf-8")]
    assert own == []
