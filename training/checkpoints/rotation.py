"""Which checkpoints of a run stay: the last whole ones, the best, every n-th."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from training.checkpoints.manifest import find_checkpoints, is_whole
from training.checkpoints.staging import STAGING

ABANDONED = "abandoned-checkpoint-"


def choose_removals(run_dir: Path, limit: int | None, best: str | None, keep_every: int = 0) -> list[Path]:
    """The checkpoints to remove, oldest first.

    The last `limit` whole ones stay (None or 0: all), so that the only good one always does; beside them `best`, and
    those whose step is a multiple of `keep_every`. Checkpoints of an abandoned branch stay in places that are left.
    """
    if not limit:
        return []
    found = find_checkpoints(run_dir)
    kept = [path for path in found if is_whole(path)][:limit]
    if not kept:
        return []
    places = limit - len(kept)
    step_of = {path: int(path.name.rpartition("-")[2]) for path in found}
    kept += [path for path in found if keep_every and step_of[path] % keep_every == 0]
    kept += [path for path in found if best is not None and path.resolve() == Path(best).resolve()]
    return [*find_abandoned(run_dir)[places:][::-1], *(path for path in reversed(found) if path not in kept)]


def find_abandoned(run_dir: Path) -> list[Path]:
    """`abandoned-checkpoint-N-M` directories, the latest first."""
    found = [path for path in run_dir.glob(f"{ABANDONED}*") if path.is_dir() and re.search(r"-\d+-\d+$", path.name)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def remove_checkpoint(run_dir: Path, checkpoint: Path) -> None:
    """Remove one; at no instant a part of it stands under its name. A file that cannot be removed stays aside."""
    aside = run_dir / STAGING / f"removed-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
