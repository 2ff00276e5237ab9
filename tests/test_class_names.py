"""One class name means one thing in the whole tree: a reader who meets a name need not look up where it comes from."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("data_prep", "training")
# Name -> why two classes share it.
ALLOWED = {
    "Clock": "not yet renamed: training.metrics.phase_timer, training.trainers.recorder",
}


def find_shared_names(root: Path) -> dict[str, list[str]]:
    """Name -> `FILE:LINE` of each public class of that name at the top level of a module, for names that two share."""
    places = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(f"{path.relative_to(root).as_posix()}:{node.lineno}")
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_public_classes_share_a_name():
    shared = {name: places for name, places in find_shared_names(ROOT).items() if name not in ALLOWED}
    assert not shared, f"{shared}: rename all but one of each, after what sets it apart (`Row` -> `BenchmarkRow`)"


def test_only_public_classes_at_the_top_level_count(tmp_path: Path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "data_prep/a.py").write_text("class Row: ...\nclass _Own: ...\nclass Alone:\n    class Inner: ...\n")
    (tmp_path / "training/b.py").write_text("class _Own: ...\nclass Other:\n    class Inner: ...\nclass Row: ...\n")
    assert find_shared_names(tmp_path) == {"Row": ["data_prep/a.py:1", "training/b.py:4"]}
