import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from data_prep.errors import UserError
from data_prep.options import DataSection, SourceSection, TokenizerSection
from data_prep.prepare import main, prepare
from data_prep.store.store import Store
from tests.data_prep.conftest import make_texts, prepare_store, set_part_bytes, write_jsonl


def decode(store: Store, split: str = "train") -> list[str]:
    backend = Tokenizer.from_file(f"{store.manifest.tokenizer_path}/tokenizer.json")
    table = store.split(split)  # type: ignore[arg-type]
    return [backend.decode(table.ids(i).tolist(), skip_special_tokens=True) for i in range(len(table))]


def test_every_text_is_stored_once_in_order_and_the_manifest_counts_it(tmp_path: Path, recipe, tokenizer):
    texts = make_texts(100)
    store = Store.open(prepare_store(*recipe(write_jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts]))))
    train, validation = decode(store), decode(store, "validation")
    assert sorted(train + validation) == sorted(texts)
    assert train == [text for text in texts if text in set(train)]
    assert 5 < len(validation) < 40
    manifest = store.manifest
    assert manifest.splits["train"].documents == len(train)
    lengths = [len(tokenizer.backend.encode(text).ids) + 1 for text in train]
    assert store.split("train").lengths.tolist() == lengths
    assert manifest.splits["train"].tokens == sum(lengths)
    assert manifest.splits["train"].text_bytes == sum(len(text.encode()) for text in train)
    assert manifest.sources[0].documents == 100
    assert (manifest.vocab_size, manifest.eos_id, manifest.encoder) == (500, 0, "gigatoken")

    ids = [np.concatenate([store.split(s).ids(i) for i in range(len(store.split(s)))]) for s in ("train", "validation")]
    p = np.bincount(np.concatenate(ids)) / sum(map(len, ids))
    assert manifest.unigram_entropy_nats == pytest.approx(-sum(x * np.log(x) for x in p if x))
    q = (np.bincount(ids[0], minlength=500) + 1) / (len(ids[0]) + 500)
    assert manifest.validation_unigram_cross_entropy_nats == pytest.approx(-np.log(q[ids[1]]).mean())


def test_everything_cached_is_said(tmp_path: Path, recipe, caplog):
    caplog.set_level(logging.INFO)
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(50)])
    data = recipe(source)[0]
    tokenizer = TokenizerSection.model_validate({"vocab_size": 400, "special_tokens": ["<|end|>"]})
    first = prepare(data, tokenizer)
    assert "tokenizer: trained in" in caplog.text
    assert "store: built in" in caplog.text
    caplog.clear()
    second = prepare(data, tokenizer)
    assert (second.store_dir, second.tokenizer_dir) == (first.store_dir, first.tokenizer_dir)
    assert (first.store_cached, first.tokenizer_cached) == (False, False)
    assert (second.store_cached, second.tokenizer_cached) == (True, True)
    assert f"tokenizer: cached at {first.tokenizer_dir}" in caplog.text
    assert f"store: cached at {first.store_dir}" in caplog.text


def test_parts_and_processes_do_not_change_the_documents(tmp_path: Path, recipe, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(300)])
    whole = decode(Store.open(prepare_store(*recipe(source))))
    set_part_bytes(monkeypatch, 2000, 6000)
    store = Store.open(prepare_store(*recipe(source, {"store_dir": str(tmp_path / "other"), "num_proc": 2})))
    assert len({shard.name for shard in store.manifest.shards}) > 4
    assert decode(store) == whole


def test_limits_take_the_first_documents(tmp_path: Path, recipe):
    texts = make_texts(100)
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    few = Store.open(prepare_store(*recipe(source, {"validation_share": 0}, max_documents=7)))
    assert decode(few) == texts[:7]
    limit = int(few.split("train").lengths.sum())
    for max_tokens, count in ((limit, 7), (limit - 1, 6)):
        store = Store.open(prepare_store(*recipe(source, {"validation_share": 0}, max_tokens=max_tokens)))
        assert decode(store) == texts[:count]


def test_validation_documents_stay_when_data_grows(tmp_path: Path, recipe):
    small, large = make_texts(100), make_texts(50, "more ") + make_texts(100)
    held_out = []
    for name, texts in (("a", small), ("b", large)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        held_out.append(set(decode(Store.open(prepare_store(*recipe(path))), "validation")))
    assert held_out[0] == held_out[1] & set(small)


def test_splits_by_source(tmp_path: Path, recipe):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in make_texts(20, name)])
    data, tokenizer = recipe(tmp_path / "a.jsonl")
    chosen = [{"path": str(tmp_path / f"{n}.jsonl"), "split": s} for n, s in (("a", "train"), ("b", "validation"))]
    store = Store.open(prepare_store(DataSection(**{**data.model_dump(), "sources": chosen}), tokenizer))
    assert (decode(store), decode(store, "validation")) == (make_texts(20, "a"), make_texts(20, "b"))
    assert store.split("validation").sources.tolist() == [1] * 20


def test_bad_records_stop_or_are_listed(tmp_path: Path, recipe):
    lines = [json.dumps({"text": text}).encode() for text in make_texts(50)]
    lines[10], lines[20], lines[30] = b'{"text": ', b'{"text": ""}', b'{"text": "\xff"}'
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=r"a\.jsonl, line 11: malformed JSON.*data\.on_bad_record: skip"):
        prepare(*recipe(source))
    with pytest.raises(UserError, match=r"3 of 50 records are bad \(6\.0%, data\.max_bad_share is 5\.0%\)"):
        prepare(*recipe(source, {"on_bad_record": "skip", "max_bad_share": 0.05}))
    store = Store.open(prepare_store(*recipe(source, {"on_bad_record": "skip", "max_bad_share": 0.1})))
    listed = [json.loads(line) for line in (store.path / "bad_records.jsonl").read_text().splitlines()]
    assert [(bad["path"], bad["number"]) for bad in listed] == [(str(source), n) for n in (11, 21, 31)]
    assert store.manifest.bad_records == 3
    assert store.manifest.num_documents == 47
    with pytest.raises(UserError, match="records are bad"):  # the limit also applies to a cached store
        prepare(*recipe(source, {"on_bad_record": "skip", "max_bad_share": 0.05}))


def test_a_source_without_a_good_record_is_counted_where_bad_ones_are_skipped(tmp_path: Path, recipe, caplog):
    good = write_jsonl(tmp_path / "good.jsonl", [{"text": text} for text in make_texts(50)])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_bytes(b"{\n" * 3)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    write_jsonl(tmp_path / "unknown.jsonl", [{"one": "a", "other": "b"}] * 2)
    bad = [("empty.jsonl", 1), ("broken.jsonl", 3), ("empty.parquet", 1), ("unknown.jsonl", 2)]
    sources = [{"path": str(good)}, *({"path": str(tmp_path / name)} for name, _ in bad)]
    with pytest.raises(UserError, match=r"data\.sources\.1: .*empty\.jsonl, line 1: the file contains no record"):
        prepare(*recipe(good, {"sources": sources}))
    store = Store.open(
        prepare_store(*recipe(good, {"sources": sources, "on_bad_record": "skip", "max_bad_share": 0.2}))
    )
    assert "data.sources.2: none of the first 3 records can be used, read as text" in caplog.text
    assert (store.manifest.num_documents, store.manifest.bad_records) == (50, 7)
    listed = [json.loads(line) for line in (store.path / "bad_records.jsonl").read_text().splitlines()]
    assert Counter(Path(item["path"]).name for item in listed) == dict(bad)
    assert [source.documents for source in store.manifest.sources] == [50, 0, 0, 0, 0]


def test_a_conversation_without_loss_is_a_bad_record(tmp_path: Path, recipe):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    source = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    with pytest.raises(UserError, match="line 1: no turn carries loss"):
        prepare(*recipe(source))


def test_conversations_store_their_mask(tmp_path: Path, recipe, tokenizer):
    source = write_jsonl(tmp_path / "a.jsonl", [{"question": "the cat", "answer": f"said {i}"} for i in range(5)])
    store = Store.open(prepare_store(*recipe(source, {"validation_share": 0})))
    table = store.split("train")
    for i in range(5):
        runs = table.loss_runs(i)
        assert runs is not None
        assert len(runs) == 2
        assert tokenizer.backend.decode(table.ids(i)[runs[0] : runs[1]].tolist(), False) == f"said {i}<|im_end|>"
    everything = Store.open(prepare_store(*recipe(source, {"validation_share": 0, "train_on": "all"})))
    assert everything.split("train").loss_runs(0) is None
    assert everything.split("train").ids(0).tolist() == table.ids(0).tolist()


def test_a_damaged_store_is_built_anew(tmp_path: Path, recipe):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(50)])
    directory = prepare_store(*recipe(source))
    shard = next(directory.glob("train-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert not prepare(*recipe(source)).store_cached
    assert prepare(*recipe(source)).store_cached


def test_of_two_at_once_one_builds(tmp_path: Path, recipe):
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(2000)])
    data = recipe(source)[0]
    code = (
        "import sys; from data_prep.prepare import prepare; from data_prep.options import *;"
        "p = prepare(DataSection.model_validate_json(sys.argv[1]), TokenizerSection(vocab_size=500));"
        "print(p.tokenizer_cached, p.store_cached, p.store_dir)"
    )
    command = [sys.executable, "-c", code, data.model_dump_json()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(words[0] for words in said) == ["False", "True"]
    assert sorted(words[1] for words in said) == ["False", "True"]
    assert said[0][2] == said[1][2]


def test_command_prints_the_store_and_imports_no_torch(tmp_path: Path, recipe):
    texts = [{"text": text} for text in make_texts(20)]
    chats = [{"question": "the cat", "answer": f"said {i}"} for i in range(5)]
    _, tokenizer = recipe("unused")
    for name, records in (("texts", texts), ("chats", chats)):
        config = tmp_path / f"{name}.yaml"
        source = write_jsonl(tmp_path / f"{name}.jsonl", records)
        config.write_text(
            f"tokenizer: {{path: {tokenizer.path}}}\n"
            f"data: {{sources: [{{path: {source}}}], store_dir: {tmp_path / 'stores'}, num_proc: 1}}\n"
        )
        code = (
            "import sys; from data_prep.prepare import main; code = main(['--config', sys.argv[1]]);"
            "assert not [m for m in sys.modules if m == 'torch' or m.startswith('training')];"
            "sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert Store.open(done.stdout.strip()).manifest.num_documents == len(records)


def test_help_lists_what_it_takes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m data_prep.prepare [--config NAME_OR_PATH] [OVERRIDE ...]")
    for model in (DataSection, TokenizerSection, SourceSection):
        assert all(f"\n  {name}\n" in said for name in model.model_fields)
    assert "      a number (default 0.02)\n      Fraction of documents held out" in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--sorces", "command line: unknown flag --sorces: did you mean --sources?"),
        ("--xyz", "command line: unknown flag --xyz: --help lists all keys"),
        ("data.pakcing=none", "command line: unknown key data.pakcing: did you mean data.packing?"),
    ],
)
def test_an_unknown_key_names_the_nearest(capsys, typed: str, said: str):
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_command_reports_one_line(tmp_path: Path, capsys):
    config = tmp_path / "a.yaml"
    config.write_text(f"data: {{sources: [{{path: {tmp_path / 'missing.txt'}}}], store_dir: {tmp_path}}}\n")
    assert main(["--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith("error: data.sources.0.path: ")
