"""Words of this project: coined ones have a textbook term, which the reader knows already.

Run by `make check`, beside codespell. A phrase may be added with its term; one may go when nobody would write it any
more.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Coined phrase (a regular expression, in any case) -> what to write.
TERMS = {
    r"\bnot told\b": "inconclusive",
    r"\bcould (have )?show(n)?\b": "minimum detectable effect",
    r"\bwhat measuring costs\b": "profiling overhead",
    r"\bwhat waits for other ranks\b": "exposed communication",
    r"\bhow often wrong\b": "false-positive rate",
    r"\bwords of a tokenizer\b": "vocabulary size",
    r"\btold apart by themselves\b": "detected automatically",
    r"\bsorted out by themselves\b": "configured automatically",
    r"\b(is|are) to be mended\b": "user error, or fix",
    r"\banew\b": "again, from scratch",
    r"\b(held|holds?|holding) .{0,60}\bagainst\b": "compared with",
    r"\bgo(es|ing)? on (from|with) (step|a stopped|the latest)\b": "resume, continue",
    r"\baudible\b": "with_loss",
    r"\bfor want of\b": "because there is not enough",
    r"\bbe it that\b": "whether",
}
SUFFIXES = {".py", ".md", ".yaml", ".j2", ".toml"}
# Measured pages and the log of experiments are dated records.
HISTORY = ("docs/results/", "docs/experiments.md", "tests/test_words.py", "CHANGELOG.md")


def list_files() -> list[str]:
    """Tracked text files that a reader of today meets."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository here")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [name for name in listed if Path(name).suffix in SUFFIXES and not name.startswith(HISTORY)]


def find_coined(text: str) -> list[tuple[int, str, str]]:
    """Line, what stands there and what to write instead."""
    found = []
    for pattern, term in TERMS.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            found.append((text.count("\n", 0, match.start()) + 1, match[0], term))
    return sorted(found)


def test_no_coined_words():
    bad = [
        f"{name}:{line}: {words!r}: write {term}"
        for name in list_files()
        for line, words, term in find_coined((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not bad, "\n".join(bad)


def test_they_would_be_found():
    assert find_coined("a\nHolds it against the plan, Anew") == [
        (2, "Anew", "again, from scratch"), (2, "Holds it against", "compared with"),
    ]  # fmt: skip
