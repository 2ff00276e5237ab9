"""Tests what a store reuses from others, and that a stopped build resumes with identical results."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.prepare import prepare
from data_prep.store import assembly, build, results
from data_prep.store.store import MANIFEST, Store
from tests.data_prep.conftest import hash_shards, make_texts, prepare_store, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": text} for text in make_texts(400)])


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Fingerprints of the parts that are built instead of reused."""
    names: list[str] = []

    def count(part, spec):
        names.append(part.fingerprint)
        return build.build_part(part, spec)

    monkeypatch.setattr(assembly, "build_part", count)
    return names


def prepare_fresh(sections, directory: Path) -> list[str]:
    """Hashes of the shards of the same store, built from scratch."""
    data, tokenizer = sections
    return hash_shards(prepare_store(data.model_copy(update={"store_dir": str(directory)}), tokenizer))


def test_a_new_source_in_front_builds_its_own_parts(tmp_path, recipe, source, small_parts, built, caplog):
    """Later parts are reused with new source numbers, byte for byte as in a new build, bad records included."""
    caplog.set_level(logging.INFO)
    with open(source, "ab") as file:
        file.write(b'{"text": ""}\n')
    pairs = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in make_texts(100)]
    other = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    new = write_jsonl(tmp_path / "new.jsonl", [{"text": text} for text in make_texts(60, "new ")])
    data, tokenizer = recipe("unused", {"on_bad_record": "skip", "max_bad_share": 0.1})

    def sections(*paths: Path):
        return data.model_validate({**data.model_dump(), "sources": [{"path": str(path)} for path in paths]}), tokenizer

    prepare(*sections(source, other))
    count = len(built)
    assert count > 8
    built.clear()
    store = prepare_store(*sections(new, source, other))
    assert 0 < len(built) < 8
    assert f"{count} of {count + len(built)} parts are unchanged" in caplog.text
    built.clear()
    assert hash_shards(store) == prepare_fresh(sections(new, source, other), tmp_path / "fresh")
    manifest = Store.open(store).manifest
    assert manifest.sources == Store.open(next((tmp_path / "fresh").glob("*/manifest.json")).parent).manifest.sources
    assert (manifest.bad_records, manifest.sources[1].documents, manifest.sources[2].documents) == (1, 400, 100)
    table = Store.open(store).split("train")
    assert set(table.sources.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["change", "insert"])
def test_a_changed_input_builds_the_parts_it_touches(tmp_path, recipe, source, small_parts, built, caplog, kind: str):
    caplog.set_level(logging.INFO)
    sections = recipe(source)
    first = prepare(*sections)
    count = len(built)
    assert count > 8
    built.clear()
    lines = source.read_bytes().splitlines(keepends=True)
    if kind == "change":
        lines[200] = lines[200].replace(b"Text", b"text")
    else:
        lines.insert(30, b'{"text": "an inserted line"}\n')
    source.write_bytes(b"".join(lines))
    second = prepare(*sections)
    assert not second.store_cached
    assert second.store_dir != first.store_dir
    assert 1 <= len(built) <= 3
    assert f"{count - len(built)} of {count} parts are unchanged, reused" in caplog.text
    assert first.store_dir and second.store_dir
    shutil.rmtree(first.store_dir)
    assert hash_shards(second.store_dir) == prepare_fresh(sections, tmp_path / "fresh")
    manifest = Store.open(second.store_dir).manifest
    fresh = Store.open(next((tmp_path / "fresh").glob(f"*/{MANIFEST}")).parent).manifest
    assert manifest == fresh


def test_parts_are_copied_where_there_are_no_hard_links(recipe, source, small_parts, built, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    sections = recipe(source)
    prepare(*sections)
    with open(source, "ab") as file:
        file.write(b'{"text": "one more"}\n')
    built.clear()
    second = prepare_store(*sections)
    assert len(built) == 1
    assert hash_shards(second) == prepare_fresh(sections, tmp_path / "fresh")
    assert not list(second.rglob(".*.tmp"))


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"validation_share": 0.3}, {}),
        ({"chat_template": "{{ messages }}"}, {}),
        ({}, {"split": "train"}),
        ({}, {"text_key": "other"}),
    ],
)
def test_what_shapes_a_part_is_in_its_name(tmp_path, recipe, source, small_parts, built, data, options):
    write_jsonl(source, [{"text": text, "other": text + "!"} for text in make_texts(300)])
    if "chat_template" in data:
        (tmp_path / "t.jinja").write_text(data["chat_template"])
        data = {"chat_template": str(tmp_path / "t.jinja")}
    prepare(*recipe(source))
    known = set(built)
    prepare(*recipe(source, data, **options))
    assert not known & set(built[len(known) :])


def test_the_name_of_a_part_is_that_of_its_content_wherever_it_lies(tmp_path, recipe, source, small_parts, built):
    prepare(*recipe(source))
    known = len(built)
    moved = tmp_path / "elsewhere" / "b.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(source.read_bytes() + b'{"text": "one more"}\n')
    prepare(*recipe(moved))
    assert len(built) == known + 1


def test_line_numbers_of_bad_records_follow_an_insertion_above_them(tmp_path, recipe, source, small_parts, built):
    lenient = {"on_bad_record": "skip", "max_bad_share": 1.0}
    lines = source.read_bytes().splitlines(keepends=True)
    lines[300] = b"{broken\n"
    source.write_bytes(b"".join(lines))

    def find_bad() -> list[tuple[str, int]]:
        directory = prepare_store(*recipe(source, lenient))
        listed = (directory / "bad_records.jsonl").read_text().splitlines()
        return [(bad["path"], bad["number"]) for bad in map(json.loads, listed)]

    assert find_bad() == [(str(source), 301)]
    built.clear()
    source.write_bytes(b'{"text": "first"}\n{"text": "second"}\n' + b"".join(lines))
    assert find_bad() == [(str(source), 303)]
    assert 1 <= len(built) <= 3
    source.rename(source.with_name("b.jsonl"))
    with pytest.raises(UserError, match=r"b\.jsonl, line 303"):  # bad records are saved, but not skipped
        prepare(*recipe(source.with_name("b.jsonl")))


def test_equal_content_is_built_once_and_counted_as_often_as_it_comes(tmp_path, recipe, small_parts, built):
    for name in ("a", "b"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"text": text} for text in make_texts(100)])
    directory = prepare_store(*recipe(tmp_path / "in"))
    store = Store.open(directory)
    assert len(built) < len(store.manifest.shards) / 2
    assert store.manifest.num_documents == 200
    tokens = sum(int(store.split(split).lengths.sum()) for split in ("train", "validation"))
    assert tokens == sum(counts.tokens for counts in store.manifest.splits.values())
    assert len(store.split("train")) + len(store.split("validation")) == 200


def test_a_damaged_sibling_is_not_taken_over(tmp_path, recipe, source, small_parts, built):
    first = prepare_store(*recipe(source))
    cut, garbled, flipped = sorted(first.glob("train-*.arrow"))[:3]
    cut.write_bytes(cut.read_bytes()[:100])
    garbled.write_bytes(b"\xff" * garbled.stat().st_size)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    with open(source, "ab") as file:
        file.write(b'{"text": "one more"}\n')
    built.clear()
    second = prepare_store(*recipe(source))
    assert len(built) == 4
    assert hash_shards(second) == prepare_fresh(recipe(source), tmp_path / "fresh")


def kill_worker(part, spec):
    """Build a part, but kill the worker at the fourth."""
    mark = spec.directory / "killed"
    if part.index == 3 and multiprocessing.parent_process() and not mark.exists():
        mark.write_text("")
        time.sleep(0.5)  # the first are delivered meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    return build.build_part(part, spec)


def test_a_killed_worker_is_said_and_the_next_run_goes_on(tmp_path, recipe, source, small_parts, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    sections = recipe(source, {"num_proc": 2})
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "build_part", kill_worker)
        with pytest.raises(UserError, match="a data preparation process was killed"):
            prepare(*sections)
    directory = prepare_store(*sections)
    assert "continuing a stopped build" in caplog.text
    assert hash_shards(directory) == prepare_fresh(recipe(source), tmp_path / "fresh")
    assert not list(directory.rglob(".*.tmp"))


KILLED = """
import os, signal, sys, time
from data_prep.store import assembly, build
from data_prep.read import chunks
from data_prep import executor, prepare
from data_prep.options import DataSection, TokenizerSection
chunks.MIN_BYTES, chunks.MAX_BYTES = 2000, 6000
if sys.argv[1] == "part":  # after two parts
    real = build.build_part
    def stop(part, spec):
        if part.index == 2:
            time.sleep(0.5)  # the first two are flushed meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        return real(part, spec)
    assembly.build_part = stop
else:  # in the middle of a part's shard
    from data_prep.store.writing import ShardWriter
    real = ShardWriter.write
    def stop(self, batch, size):
        real(self, batch, size)
        os.kill(os.getpid(), signal.SIGKILL)
    ShardWriter.write = stop
data, tokenizer = (c.model_validate_json(t) for c, t in zip((DataSection, TokenizerSection), sys.argv[2:]))
prepare.prepare(data, tokenizer)
"""


@pytest.mark.parametrize("where", ["part", "shard"])
def test_a_killed_build_is_never_taken_for_whole_and_goes_on(tmp_path, recipe, source, small_parts, built, where: str):
    sections = recipe(source)
    command = [sys.executable, "-c", KILLED, where, *(section.model_dump_json() for section in sections)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    directory = next((tmp_path / "stores").glob(f"*/{results.FOLDER}")).parent
    with pytest.raises(UserError, match="not a complete token store"):
        Store.open(directory)
    again = prepare(*sections)
    assert not again.store_cached
    assert again.store_dir == directory
    shards = {shard.name.split("-")[1] for shard in Store.open(directory).manifest.shards}
    assert len(built) < len(shards) if where == "part" else len(built) == len(shards)
    assert hash_shards(directory) == prepare_fresh(sections, tmp_path / "fresh")
    assert not list(directory.rglob(".*.tmp"))
