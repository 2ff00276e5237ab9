"""Which allocator a run gets, in real processes; libraries are stand-ins that a C compiler builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from data_prep.errors import UserError
from tests.integration.conftest import LAUNCHERS, RECIPE
from training import allocator
from training.allocator import ALLOCATORS, GLIBC, LIBRARIES, RESTARTED, AllocatorInUse, use_allocator
from training.config import load_config
from training.config.sections import PerfSection

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "training" / "train.py")
SOURCE = """#include <stddef.h>
extern void *__libc_malloc(size_t);
void *malloc(size_t n) { return __libc_malloc(n); }
"""
PLAIN = AllocatorInUse("glibc", "/lib/libc.so.6", "unchanged")
needs_glibc = pytest.mark.skipif(GLIBC.obstacle() is not None, reason="this C library has no mallopt")


def build_stand_in(name: str, folder: Path) -> Path:
    """A library of this name whose `malloc` is glibc's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or GLIBC.obstacle():
        pytest.skip("a stand-in library needs a C compiler and glibc")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stand_in.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, folder / "stand_in.c"], check=True)
    return folder / name


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """A conda environment with a tcmalloc and a jemalloc."""
    folder = tmp_path_factory.mktemp("prefix")
    build_stand_in("libtcmalloc_minimal.so.4", folder / "lib")
    build_stand_in("libjemalloc.so.2", folder / "lib")
    return folder


def clean_environ(**changes) -> dict[str, str]:
    dropped = ("LD_PRELOAD", "CONDA_PREFIX", "LD_LIBRARY_PATH", RESTARTED, "GLIBC_TUNABLES", "OMP_NUM_THREADS")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("MALLOC_")}
    return kept | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", **changes}


def run_program(folder: Path, requested: str, environ: dict[str, str], *, before: str = "") -> dict:
    """What a program that calls `use_allocator` finds in itself."""
    program = folder / "program.py"
    program.write_text(
        "import json, logging, os, subprocess, sys\n"
        "from training.allocator import find_in_use, use_allocator\n"
        f"starts = open({str(folder / 'starts')!r}, 'a'); print(os.getpid(), file=starts, flush=True)\n{before}\n"
        f"used = use_allocator({requested!r}, on_cpu=True, is_program=True)\n"
        "child = subprocess.run([sys.executable, '-c', 'print(open(\"/proc/self/maps\").read())'],\n"
        "                       capture_output=True, text=True)\n"
        "print(json.dumps({'used': used.as_json(), 'malloc': find_in_use().library, 'arguments': sys.argv[1:],\n"
        "                  'preload': os.environ.get('LD_PRELOAD'), 'child': child.stdout,\n"
        "                  'environ': sorted(os.environ), 'torch': 'torch' in sys.modules}))\n"
    )
    (folder / "starts").unlink(missing_ok=True)
    command = [sys.executable, "-u", str(program), "--name", "a b", ""]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "starts": (folder / "starts").read_text().split()}


FAULTS = """
import ctypes, resource, sys
from training.allocator import GLIBC
if sys.argv[1] == "on":
    assert GLIBC.set()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def touch():
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
kept = resident()
GLIBC.release()
print(kept - resident())
"""


@needs_glibc
def test_thresholds_save_the_page_faults_of_freed_blocks():
    def measure(state):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, state], env=clean_environ(), capture_output=True, text=True, check=True
        )
        return [int(line) for line in done.stdout.split()]

    (plain, _), (kept, released) = measure("off"), measure("on")
    assert plain > 4 * 16 and kept < plain / 10  # at most 2 MiB a page
    assert released > 60 << 20  # what is kept can be given back


def test_a_program_restarts_once_and_keeps_what_it_was_started_with(prefix, tmp_path):
    found = run_program(tmp_path, "auto", clean_environ(CONDA_PREFIX=str(prefix)))
    library = str(prefix / "lib" / "libtcmalloc_minimal.so.4")
    assert found["used"] == {"name": "tcmalloc", "library": library, "set_by": "restart"}
    assert found["malloc"] == library and not found["torch"]
    assert len(found["starts"]) == 2 and len(set(found["starts"])) == 1  # one process
    assert found["arguments"] == ["--name", "a b", ""]
    assert found["preload"] is None and RESTARTED not in found["environ"]
    assert "libc" in found["child"] and "tcmalloc" not in found["child"]  # other programs do not load it


def test_the_user_s_preload_stays(prefix, tmp_path):
    other = str(build_stand_in("libother.so", tmp_path))
    found = run_program(tmp_path, "jemalloc", clean_environ(CONDA_PREFIX=str(prefix), LD_PRELOAD=other))
    assert (found["used"]["name"], found["used"]["set_by"]) == ("jemalloc", "restart")
    assert found["preload"] == other and "libother" in found["child"] and "jemalloc" not in found["child"]
    found = run_program(tmp_path, "auto", clean_environ(CONDA_PREFIX=str(prefix), LD_PRELOAD=other))
    assert found["used"] == {"name": "other", "library": other, "set_by": "LD_PRELOAD"}
    jemalloc = str(prefix / "lib" / "libjemalloc.so.2")
    found = run_program(tmp_path, "auto", clean_environ(CONDA_PREFIX=str(prefix), LD_PRELOAD=jemalloc))
    assert found["used"] == {"name": "jemalloc", "library": jemalloc, "set_by": "LD_PRELOAD"}
    assert len(found["starts"]) == 1


def test_a_library_that_does_not_load_is_not_tried_twice(prefix, tmp_path):
    lost = "os.environ.pop('LD_PRELOAD', None)"
    environ = clean_environ(CONDA_PREFIX=str(prefix), **{RESTARTED: json.dumps(["/gone/libtcmalloc.so", None])})
    found = run_program(tmp_path, "auto", environ, before=lost)
    assert found["used"]["set_by"] == "mallopt" and len(found["starts"]) == 1


def test_a_broken_library_is_passed_over(tmp_path, prefix):
    (tmp_path / "lib").mkdir()
    whole = (prefix / "lib" / "libtcmalloc_minimal.so.4").read_bytes()
    (tmp_path / "lib" / "libtcmalloc_minimal.so.4").write_bytes(whole[:200])
    shutil.copy(prefix / "lib" / "libjemalloc.so.2", tmp_path / "lib")
    found = run_program(tmp_path, "auto", clean_environ(CONDA_PREFIX=str(tmp_path)))
    assert found["used"]["name"] == "jemalloc" and len(found["starts"]) == 2


@pytest.fixture
def unrestarted(monkeypatch):
    """`use_allocator` of a plain process that would restart: the command and the environment are kept instead."""
    restarts = []

    def execute(arguments, environ):
        restarts.append(environ["LD_PRELOAD"])
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(allocator, "_in_use", None)
    monkeypatch.setattr(allocator, "find_in_use", lambda: PLAIN)
    monkeypatch.setattr(allocator, "_execute", execute)
    monkeypatch.setattr(allocator, "_read_ldconfig", dict)
    monkeypatch.setattr(allocator, "_find_obstacle", lambda *_: None)
    monkeypatch.setattr(allocator.GlibcThresholds, "set", lambda _: True)
    monkeypatch.setattr(allocator.GlibcThresholds, "obstacle", lambda _: None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    return restarts


def test_auto_tries_libraries_in_order_then_thresholds(unrestarted, prefix):
    used = use_allocator("auto", on_cpu=True, is_program=True, environ={"CONDA_PREFIX": str(prefix)})
    assert [Path(path).name for path in unrestarted] == ["libtcmalloc_minimal.so.4", "libjemalloc.so.2"]
    assert used.set_by == "mallopt"
    assert allocator.describe_allocator() == used.as_json()


@pytest.mark.parametrize(
    ("requested", "on_cpu", "is_program", "environ"),
    [
        ("off", True, True, {}),
        ("auto", False, True, {}),
        ("auto", True, False, {}),  # called as a function
        ("auto", True, True, {"MALLOC_TRIM_THRESHOLD_": "1"}),
        ("auto", True, True, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=3"}),
    ],
)
def test_what_leaves_the_process_as_it_is(unrestarted, monkeypatch, requested, on_cpu, is_program, environ):
    monkeypatch.setattr(allocator.AllocatorLibrary, "find", lambda *_: None)
    assert use_allocator(requested, on_cpu=on_cpu, is_program=is_program, environ=dict(environ)) == PLAIN
    assert unrestarted == []


def test_one_asked_for_by_name_is_used_or_refused(unrestarted, monkeypatch, prefix):
    environ = {"CONDA_PREFIX": str(prefix)}
    with pytest.raises(UserError, match="start it with LD_PRELOAD=/.*libjemalloc"):
        use_allocator("jemalloc", on_cpu=True, is_program=False, environ=dict(environ))
    with pytest.raises(UserError, match="Argument list too long"):
        use_allocator("jemalloc", on_cpu=False, is_program=True, environ=dict(environ))
    assert use_allocator("glibc", on_cpu=False, is_program=False, environ={}).set_by == "mallopt"
    marker = {RESTARTED: '["/x/libjemalloc.so.2", "/y.so"]', "LD_PRELOAD": "/x/libjemalloc.so.2:/y.so"}
    with pytest.raises(UserError, match=r"/x/libjemalloc\.so\.2 did not load"):
        use_allocator("jemalloc", on_cpu=True, is_program=True, environ=marker)
    assert marker == {"LD_PRELOAD": "/y.so"}
    monkeypatch.setattr(allocator.AllocatorLibrary, "find", lambda *_: None)
    for library in LIBRARIES:
        with pytest.raises(UserError, match=f"perf.allocator: '{library.name}'.*install the Debian package lib"):
            use_allocator(library.name, on_cpu=True, is_program=True, environ={})


def test_without_mallopt_auto_says_so(unrestarted, monkeypatch, caplog):
    monkeypatch.setattr(allocator.AllocatorLibrary, "find", lambda *_: None)
    monkeypatch.setattr(allocator.GlibcThresholds, "obstacle", lambda _: "the C library (musl) has no mallopt")
    with caplog.at_level("INFO", "redline.launch"):
        assert use_allocator("auto", on_cpu=True, is_program=True, environ={}) == PLAIN
    assert [record.message.count("musl") for record in caplog.records] == [1]
    with pytest.raises(UserError, match="has no mallopt; or use 'auto'"):
        use_allocator("glibc", on_cpu=True, is_program=True, environ={})


def test_a_library_of_another_machine_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setattr(allocator, "_list_folders", lambda _: [str(tmp_path)])
    monkeypatch.setattr(allocator, "_read_ldconfig", dict)
    (tmp_path / "libjemalloc.so.2").write_bytes(b"\x7fELF" + bytes(60))
    (tmp_path / "libtcmalloc_minimal.so.4").write_text("INPUT(libtcmalloc)")
    assert [library.find({}) for library in LIBRARIES] == [None, None]


def test_the_recipe_knows_every_allocator():
    annotation = PerfSection.model_fields["allocator"].annotation
    assert set(get_args(annotation)) == {"auto", "off", *(one.name for one in ALLOCATORS)}
    for value in ("off", "false"):  # YAML reads both as false
        assert load_config(["--config", "debug", f"perf.allocator={value}"]).config.perf.allocator == "off"
    with pytest.raises(UserError, match=r"perf\.allocator.*tcmalloc"):
        load_config(["--config", "debug", "perf.allocator=tcmaloc"])


@pytest.mark.launch
def test_each_rank_restarts_under_torchrun(prefix, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(store_dir=tmp_path / "stores"))
    flags = ["--config", str(recipe), "--output_dir", str(tmp_path / "run"), "--max_steps", "2", "--use_cpu", "true"]
    flags += ["checkpoint.verify_final=false", "perf.enabled=false"]
    environ = clean_environ(CONDA_PREFIX=str(prefix), XDG_CACHE_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    command = [*LAUNCHERS["torchrun"], TRAIN, *flags]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if "allocator: " in line]
    assert line.startswith("redline | allocator: tcmalloc (") and "this process restarted with it" in line
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert (env["allocator"]["name"], env["allocator"]["set_by"], env["world_size"]) == ("tcmalloc", "restart", 2)


def test_train_py_refuses_a_missing_library_in_one_line(tmp_path):
    if any(library.find({}) for library in LIBRARIES):
        pytest.skip("an allocator is installed here")
    flags = ["--config", "debug", "--output_dir", str(tmp_path / "run"), "perf.allocator=jemalloc"]
    done = subprocess.run([sys.executable, TRAIN, *flags], env=clean_environ(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "libjemalloc2" in done.stderr
