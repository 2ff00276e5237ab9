"""Kernels are built once, under a name of what they are made of; where they cannot be, the reason is in words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.attention.choose import choose_attention
from training.attention.kernels import Compute
from training.kernels.cpu import build

ASK = "from training.kernels.cpu import build; print(build.load())"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`find_obstacle` and `load` without what they remember."""
    monkeypatch.setattr(build, "find_obstacle", build.find_obstacle.__wrapped__)
    monkeypatch.setattr(build, "load", build.load.__wrapped__)


def test_without_a_compiler_the_reason_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(build.VARIABLE, str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.load() == (
        "the CPU kernels need a C++ compiler and 'no-such-compiler' is not there (apt-get install g++)"
    )


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal error: it is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv(build.VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setenv("CXX", str(compiler))
    obstacle = build.load()
    assert obstacle is not None and obstacle.startswith("the CPU kernels could not be built: ")
    assert not build.find_library().exists()


def test_the_name_changes_with_what_the_library_is_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {build.find_library()}
    with monkeypatch.context() as patch:
        patch.setattr(build, "find_instruction_set", lambda: "AVX2")
        names.add(build.find_library())
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "other-compiler")
        names.add(build.find_library())
    with monkeypatch.context() as patch:
        patch.setenv(build.FLAGS_VARIABLE, "-g -O0")
        assert build.find_flags()[-2:] == ["-g", "-O0"]
        names.add(build.find_library())
    other = tmp_path / "other.cpp"
    other.write_text("int other;")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCES", (*build.SOURCES, other))
        names.add(build.find_library())
    assert len(names) == 5


def test_an_error_of_the_compiler_is_quoted_and_sdpa_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    says = "x.cpp:1:1: fatal error: no such header"
    compiler = tmp_path / "c++"  # the usual one until it is to compile
    usual = build.find_compiler()
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *.cpp*) echo "{says}" >&2; exit 1 ;; esac\nexec {usual} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv(build.VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setenv("CXX", str(compiler))
    path = os.environ["PATH"]
    chosen, reason = choose_attention("auto", Compute("cpu", torch.float32, packed=True))
    assert chosen == "sdpa"
    assert f"no redline_cpu: the CPU kernels could not be built: {says}" in reason
    assert os.environ["PATH"] == path
    assert [file.name for file in build.find_library().parent.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file")
    monkeypatch.setenv(build.VARIABLE, str(tmp_path / "kernels"))
    assert f"Not a directory: '{tmp_path / 'kernels'}" in (build.load() or "")


def test_a_library_that_is_broken_is_an_obstacle_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(build.VARIABLE, str(tmp_path))
    build.find_library().parent.mkdir(parents=True)
    build.find_library().write_text("not a library")
    assert str(build.find_library()) in (build.load() or "")


@pytest.mark.launch
@pytest.mark.skipif(build.find_obstacle() is not None, reason="no C++ compiler")
def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    environ = os.environ | {build.VARIABLE: str(tmp_path)}
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", f"import logging; logging.basicConfig(level='INFO'); {ASK}"],
            env=environ,
            cwd=Path(build.__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [one.communicate() for one in asking]
    assert [out.strip() for out, _ in outputs] == ["None", "None"]
    assert sum(error.count("kernels: built for this CPU in") for _, error in outputs) == 1
    assert len(list(tmp_path.rglob("*.so"))) == 1
