"""docs/metrics.md and names.py hold the same keys."""

import re
from pathlib import Path

from training.metrics import names

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_every_key_is_documented_once_and_no_other():
    constants = [value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)]
    keys = {value for value in constants if "/" in value} | {names.phase_key(phase) for phase in names.PHASES}
    documented = re.findall(r"^\| `([a-z0-9_]+/[a-z0-9_]+)` \|", DOC.read_text("utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(keys)
