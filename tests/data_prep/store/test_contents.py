import logging
import os
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.options import SourceSection
from data_prep.read.chunks import Content, cut_file
from data_prep.read.sources import find_inputs
from data_prep.store import contents
from data_prep.store.contents import find_contents
from tests.data_prep.conftest import make_texts, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"text": text} for text in make_texts(300, name)])
    return tmp_path / "in"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []

    def count(file):
        names.append(Path(file.path).name)
        return cut_file(file)

    monkeypatch.setattr(contents, "cut_file", count)
    monkeypatch.setattr(contents, "CLOCK_GRAIN_NS", 0)
    return names


def find(source: Path, store_dir: Path) -> tuple[Content, ...]:
    return find_contents(find_inputs([SourceSection.model_validate({"path": str(source)})])[0], store_dir)


def test_files_are_read_once_until_they_change(source: Path, tmp_path: Path, read: list[str], small_parts):
    first = find(source, tmp_path)
    assert find(source, tmp_path) == first
    assert read == ["a.jsonl", "b.jsonl", "c.jsonl"]
    path = source / "b.jsonl"
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[5] ^= 1
    time.sleep(0.02)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same mtime
    second = find(source, tmp_path)
    assert read[3:] == ["b.jsonl"]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]
    assert len({*first[1].chunks} - {*second[1].chunks}) == 1
    os.utime(path, (1, 1))
    assert find(source, tmp_path) == second
    assert read[4:] == ["b.jsonl"]


def test_a_file_that_has_just_been_written_is_not_remembered(source: Path, tmp_path: Path, read, monkeypatch):
    monkeypatch.setattr(contents, "CLOCK_GRAIN_NS", 10**12)
    assert find(source, tmp_path) == find(source, tmp_path)
    assert len(read) == 6


def test_another_way_of_cutting_remembers_nothing(source: Path, tmp_path: Path, read, small_parts, monkeypatch):
    cut = find(source, tmp_path)
    monkeypatch.setattr("data_prep.read.chunks.MAX_BYTES", 2**24)
    whole = find(source, tmp_path)
    assert len(cut[0].chunks) > len(whole[0].chunks) == 1


def test_what_cannot_be_remembered_is_said_and_does_no_harm(source: Path, tmp_path: Path, read, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "content_hashes").write_text("in the way")
    assert find(source, tmp_path) == find(source, tmp_path)
    assert "not saved" in caplog.text


def test_a_file_that_cannot_be_read_is_named(source: Path, tmp_path: Path):
    item = find_inputs([SourceSection.model_validate({"path": str(source)})])[0]
    (source / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.sources\.0: .*b\.jsonl cannot be read \(No such file"):
        find_contents(item, tmp_path)
