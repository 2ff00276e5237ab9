import logging
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import datasets
import pytest

from data_prep.errors import UserError
from data_prep.options import SourceSection
from data_prep.read.huggingface import count_shards
from data_prep.read.records import BadRecord, Record, Span, read_records
from data_prep.read.sources import Input, find_inputs
from tests.data_prep.conftest import write_jsonl


def find(path: Path | str, **options) -> Input:
    return find_inputs([SourceSection(path=str(path), **options)])[0]


def names(item: Input) -> list[tuple[str, str]]:
    return [(Path(file.path).name, file.format) for file in item.files]


def test_directory_takes_known_files_in_order_and_no_hidden_ones(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    for name in (
        "a.jsonl.gz",
        ".hidden.txt",
        "c.bin",
        "sub/d.csv",
        "sub/LICENSE",
        "__pycache__/e.py",
        "f.json",
        "g.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "f.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "g.json").write_text('{\n "text": "a"\n}\n')
    expected = [("a.jsonl.gz", "jsonl"), ("f.json", "jsonl"), ("g.json", "json"), ("d.csv", "csv")]
    assert names(find(tmp_path)) == expected
    (said,) = caplog.messages
    assert said.startswith(f"data.sources.0: {tmp_path}: files left out: 2 hidden: ")
    assert all(name in said for name in (".hidden.txt", "__pycache__", "c.bin", "LICENSE"))


def test_a_link_to_a_directory_is_not_followed_and_said(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "other").mkdir()
    write_jsonl(tmp_path / "other" / "a.jsonl", [{"text": "one"}])
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"text": "two"}])
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    assert names(find(tmp_path / "in")) == [("b.jsonl", "jsonl")]
    assert "1 links to directories: link" in caplog.text


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A directory of record files and text files."""
    (tmp_path / "in").mkdir()
    for name in ("README.md", "a.txt", "b.txt", "c.rst", "code.py"):
        (tmp_path / "in" / name).write_text("said\nof the data")
    write_jsonl(tmp_path / "in" / "x.jsonl", [{"text": "one" * 100}])
    (tmp_path / "in" / "y.csv").write_text("text\ntwo\n")
    return tmp_path / "in"


def test_text_files_beside_records_are_left_out_and_said(mixed: Path, caplog):
    caplog.set_level(logging.INFO)
    for path in (mixed, mixed / "*"):
        caplog.clear()
        assert names(find(path)) == [("x.jsonl", "jsonl"), ("y.csv", "csv")]
        (said,) = caplog.messages
        assert "5 text files next to record files (format: text reads only them): README.md, a.txt, b.txt, …" in said


@pytest.mark.parametrize("name", ["README.md", "license.txt"])
def test_a_page_about_the_data_does_not_outweigh_it(mixed: Path, name: str):
    (mixed / name).write_text("of the data\n" * 1000)
    assert names(find(mixed)) == [("x.jsonl", "jsonl"), ("y.csv", "csv")]


def test_records_beside_more_text_are_left_out_and_said(mixed: Path, caplog):
    (mixed / "code.py").write_text("x = 1\n" * 100)
    for path in (mixed, mixed / "*"):
        caplog.clear()
        assert {format for _, format in names(find(path))} == {"text"}
        assert (
            "2 record files next to larger text files (format: jsonl, csv, … reads only them): x.jsonl, y.csv"
            in caplog.text
        )


def test_a_format_chooses_the_files_of_a_directory_and_how_others_are_read(mixed: Path, caplog):
    caplog.set_level(logging.INFO)
    texts = ["README.md", "a.txt", "b.txt", "c.rst", "code.py"]
    assert names(find(mixed, format="text")) == [(name, "text") for name in texts]
    assert "2 of other formats: x.jsonl, y.csv" in caplog.text
    assert names(find(mixed, format="text", text_unit="line")) == [(name, "lines") for name in texts]
    assert names(find(mixed, format="csv")) == [("y.csv", "csv")]
    assert names(find(mixed / "a.txt", format="jsonl")) == [("a.txt", "jsonl")]
    assert names(find(mixed / "[xy]*", format="text")) == [("x.jsonl", "text"), ("y.csv", "text")]
    with pytest.raises(UserError, match=r"data\.sources\.0\.path: no parquet files in directory"):
        find(mixed, format="parquet")
    with pytest.raises(ValueError, match="applies to files only, not to path: embedded"):
        SourceSection.model_validate({"path": "embedded", "format": "text"})


def test_glob_and_single_file(tmp_path: Path):
    for name in ("b.txt", "a.txt", "c.md", "odd.suffix"):
        (tmp_path / name).write_text("x")
    assert names(find(tmp_path / "*.txt")) == [("a.txt", "text"), ("b.txt", "text")]
    assert names(find(tmp_path / "odd.suffix")) == [("odd.suffix", "text")]
    assert names(find(tmp_path / "a.txt", text_unit="line")) == [("a.txt", "lines")]


@pytest.mark.parametrize("name", ["missing.txt", "*.parquet", "empty"])
def test_nothing_found_names_the_key(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.sources\.0\.path: "):
        find(tmp_path / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that `load_dataset` can load, with the cache in the test's directory and the hub offline."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    for split, count in (("train", 30), ("test", 5)):
        write_jsonl(tmp_path / "set" / f"{split}.jsonl", [{"text": f"{split} {i}", "id": i} for i in range(count)])
    return tmp_path / "set"


def read_texts(item: Input) -> list[str]:
    records = [record for file in item.files for record in read_records(Span(file.path, file.format))]
    assert all(isinstance(record, Record) for record in records), records
    return [record.value["text"] for record in records]  # type: ignore[union-attr]


def test_a_dataset_by_name_is_the_arrow_files_of_its_cache(hub: Path):
    assert read_texts(find(f"hf:{hub}")) == [f"train {i}" for i in range(30)]
    item = find(f"hf:{hub}", hf_split="test")
    assert read_texts(item) == [f"test {i}" for i in range(5)]
    assert [file.format for file in item.files] == ["arrow"]
    assert Path(item.files[0].path).is_relative_to(hub.parent / "cache")


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Simulate a hub that streams a dataset of a million records; return the calls of `load_dataset`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    asked: list[dict] = []

    def load(*names: str, **options):
        asked.append({"names": names, **options})
        return ({"text": f"text {i}", "when": datetime(2026, 1, 1), "image": b"\xff"} for i in range(1_000_000))

    monkeypatch.setattr("datasets.load_dataset", load)
    return asked


def test_of_a_dataset_with_a_limit_only_that_is_downloaded_once(online: list[dict], tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    texts = [f"text {i}" for i in range(7)]
    assert read_texts(find("hf:some/set:config", max_documents=7)) == texts
    assert online == [{"names": ("some/set", "config"), "split": "train", "streaming": True}]
    assert "only its first 7 records were downloaded, to " in caplog.text
    assert read_texts(find("hf:some/set:config", max_documents=7)) == texts
    assert len(online) == 1
    assert len(read_texts(find("hf:some/set:config", max_documents=8))) == 8
    assert len(read_texts(find("hf:some/set:config", max_documents=8, hf_split="test"))) == 8
    assert len(online) == 3
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_stream_that_breaks_leaves_nothing(online: list[dict], tmp_path: Path, monkeypatch):
    def load(*_, **__):
        yield {"text": "one"}
        raise ConnectionError("gone")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(
        UserError, match=r"sources\.0\.path: hf:some/set: the download was interrupted \(gone\): run again"
    ):
        find("hf:some/set", max_documents=7)
    assert not list((tmp_path / "cache" / "redline-2").iterdir())


def test_a_local_dataset_with_a_limit_is_read_as_it_is(hub: Path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    assert [file.format for file in find(f"hf:{hub}", max_documents=3).files] == ["arrow"]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("hf:no-such/set", "train", "data.sources.0.path: hf:no-such/set, split train, is neither in the cache"),
        ("hf:{}", "dev", "Unknown split"),
        ("hf:{}:french", "train", "'french' not found"),
        ("hf:{}", "train[:10]", "data.sources.0.hf_split: 'train[:10]' is not a plain split name"),
    ],
)
def test_a_dataset_that_is_not_to_be_had_is_one_line(hub: Path, name: str, split: str, message: str):
    with pytest.raises(UserError) as caught:
        find(name.format(hub), hf_split=split)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_dataset_is_one_line(hub: Path):
    (hub / "train.jsonl").write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(UserError, match=r"data\.sources\.0\.path: hf:.*, split train"):
        find(f"hf:{hub}")


def test_what_save_to_disk_wrote_is_recognised(hub: Path, tmp_path: Path):
    train = datasets.Dataset.from_list([{"text": f"train {i}"} for i in range(30)])
    train.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": train, "test": train.select([4, 2])}).save_to_disk(tmp_path / "more")
    assert [file.format for file in find(tmp_path / "one").files] == ["arrow"] * 3
    for path in ("one", "more"):
        assert read_texts(find(tmp_path / path)) == [f"train {i}" for i in range(30)]
    assert read_texts(find(tmp_path / "more", hf_split="test")) == ["train 4", "train 2"]
    with pytest.raises(UserError, match=r"data\.sources\.0\.hf_split: .* has no split 'dev'; it has: train, test"):
        find(tmp_path / "more", hf_split="dev")


def test_a_streamed_dataset_is_read_by_shard_and_kept_nowhere(hub: Path):
    (hub / "data").mkdir()
    for shard in range(3):
        write_jsonl(hub / "data" / f"train-{shard}.jsonl", [{"text": f"{shard} {i}"} for i in range(4)])
    section = SourceSection.model_validate({"path": f"hf:{hub / 'data'}"})
    file = find_inputs([section], streaming=True)[0].files[0]
    assert (file.format, count_shards(file.path)) == ("hf_stream", 3)
    found = list(read_records(Span(file.path, "hf_stream", 1, 3), column="text"))
    expected = [(f"{shard} {i}", f"shard {shard}, record", i + 1) for shard in (1, 2) for i in range(4)]
    assert [(r.value["text"], r.unit, r.number) for r in found if isinstance(r, Record)] == expected
    long = list(read_records(Span(file.path, "hf_stream", 0, 1), max_record_bytes=2))
    assert [(bad.number, "than data.max_record_bytes" in bad.reason) for bad in long if isinstance(bad, BadRecord)] == [
        (i, True) for i in range(1, 5)
    ]
    assert not list((hub.parent / "cache").rglob("*.arrow"))


def test_null_keys_of_objects_are_absent_in_a_streamed_dataset_and_in_what_is_kept_of_one(hub: Path, monkeypatch):
    """The library adds the keys of all objects to each object."""
    rows = [{"call": {"x": 1}, "calls": [{"y": 2}]}, {"call": {"z": 1}, "calls": [{"w": None, "z": [None]}]}]
    write_jsonl(hub / "train.jsonl", rows)
    file = find_inputs([SourceSection.model_validate({"path": f"hf:{hub}"})], streaming=True)[0].files[0]
    expected = [rows[0], {"call": {"z": 1}, "calls": [{"z": [None]}]}]
    found = list(read_records(Span(file.path, "hf_stream")))
    assert [record.value for record in found if isinstance(record, Record)] == expected
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    merged = [{"call": {"x": 1, "z": None}}]
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **options: iter(merged))
    [head] = find("hf:some/name", max_documents=1).files
    assert [record.value for record in read_records(Span(head.path, "jsonl"))] == [{"call": {"x": 1}}]  # type: ignore[union-attr]


def test_a_fault_in_a_streamed_dataset_is_a_bad_record(hub: Path):
    (hub / "train.jsonl").write_text('{"text": "one"}\n{"text": \n')
    file = find_inputs([SourceSection.model_validate({"path": f"hf:{hub}"})], streaming=True)[0].files[0]
    *_, last = read_records(Span(file.path, "hf_stream"))
    assert isinstance(last, BadRecord)
    assert last.unit == "shard 0, record"
    assert "the rest of the shard is skipped" in last.reason


def test_datasets_is_imported_only_when_asked_for():
    code = "import sys, data_prep.prepare, data_prep.read.records; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
