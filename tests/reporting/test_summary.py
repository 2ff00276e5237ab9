"""What a run writes at its end is what the reports read."""

import json
import re
from dataclasses import fields
from pathlib import Path

from tests.reporting.conftest import SUMMARY
from training.reporting.run_reader import load_run
from training.reporting.summary import Summary

ROOT = Path(__file__).resolve().parents[2]


def test_a_summary_comes_back_as_it_was():
    summary = Summary.from_json(SUMMARY)
    assert Summary.from_json(json.loads(json.dumps(summary.as_json()))) == summary
    assert summary.loss_last == SUMMARY["loss_last"]


def test_a_failed_run_has_what_is_known_of_it():
    failed = Summary(name="x", status="failed", steps=3, error="UserError: y", step_not_finite=4)
    assert failed.as_json() == {
        "name": "x", "status": "failed", "steps": 3, "error": "UserError: y", "step_not_finite": 4,
    }  # fmt: skip


def test_a_file_of_another_version_is_read(write_run):
    """It lacks keys, has others, and an object where there is none now."""
    run = load_run(write_run(summary={"status": "finished", "of_tomorrow": 1, "peak": "fast", "steps": 7}))
    assert run.summary == Summary(status="finished", steps=7)


def test_every_field_says_what_it_is():
    source = (ROOT / "training" / "reporting" / "summary.py").read_text()
    described = re.findall(r"^    (\w+): [^\n]*\n    \"\"\"", source, re.MULTILINE)
    assert described == [one.name for one in fields(Summary)]
