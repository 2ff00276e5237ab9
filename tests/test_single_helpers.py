"""One helper for each of these: what else needs it imports it.

A new place is fine where the helper cannot serve, such as a directory that is renamed as a whole: name it here with
its reason.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {
    r"os\.replace\(": {
        "data_prep/atomic_files.py",
        "data_prep/store/writing.py",  # a hard link, and a shard that stays open
        "data_prep/encode/tokenizer.py",  # a directory
        "training/kernels/cpu/build.py",  # a library that the compiler wrote
    },
    r"difflib": set(),  # data_prep/recipe/spelling.py suggests by number of edits
    r"ru_maxrss|VmHWM:?\||/proc/self/status": {
        "training/metrics/resident.py",
        "training/benchmark/peers/scripts/rows.py",  # a script of another side's imports nothing of ours
    },
    r"(?i)0x9E3779B97F4A7C15|0xBF58476D1CE4E5B9|0x94D049BB133111EB": {"data_prep/hash_mixing.py"},
}


@pytest.mark.parametrize(("pattern", "places"), PLACES.items())
def test_only_the_helper_does_it(pattern, places):
    files = [path for package in ("data_prep", "training") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text())}
    assert found == places
