"""The memory allocator of a run (`perf.allocator`), chosen and installed before torch is imported.

On a CPU, PyTorch takes the memory of each activation from `malloc` and gives it back with `free`. glibc returns large
blocks to the kernel when they are freed, so each step gets new pages and pays a page fault for every one of them. An
allocator that keeps freed memory avoids these faults. A library such as tcmalloc must be there when a process starts:
the process replaces itself once by the same program with `LD_PRELOAD`. `mallopt` makes glibc keep freed memory within
the process. On a GPU, tensors are not allocated by `malloc`, and `auto` changes nothing.

Imports no torch.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from data_prep.errors import UserError

logger = logging.getLogger("redline.launch")

KEY = "perf.allocator"
RESTARTED = "REDLINE_RESTARTED_WITH"
"""Variable of the process that a restart starts: the library, and `LD_PRELOAD` as it was, in JSON. Each process removes
it, so no other process restarts or is kept from it because of this one."""
CHECK_SECONDS = 20  # of a Python that starts with the library: it takes 0.03 s
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+\s+(/.*)")
_LDCONFIG = re.compile(r"\s(\S+) \(.*\) => (/.*)")
_GLIBC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


@dataclass(frozen=True)
class AllocatorInUse:
    """What serves `malloc` in this process."""

    name: str
    """tcmalloc, jemalloc, glibc, musl, another library's name, or system where it is unknown."""
    library: str | None
    """Path of the library; None where it is unknown."""
    set_by: Literal["restart", "LD_PRELOAD", "mallopt", "unchanged"]
    """restart: `use_allocator` restarted the process with it. LD_PRELOAD: the user preloaded it, or Python is linked
    with it. mallopt: the C library's, with thresholds of ours. unchanged: the C library's as it is."""

    def as_json(self) -> dict[str, Any]:
        """For `env.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Allocator:
    """A value of `perf.allocator`, and what is known about it."""

    name: str
    """Value of `perf.allocator`."""
    set_by: str
    """How it is installed, in words."""
    keeps: str
    """What becomes of freed memory, in words."""
    install: str = ""
    """Where it comes from: what to install where it is missing."""

    def release(self) -> None:
        """Return freed memory to the kernel, as far as possible."""


@dataclass(frozen=True)
class GlibcThresholds(Allocator):
    """glibc's own allocator with other thresholds. parameters: of mallopt (`malloc.h`), number -> value (an int)."""

    parameters: Mapping[int, int] = field(default_factory=dict)

    def obstacle(self) -> str | None:
        """What keeps this process from setting the thresholds; None: nothing."""
        if _has_symbol("gnu_get_libc_version") and _has_symbol("mallopt"):
            return None
        return f"the C library of this machine ({_name_c_library()}) is not glibc and has no mallopt"

    def set(self) -> bool:
        """Set the thresholds for this process. Whether glibc accepted all of them."""
        mallopt = ctypes.CDLL(None).mallopt
        return all([mallopt(number, value) == 1 for number, value in self.parameters.items()])

    def release(self) -> None:
        """`malloc_trim`, which also returns free pages below memory in use."""
        if self.obstacle() is None:
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


@dataclass(frozen=True)
class AllocatorLibrary(Allocator):
    """A library that replaces `malloc` when it is loaded before the C library.

    files: names of the library, the preferred one first. environment: variables that it reads, set where the user has
    not set them.
    """

    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def find(self, environ: Mapping[str, str]) -> str | None:
        """Path of the library if it is installed: in the environments of conda and Python, in `LD_LIBRARY_PATH`, or
        where `ldconfig` knows it."""
        folders = _list_folders(environ)
        candidates = [Path(folder) / file for file in self.files for folder in folders]
        cached = _read_ldconfig()
        candidates += [Path(path) for file in self.files for path in cached.get(file, ())]
        return next((str(path) for path in candidates if path.is_file() and _is_for_this_machine(path)), None)

    def is_file_of(self, path: str) -> bool:
        """Whether the file at `path` is this library, in any version."""
        return bool(re.match(rf"lib{self.name}(?![a-z])", Path(path).name))


@dataclass(frozen=True)
class TcmallocLibrary(AllocatorLibrary):
    """gperftools' tcmalloc."""

    def release(self) -> None:
        """`ReleaseFreeMemory` of gperftools."""
        if _has_symbol("MallocExtension_ReleaseFreeMemory"):
            ctypes.CDLL(None).MallocExtension_ReleaseFreeMemory()


@dataclass(frozen=True)
class JemallocLibrary(AllocatorLibrary):
    """jemalloc."""

    def release(self) -> None:
        """Purge the free pages of all arenas (4096 is MALLCTL_ARENAS_ALL)."""
        if _has_symbol("mallctl"):
            ctypes.CDLL(None).mallctl(b"arena.4096.purge", None, None, None, ctypes.c_size_t(0))


LIBRARIES: tuple[AllocatorLibrary, ...] = (
    TcmallocLibrary(
        "tcmalloc",
        set_by="restarting the process once with `LD_PRELOAD`",
        keeps="kept, and returned slowly",
        install="the Debian package libtcmalloc-minimal4, or gperftools from conda-forge",
        files=("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libtcmalloc_minimal.so", "libtcmalloc.so"),
        # It would print a line on stderr for each tensor above 1 GiB.
        environment={"TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": "0"},
    ),
    JemallocLibrary(
        "jemalloc",
        set_by="restarting the process once with `LD_PRELOAD`",
        keeps="kept for about 10 s",
        install="the Debian package libjemalloc2, or jemalloc from conda-forge",
        files=("libjemalloc.so.2", "libjemalloc.so"),
    ),
)
GLIBC = GlibcThresholds(
    "glibc",
    set_by="`mallopt` in the process",
    keeps="kept until the process ends",
    install="the system: the C library of most Linux distributions",
    # M_MMAP_MAX: no block of its own from the kernel, however large. M_TRIM_THRESHOLD: never give memory back.
    # M_TOP_PAD: fewer calls of sbrk while the heap grows.
    parameters={-4: 0, -1: -1, -2: 64 << 20},
)
ALLOCATORS: tuple[Allocator, ...] = (*LIBRARIES, GLIBC)
"""In the order of `auto`."""

# What `use_allocator` made of this process. The thresholds of mallopt cannot be read back.
_in_use: AllocatorInUse | None = None


def use_allocator(
    requested: str, *, on_cpu: bool, is_program: bool, environ: MutableMapping[str, str] = os.environ
) -> AllocatorInUse:
    """Install the allocator that `perf.allocator` asks for, and log which one it is and why. Call before torch loads.

    May not return: the process restarts once with a library preloaded, with the same process ID, arguments,
    environment and open standard streams. After the restart `LD_PRELOAD` has its former value again, so other
    programs that this one starts do not load the library; processes that it forks have it.

    is_program: whether the process may restart, because the training is all that it does. Raises UserError if an
    allocator that is asked for by name cannot be used.
    """
    global _in_use
    restarted_with = _end_restart(environ)
    if requested == "off" or (requested == "auto" and not on_cpu):
        reason = f"{KEY}: off" if requested == "off" else "tensors are on a GPU"
        found, reason = find_in_use(), reason
    elif requested == "auto":
        found, reason = _choose(is_program, restarted_with, environ)
    else:
        found, reason = _use_named(requested, is_program, restarted_with, environ)
    _in_use = found
    where = f"{found.library}; " if found.set_by in ("restart", "LD_PRELOAD") else ""
    state = {"mallopt": " that keeps freed memory", "unchanged": ", unchanged"}.get(found.set_by, "")
    logger.info("allocator: %s%s (%s%s)", found.name, state, where, reason)
    return found


def find_usable(environ: Mapping[str, str] = os.environ) -> list[Allocator]:
    """What `perf.allocator` can name on this machine, first what `auto` takes first."""
    usable: list[Allocator] = [library for library in LIBRARIES if library.find(environ)]
    return [*usable, GLIBC] if GLIBC.obstacle() is None else usable


def describe_allocator() -> dict[str, Any]:
    """The allocator of this process, for `env.json`."""
    return (_in_use or find_in_use()).as_json()


def release_free_memory() -> None:
    """Return freed memory to the kernel, where the allocator was chosen by `use_allocator` and keeps it."""
    if _in_use is not None and _in_use.set_by != "unchanged":
        for allocator in ALLOCATORS:
            if allocator.name == _in_use.name:
                allocator.release()


def find_in_use() -> AllocatorInUse:
    """The library that has this process's `malloc`. Thresholds set by `mallopt` are not seen."""
    maps = list(_read_maps())
    address = _find_malloc()
    path = next((path for start, end, path in maps if start <= address < end), None)
    if path is None or os.path.realpath(path) == os.path.realpath(sys.executable):
        # Python may have an entry for `malloc` of its own (a program at a fixed address): then names decide.
        path = next((path for *_, path in maps if _find_library(path)), None)
    if path is not None and (library := _find_library(path)):
        return AllocatorInUse(library.name, path, "LD_PRELOAD")
    if path is None or re.match(r"(libc[-.]|ld-|libSystem)", Path(path).name):
        return AllocatorInUse(_name_c_library(), path, "unchanged")
    return AllocatorInUse(Path(path).name.removeprefix("lib").split(".")[0], path, "LD_PRELOAD")


def _choose(is_program: bool, restarted_with: str | None, environ: Mapping[str, str]) -> tuple[AllocatorInUse, str]:
    """`auto` on a CPU: what is preloaded, else an installed library, else glibc's thresholds; and why."""
    active = find_in_use()
    if active.set_by == "LD_PRELOAD":
        return _loaded(active, restarted_with)
    if not is_program:
        return active, "train.py was called by another program, whose allocator is left as it is"
    reasons = [f"{restarted_with} did not load"] if restarted_with else []
    for library in LIBRARIES if not restarted_with else ():
        path = library.find(environ)
        obstacle = _find_obstacle(path, library, environ) if path else None
        if path and obstacle is None:
            obstacle = _restart(path, library, environ)
        if obstacle:
            reasons.append(f"{path}: {obstacle}")
    if not reasons:
        reasons.append(f"neither {' nor '.join(library.name for library in LIBRARIES)} is installed")
    obstacle = GLIBC.obstacle() or _find_own_thresholds(environ)
    if obstacle is None and not GLIBC.set():
        obstacle = "mallopt refused the thresholds"
    if obstacle:
        return active, "; ".join([*reasons, obstacle])
    return AllocatorInUse(GLIBC.name, active.library, "mallopt"), "; ".join(reasons)


def _use_named(
    requested: str, is_program: bool, restarted_with: str | None, environ: Mapping[str, str]
) -> tuple[AllocatorInUse, str]:
    active = find_in_use()
    if requested == GLIBC.name:
        obstacle = GLIBC.obstacle()
        if active.set_by == "LD_PRELOAD":
            obstacle = f"{active.library} is preloaded: unset LD_PRELOAD"
        if obstacle is None and not GLIBC.set():
            obstacle = "mallopt refused the thresholds"
        if obstacle:
            raise _unusable(requested, obstacle)
        return AllocatorInUse(GLIBC.name, active.library, "mallopt"), "asked for"
    library = next(library for library in LIBRARIES if library.name == requested)
    if active.name == requested:
        return _loaded(active, restarted_with)
    if restarted_with:
        raise _unusable(requested, f"{restarted_with} did not load")
    path = library.find(environ)
    if path is None:
        raise _unusable(requested, f"it is not installed: install {library.install}")
    obstacle = _find_obstacle(path, library, environ)
    if obstacle is None and not is_program:
        obstacle = f"a program that calls train.py does not restart: start it with LD_PRELOAD={path}"
    raise _unusable(requested, obstacle or f"{path}: {_restart(path, library, environ)}")


def _loaded(active: AllocatorInUse, restarted_with: str | None) -> tuple[AllocatorInUse, str]:
    if restarted_with and active.library and os.path.realpath(active.library) == os.path.realpath(restarted_with):
        return AllocatorInUse(active.name, active.library, "restart"), "installed; this process restarted with it"
    return active, "loaded when this process started"


def _unusable(requested: str, obstacle: str) -> UserError:
    return UserError(f"{KEY}: {requested!r} cannot be used: {obstacle}; or use 'auto'")


def _find_own_thresholds(environ: Mapping[str, str]) -> str | None:
    """The user's own settings of glibc's allocator, which `auto` keeps."""
    own = [name for name in _GLIBC_VARIABLES if environ.get(name)]
    own += ["GLIBC_TUNABLES"] * ("glibc.malloc." in environ.get("GLIBC_TUNABLES", ""))
    return f"{own[0]} is set, and is kept" if own else None


def _find_obstacle(path: str, library: AllocatorLibrary, environ: Mapping[str, str]) -> str | None:
    """What goes wrong when a Python starts with the library, for example a library that it needs and that is missing:
    the restarted process would end without a word of ours. None: nothing."""
    command = [sys.executable, "-I", "-S", "-c", ""]
    try:
        done = subprocess.run(
            command, env=_with_library(path, library, environ), capture_output=True, text=True, timeout=CHECK_SECONDS
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    said = done.stderr.strip().splitlines()
    if done.returncode == 0 and not said:
        return None
    return said[-1] if said else f"Python ended with exit code {done.returncode}"


def _restart(path: str, library: AllocatorLibrary, environ: Mapping[str, str]) -> str:
    """Replace this process by the same program with the library preloaded. Returns only if that fails: the reason."""
    program = getattr(sys.modules.get("__main__"), "__file__", None)
    if not sys.executable or not sys.orig_argv or not program or not os.path.isfile(program):
        return "this process has no program file to restart"
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    marker = json.dumps([path, environ.get("LD_PRELOAD")])
    try:
        _execute([sys.executable, *sys.orig_argv[1:]], {**_with_library(path, library, environ), RESTARTED: marker})
    except OSError as error:
        return f"this process could not restart: {error.strerror}"


def _execute(arguments: list[str], environ: Mapping[str, str]) -> NoReturn:
    os.execve(arguments[0], arguments, environ)


def _end_restart(environ: MutableMapping[str, str]) -> str | None:
    """The library that this process was restarted with; `LD_PRELOAD` is then as it was. None: it was not restarted."""
    marker = environ.pop(RESTARTED, None)
    if marker is None:
        return None
    try:
        path, before = json.loads(marker)
    except (ValueError, TypeError):  # somebody else's value: it says no more than that there is no second restart
        return marker or "a library"
    environ.pop("LD_PRELOAD", None)
    if before is not None:
        environ["LD_PRELOAD"] = before
    return str(path)


def _with_library(path: str, library: AllocatorLibrary, environ: Mapping[str, str]) -> dict[str, str]:
    preload = ":".join(filter(None, (path, environ.get("LD_PRELOAD"))))
    return {**library.environment, **environ, "LD_PRELOAD": preload}


def _find_library(path: str) -> AllocatorLibrary | None:
    return next((library for library in LIBRARIES if library.is_file_of(path)), None)


def _list_folders(environ: Mapping[str, str]) -> list[str]:
    prefixes = dict.fromkeys(filter(None, (environ.get("CONDA_PREFIX"), sys.prefix, sys.base_prefix)))
    machine = platform.machine()
    return [
        *(os.path.join(prefix, "lib") for prefix in prefixes),
        *filter(None, environ.get("LD_LIBRARY_PATH", "").split(":")),
        "/usr/local/lib", f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib",
    ]  # fmt: skip


def _read_ldconfig() -> dict[str, list[str]]:
    """File name -> paths, of the libraries that the dynamic linker knows. Empty where there is no `ldconfig`."""
    if sys.platform != "linux":
        return {}
    environ = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin"}
    try:
        done = subprocess.run(["ldconfig", "-p"], env=environ, capture_output=True, text=True, timeout=CHECK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, list[str]] = {}
    for name, path in _LDCONFIG.findall(done.stdout):
        found.setdefault(name, []).append(path)
    return found


def _is_for_this_machine(path: Path) -> bool:
    """Whether the file has the word size, byte order and processor of this Python (bytes 4, 5, 18 and 19 of ELF)."""
    try:
        with path.open("rb") as file, open(sys.executable, "rb") as python:
            header, own = file.read(20), python.read(20)
    except OSError:
        return False
    return header[:4] == b"\x7fELF" and (header[4:6], header[18:20]) == (own[4:6], own[18:20])


def _read_maps() -> Iterator[tuple[int, int, str]]:
    """Start, end and file of what is mapped into this process. Nothing where there is no /proc."""
    try:
        lines: Iterable[str] = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        if match := _LINE.match(line):
            yield int(match[1], 16), int(match[2], 16), match[3]


def _find_malloc() -> int:
    """Address of the function that `malloc` means in this process; 0 where it is unknown."""
    try:
        return ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value or 0
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows there is no such handle
        return 0


def _has_symbol(name: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(None), name)
    except (OSError, TypeError):
        return False


def _name_c_library() -> str:
    if _has_symbol("gnu_get_libc_version"):
        return "glibc"
    return "musl" if any("musl" in path for *_, path in _read_maps()) else "system"
