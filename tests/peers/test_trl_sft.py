"""TRL's own tests of its `SFTTrainer`, with `ProfiledTrainer` in the place of `transformers.Trainer`.

    TRL_DIR=/path/to/trl python -m pytest tests/peers -s

runs `tests/test_sft_trainer.py` of that checkout (1.9 or later) twice and compares test by test. Models and data are
made here (`trl_offline.py`). It takes some 15 minutes on two cores and is no part of `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRL = Path(os.environ.get("TRL_DIR", ""))
pytestmark = [
    pytest.mark.skipif("TRL_DIR" not in os.environ, reason="TRL_DIR names no checkout of TRL"),
    pytest.mark.timeout(3600),
]


def run_suite(trainer: str, folder: Path) -> dict[str, str]:
    """Outcome by test: passed, skipped, failed."""
    folder.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TRL), str(ROOT)]),
        "HF_HUB_CACHE": str(folder / "hub"),
        "REDLINE_TRAINER": trainer,
    }
    chosen = os.environ.get("TRL_TESTS", "")
    command = [
        sys.executable, "-m", "pytest", "tests/test_sft_trainer.py", "-p", "tests_of_redline", "-q", "--no-header",
        "-p", "no:cacheprovider", f"--junitxml={folder / 'result.xml'}", *(["-k", chosen] if chosen else []),
    ]  # fmt: skip
    (folder / "tests_of_redline.py").write_text(
        f"import sys, runpy\nglobals().update(runpy.run_path({str(ROOT / 'tests' / 'peers' / 'trl_offline.py')!r}))\n"
    )
    environment["PYTHONPATH"] += os.pathsep + str(folder)
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=TRL, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    outcomes = {}
    for case in ElementTree.parse(folder / "result.xml").iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes


def test_the_same_tests_pass(tmp_path):
    stock = run_suite("stock", tmp_path / "stock")
    profiled = run_suite("profiled", tmp_path / "profiled")
    for name, outcomes in (("transformers.Trainer", stock), ("ProfiledTrainer", profiled)):
        counts = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "failed", "skipped")}
        print(f"\n{name}: {counts}")
    differing = {
        test: (outcome, profiled.get(test)) for test, outcome in stock.items() if profiled.get(test) != outcome
    }
    assert not differing
    assert stock.keys() == profiled.keys() and "passed" in stock.values()
