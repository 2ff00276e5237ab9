"""Builds the C++ kernels once per machine and torch version, and loads them.

The library lies in a folder that is named after everything that could make it wrong: sources, torch, compiler, and the
CPU's instruction sets. Of several processes one builds and the others wait; the lock is let go of when its holder dies.
Without a C++ compiler nothing is built: `load` says why, and whoever wanted the kernels takes another way.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from data_prep.progress import progress
from training.kernels.cpu import ops as _declared  # noqa: F401  an operator is declared before it is implemented

logger = logging.getLogger("redline.kernels")

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(FOLDER.glob("*.cpp")))
VARIABLE = "REDLINE_KERNELS_DIR"
FLAGS_VARIABLE = "REDLINE_KERNELS_CFLAGS"  # more flags for the compiler, -fsanitize=address for one
LIBRARY = "redline_cpu.so"
# Instruction sets by torch's name, best first, and the compiler's flags for them.
INSTRUCTION_SETS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "DEFAULT": [],
}


@cache
def find_obstacle() -> str | None:
    """What keeps the kernels from being built or loaded here, as far as it is known at once; None: nothing."""
    if sys.platform != "linux":
        return f"the CPU kernels are built on Linux only, and this is {sys.platform}"
    if find_library().exists():
        return None
    compiler = find_compiler()
    if shutil.which(compiler) is None:
        return f"the CPU kernels need a C++ compiler and {compiler!r} is not there (apt-get install g++)"
    return None


@cache
def load() -> str | None:
    """Build the kernels, unless they are there, and load them. What kept them from it, in words; None: they are there.

    Every process that asks gets its answer once. The first build on a machine takes about half a minute.
    """
    if obstacle := find_obstacle():
        return obstacle
    library = find_library()
    try:
        if not library.exists():
            _build_once(library)
        torch.ops.load_library(library)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines() or [""]
        return f"the CPU kernels could not be built: {lines[0].strip()}"
    return None


def find_compiler() -> str:
    """The C++ compiler: `CXX`, else `c++`."""
    return os.environ.get("CXX") or "c++"


def find_cache_dir() -> Path:
    """Where built kernels lie: `REDLINE_KERNELS_DIR`, else `redline/kernels` in the user's cache folder."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "redline" / "kernels"


def find_library() -> Path:
    """The library that suits these sources, this torch and this CPU, whether or not it is there yet."""
    digest = hashlib.sha256()
    for path in (*SOURCES, *sorted(FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    digest.update(" ".join([find_compiler(), *find_flags()]).encode())
    version = torch.__version__.replace("+", "-")
    return find_cache_dir() / f"torch-{version}-{find_instruction_set().lower()}-{digest.hexdigest()[:16]}" / LIBRARY


def find_instruction_set() -> str:
    """What torch's own kernels use on this CPU, by its name, or the plain one where ours have no other."""
    name = torch.backends.cpu.get_cpu_capability().split()[0]
    return name if name in INSTRUCTION_SETS else "DEFAULT"


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    return find_instruction_set() == "AVX512" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def find_flags() -> list[str]:
    """Of the compiler, for this CPU, and what `REDLINE_KERNELS_CFLAGS` adds."""
    name = find_instruction_set()
    flags = [*INSTRUCTION_SETS[name], f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}"]
    if multiplies_bfloat16():
        flags += ["-DREDLINE_BFLOAT16_TILES"]
        flags += ["-mavx512bf16"] if torch.cpu._is_avx512_bf16_supported() else []
    return ["-O3", "-fopenmp", *flags, *os.environ.get(FLAGS_VARIABLE, "").split()]


def _build_once(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.parent / "lock", "w") as lock, progress("building the CPU kernels"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():  # another process built it meanwhile
            return
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            os.replace(_build(Path(folder)), library)
        logger.info(
            "kernels: built for this CPU in %.0f s (once per machine and torch version), in %s",
            time.monotonic() - started,
            library.parent,
        )


def _build(folder: Path) -> Path:
    """The library, built in `folder`. Raises RuntimeError with the compiler's output."""
    from torch.utils.cpp_extension import load as build_extension

    # ninja comes with DeepSpeed, into the folder of this Python, which need not be on the path
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"
    try:
        build_extension(
            Path(LIBRARY).stem,
            [str(path) for path in SOURCES],
            extra_cflags=find_flags(),
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
    finally:
        os.environ["PATH"] = path
    return folder / LIBRARY
