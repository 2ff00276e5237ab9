"""The repository stays small: raw measurements and data live in run folders, pages and code live here."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_BYTES = 200_000
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}


def find_large_files(root: Path, names: list[str]) -> list[str]:
    """`NAME: N bytes` of each file of `names` below `root` above `MAX_BYTES`; pictures are exempt."""
    sizes = {name: (root / name).stat().st_size for name in names if (root / name).is_file()}
    return [
        f"{name}: {size} bytes"
        for name, size in sizes.items()
        if size > MAX_BYTES and Path(name).suffix.lower() not in PICTURES
    ]


def test_no_tracked_file_is_large():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are tracked is unknown")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    large = find_large_files(ROOT, listed.stdout.rstrip("\0").split("\0"))
    assert not large, (
        f"{large}: tracked files above {MAX_BYTES} bytes. Keep raw samples in the run folder (`git rm --cached FILE`, "
        "add it to .gitignore) and commit the page that sums them up; split a source file."
    )


def test_only_a_file_above_the_limit_that_is_no_picture_is_large(tmp_path: Path):
    for name, size in (("at.json", 200_000), ("above.json", 200_001), ("above.PNG", 200_001)):
        (tmp_path / name).write_bytes(b"x" * size)
    names = ["at.json", "above.json", "above.PNG", "deleted.json"]
    assert find_large_files(tmp_path, names) == ["above.json: 200001 bytes"]
