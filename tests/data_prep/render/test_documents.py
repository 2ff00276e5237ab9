import logging
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.inspect import main as inspect
from data_prep.prepare import prepare
from data_prep.read.fingerprint import hash_text
from data_prep.store.store import Store
from tests.data_prep.conftest import make_texts, write_jsonl


def build(sections) -> Store:
    directory = prepare(*sections).store_dir
    assert directory is not None
    return Store.open(directory)


def decode(store: Store, split: str, tokenizer) -> list[str]:
    table = store.split(split)  # type: ignore[arg-type]
    return [tokenizer.backend.decode(table.ids(i).tolist(), skip_special_tokens=False) for i in range(len(table))]


def show(question: str, answer: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": text, "chosen": f"good {i}", "rejected": f"worse {i}"} for i, text in enumerate(make_texts(40))]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def test_both_halves_of_a_pair_are_kept_and_the_chosen_one_trains(pairs: Path, recipe, tokenizer, caplog):
    caplog.set_level(logging.INFO)
    store = build(recipe(pairs))
    assert "kind preference (found from line 1); training uses the chosen answers" in caplog.text
    texts = make_texts(40)
    for split in ("train", "validation"):
        chosen, rejected = decode(store, split, tokenizer), decode(store, f"{split}_rejected", tokenizer)
        numbers = [int(text.rsplit("good ")[1].split("<")[0]) for text in chosen]
        assert numbers
        assert chosen == [show(texts[i], f"good {i}") for i in numbers]
        assert rejected == [show(texts[i], f"worse {i}") for i in numbers]
        one, other = store.split(split), store.split(f"{split}_rejected")  # type: ignore[arg-type]
        assert one.hashes.tolist() == other.hashes.tolist()
        for table, answer in ((one, "good"), (other, "worse")):
            runs = table.loss_runs(0)
            assert runs is not None
            said = tokenizer.backend.decode(table.ids(0)[runs[0] : runs[1]].tolist(), skip_special_tokens=False)
            assert said == f"{answer} {numbers[0]}<|im_end|>"
    manifest = store.manifest
    assert manifest.num_documents == manifest.sources[0].documents == 40
    assert manifest.splits["train_rejected"].documents == manifest.splits["train"].documents
    assert manifest.sources[0].tokens == sum(int(store.split(s).lengths.sum()) for s in ("train", "validation"))
    assert inspect([str(store.path), "--split", "train_rejected"]) == 0


def test_a_pair_with_one_bad_half_is_one_bad_record(tmp_path: Path, recipe):
    rows = [{"prompt": "q", "chosen": "a", "rejected": ""}]
    with pytest.raises(UserError, match="line 1: 'rejected': message 2: the assistant turn is empty"):
        prepare(*recipe(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_a_store_without_pairs_has_no_rejected_split(tmp_path: Path, recipe):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    store = build(recipe(source))
    assert set(store.manifest.splits) == {"train", "validation"}
    assert len(store.split("train_rejected")) == 0


def test_a_dataset_by_name_and_its_files_make_the_same_documents(tmp_path: Path, recipe, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    source = write_jsonl(tmp_path / "set" / "train.jsonl", [{"text": text, "id": 1} for text in make_texts(30)])
    one, other = (build(recipe(path)) for path in (source, f"hf:{tmp_path / 'set'}"))
    for split in ("train", "validation"):
        tables = [store.split(split) for store in (one, other)]  # type: ignore[arg-type]
        assert tables[0].hashes.tolist() == tables[1].hashes.tolist()
        assert np.concatenate(list(tables[0].all_ids())).tolist() == np.concatenate(list(tables[1].all_ids())).tolist()
    assert prepare(*recipe(f"hf:{tmp_path / 'set'}")).store_cached
    first = int(np.frombuffer(hash_text(make_texts(1)[0].encode())[:8], np.uint64)[0])
    assert first in {*one.split("train").hashes.tolist(), *one.split("validation").hashes.tolist()}


def test_the_largest_record_is_a_matter_of_the_recipe(tmp_path: Path, recipe):
    texts = [*make_texts(20), "a long word " * 200]
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    assert build(recipe(source)).manifest.num_documents == 21
    limited = {"max_record_bytes": 2000}
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 21: a line of 2,4\d\d bytes is larger than data\.max_record_bytes"
    ):
        prepare(*recipe(source, limited))
    skipping = {**limited, "on_bad_record": "skip", "max_bad_share": 0.1}
    manifest = build(recipe(source, skipping)).manifest
    assert (manifest.num_documents, manifest.bad_records) == (20, 1)


def test_what_json_cannot_hold_is_a_bad_record(tmp_path: Path, recipe):
    """orjson can read more deeply nested objects than it can write."""
    chat = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [%s]}'
    deep = '{"a": ' * 300 + "1" + "}" * 300
    (tmp_path / "chats.jsonl").write_text("\n".join([chat % "", chat % deep]) + "\n")
    with pytest.raises(UserError, match=r"chats\.jsonl, line 2: a message or tool cannot be written as JSON"):
        build(recipe(tmp_path / "chats.jsonl"))


def test_names_that_are_no_utf8(tmp_path: Path, recipe, monkeypatch):
    monkeypatch.setattr("data_prep.store.contents.CLOCK_GRAIN_NS", 0)  # cache the hashes of new files, too
    name = "caf\udce9.jsonl"  # Python's form of the byte 0xE9
    folder = tmp_path / "texts"
    folder.mkdir()
    write_jsonl(folder / name, [{"text": text} for text in make_texts(30)])
    with open(folder / name, "a") as file:
        file.write("{\n")
    sections = recipe(folder, data={"on_bad_record": "skip", "max_bad_share": 0.5})
    store = build(sections)
    assert store.manifest.bad_records == 1
    assert "caf\\\\xe9.jsonl" in (store.path / "bad_records.jsonl").read_text()
    assert build(sections).path == store.path


def test_the_share_of_bad_records_is_of_all_that_were_read(tmp_path: Path, recipe):
    """2 bad records in 100, of which 95 are duplicates."""
    rows = [{"text": "the same"}] * 96 + [{"text": "another"}, {"text": "a third"}, {}, {}]
    path = write_jsonl(tmp_path / "texts.jsonl", rows)
    store = build(recipe(path, data={"deduplicate": "exact", "on_bad_record": "skip", "max_bad_share": 0.02}))
    assert (store.manifest.duplicates, store.manifest.bad_records, store.manifest.num_records) == (95, 2, 100)
    with pytest.raises(UserError, match=r"2 of 100 records are bad \(2\.0%, data\.max_bad_share is 1\.9%\)"):
        build(recipe(path, data={"deduplicate": "exact", "on_bad_record": "skip", "max_bad_share": 0.019}))
