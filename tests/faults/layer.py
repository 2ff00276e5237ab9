"""Builds `layer.c` and arms it in a process that has preloaded it: the Nth write, flush, rename or removal below a
directory crashes the process, or every write from the Nth on finds the disk full."""

import ctypes
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

OFF, CRASH, FULL = range(3)
CRASHED = 77
SOURCE = Path(__file__).with_name("layer.c")


def build(folder: Path) -> Path | None:
    """The library, built in a folder; None where it cannot be (no C compiler, not Linux)."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not Path("/proc/self/fd").is_dir():
        return None
    library = folder / "layer.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-w", "-o", str(library), str(SOURCE), "-ldl"]
    return library if subprocess.run(command).returncode == 0 else None


@contextmanager
def armed(below: Path, number: int, mode: int):
    """Within, the operation of this number below a directory fails. Gives what says how many there were, and which."""
    library = ctypes.CDLL(None)
    library.fault_last.restype = ctypes.c_char_p
    library.fault_count.restype = ctypes.c_long
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    library.fault_arm(os.fsencode(below.resolve()), number, mode)
    try:
        yield library
    finally:
        library.fault_arm(b"/", 0, OFF)
