"""What ranks tell their supervisor: who they are, where the run lies, and how each of them ended.

`python -m training.supervise` names a file in `REDLINE_OUTCOMES`; each rank appends lines to it. Launchers keep the
exit codes of ranks to themselves, and nobody else hears of an error on another rank than the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "REDLINE_OUTCOMES"
# In messages of a rank whose neighbour has died: not the cause.
_OF_ANOTHER_RANK = ("Connection closed", "Connection reset", "Broken pipe", "imed out", "remote process exited")


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended."""

    rank: int
    code: int
    message: str
    is_stop: bool = False
    """Whether a signal has ended it."""
    is_orphan: bool = False
    """Whether its launcher was gone."""


@dataclass
class Outcomes:
    """What the ranks of one attempt have told."""

    pids: dict[int, int] = field(default_factory=dict)
    """Of each rank."""
    run_dir: Path | None = None
    """Of the run, once it is open."""
    ended: list[RankEnd] = field(default_factory=list)
    """In the order of their ends; who was killed is missing."""

    def find_silent(self) -> set[int]:
        """Ranks that have told of no end."""
        return set(self.pids) - {one.rank for one in self.ended}

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        """From the file; whole lines only."""
        found = cls()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                told: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if "pid" in told:
                found.pids[told["rank"]] = told["pid"]
            elif "run_dir" in told:
                found.run_dir = Path(told["run_dir"])
            else:
                found.ended.append(RankEnd(**told))
        return found

    def find_cause(self) -> RankEnd | None:
        """The first error that is not the loss of another rank; None where there is no error."""
        errors = [one for one in self.ended if one.code and not one.is_stop]
        own = [one for one in errors if not any(words in one.message for words in _OF_ANOTHER_RANK)]
        return next(iter(own), None)

    def find_stop(self) -> RankEnd | None:
        """The first of the ranks if a signal has stopped them all, or None."""
        if not self.ended or self.find_silent():
            return None
        return self.ended[0] if all(one.is_stop and not one.is_orphan for one in self.ended) else None


def tell(told: Mapping[str, Any]) -> None:
    """Append a line to the supervisor's file, if there is a supervisor: a rank with its `pid`, `run_dir`, or the fields
    of a `RankEnd`."""
    if path := os.environ.get(VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def describe_error(error: BaseException) -> str:
    """Its class, the first line of its message, and its notes (`after step N`)."""
    first = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
    return "; ".join([first, *getattr(error, "__notes__", ())])
