"""Where compiled code is kept: `perf.compile_cache_dir`. Needs no torch: its compiler reads the place when it loads."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from data_prep.errors import UserError

INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
TRITON_VARIABLE = "TRITON_CACHE_DIR"


def set_cache_environment(cache_dir: str | None, environ: MutableMapping[str, str] = os.environ) -> Path:
    """Name the cache directory to inductor and Triton and create it; the directory.

    cache_dir: None: `redline/compiled` in the user's cache directory. A variable that the user has set stays. Raises
    UserError when the directory cannot be written to.
    """
    user_cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    asked = Path(cache_dir).expanduser().absolute() if cache_dir else user_cache / "redline" / "compiled"
    directory = Path(environ.setdefault(INDUCTOR_VARIABLE, str(asked)))
    triton = Path(environ.setdefault(TRITON_VARIABLE, str(directory / "triton")))
    for path, variable in ((directory, INDUCTOR_VARIABLE), (triton, TRITON_VARIABLE)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"perf.compile_cache_dir: {path} cannot be created ({error.strerror}): name a directory that can be "
                f"written to, or unset {variable} if your shell sets it"
            ) from error
        if not os.access(path, os.W_OK):
            raise UserError(f"perf.compile_cache_dir: {path} cannot be written to: name another directory")
    return directory
