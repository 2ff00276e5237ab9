"""A place for a run: nothing that is no run is moved aside, and what cannot be written is told at once."""

import errno
import os
from pathlib import Path

import pytest

from data_prep.errors import UserError
from training.run_place import check_place


@pytest.mark.parametrize("name", ["new", "a/b/c", "with space/é 猫", "-dash", "%s{}", "new\nline"])
def test_places_that_are_fine_are_left_untouched(tmp_path, name):
    check_place(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["config.yaml", "metrics.jsonl", "checkpoint-3"])
def test_an_older_run_is_fine(tmp_path, content):
    (tmp_path / "run" / content).mkdir(parents=True)
    check_place(tmp_path / "run")


def test_hidden_files_are_nobody_s(tmp_path):
    (tmp_path / ".lock").write_text("")
    check_place(tmp_path)


@pytest.mark.parametrize(
    ("make", "path", "message"),
    [
        ("file", "file", "is a file: name a directory"),
        ("file", "file/below", "file is a file: name a directory"),
        ("data/set.csv", "data", r"holds what is no run \(set.csv\): name a new directory"),
        ("x", "y" * 300, "File name too long"),
    ],
)
def test_places_that_are_not(tmp_path, make, path, message):
    (tmp_path / make).parent.mkdir(exist_ok=True)
    (tmp_path / make).write_text("")
    with pytest.raises(UserError, match=message) as error:
        check_place(tmp_path / path)
    assert str(error.value).startswith("training.output_dir: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["/", "..", "."])
def test_what_a_run_needs_is_never_moved_aside(tmp_path, monkeypatch, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="would be moved aside with it"):
        check_place(Path(path))


def test_not_even_with_an_older_run_around_it(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "chats.jsonl").write_text("")
    check_place(tmp_path)
    with pytest.raises(UserError, match="holds .*chats.jsonl, which would be moved aside"):
        check_place(tmp_path, [tmp_path / "chats.jsonl"])


def test_a_file_system_that_takes_nothing():
    with pytest.raises(UserError, match="/proc/run cannot be written: /proc"):
        check_place(Path("/proc/run"))


def test_a_full_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"output_dir: .*run cannot be written: .*No space left on device"):
        check_place(tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []
