import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.options import DataSection
from data_prep.store import duplicates
from data_prep.store.duplicates import SignatureTable, choose_band_width, find_equal, find_similar
from data_prep.store.shingles import SIGNATURE_WORDS, sign_texts
from data_prep.store.store import SPLITS, Store
from tests.data_prep.conftest import WORDS, make_texts, prepare_store, write_jsonl
from tests.data_prep.store.test_shingles import jaccard
from tests.data_prep.test_prepare import decode

ENGLISH = WORDS.split()
CHINESE = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=4))
def test_equal_rows_stay_once_where_they_come_first(parts: list[list[int]]):
    table = SignatureTable([np.array([[n % 2, 7, n, 9] for n in part], np.uint32).reshape(-1, 4) for part in parts])
    flat = [n for part in parts for n in part]
    assert find_equal(table).tolist() == [n in flat[:i] for i, n in enumerate(flat)]


def test_rows_are_taken_from_their_parts_in_the_order_asked_for(tmp_path: Path):
    rows = np.arange(80, dtype=np.uint32).reshape(20, 4)
    rows[7:].tofile(tmp_path / "b.bin")
    mapped = np.memmap(tmp_path / "b.bin", np.uint32, "r").reshape(-1, 4)
    table = SignatureTable([rows[:7], np.empty((0, 4), np.uint32), mapped])
    for documents in ([0], [19, 7, 6, 0, 7], range(20)):
        assert table.take(np.array(documents)).tolist() == rows[list(documents)].tolist()


@pytest.mark.parametrize("similarity", [0.6, 0.8, 0.9, 1.0])
def test_similar_rows_against_comparing_all_pairs(similarity: float):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**32, (600, SIGNATURE_WORDS), np.uint32)
    for i in range(100, 600):  # each like an earlier one, chains included
        like, share = rng.integers(0, i), rng.uniform(0.4, 1.02)
        rows[i] = np.where(rng.random(SIGNATURE_WORDS) < share, rows[like], rows[i])
    marks = find_similar(SignatureTable(np.split(rows, [10, 10, 300])), similarity)
    expected = np.zeros(600, bool)
    for i in range(600):
        kept = np.flatnonzero(~expected[:i])
        expected[i] = len(kept) and (rows[kept] == rows[i]).mean(axis=1).max() >= similarity - 1e-9
    assert (marks == expected).mean() > 0.98
    for i in np.flatnonzero(marks):
        kept = np.flatnonzero(~marks[:i])
        assert (rows[kept] == rows[i]).mean(axis=1).max() >= similarity - 1e-9


def test_bands_find_99_percent_at_the_threshold_by_hand():
    assert choose_band_width(0.8) == 6  # 1 - (1 - 0.8^6)^21 = 0.998; with 7 places in 18 bands 0.986
    assert choose_band_width(1.0) == 128
    assert choose_band_width(0.5) == 3  # 1 - (1 - 0.125)^42 = 0.996; with 4 places in 32 bands 0.873


def make_pairs(words: list[str], joint: str, count: int) -> list[tuple[str, str]]:
    """Make texts of 40 to 300 words, each with a copy in which some words are replaced."""
    rng = random.Random(0)
    pairs = []
    for _ in range(count):
        text = [rng.choice(words) + (rng.choice("abcdefgh") if joint else "") for _ in range(rng.randrange(40, 300))]
        rate = rng.choice([0.002, 0.03, 0.15])
        edited = [rng.choice(words) if rng.random() < rate else word for word in text]
        pairs.append((joint.join(text), joint.join(edited)))
    return pairs


@pytest.mark.parametrize(("words", "joint"), [(ENGLISH, " "), (list(CHINESE), "")])
def test_near_duplicates_are_found_and_others_are_not(words: list[str], joint: str):
    pairs = make_pairs(words, joint, 300)
    texts = [one.encode() for one, _ in pairs] + [two.encode() for _, two in pairs]
    marks = find_similar(SignatureTable([sign_texts(texts)]), 0.8)
    exact = np.array([jaccard(one.encode(), two.encode()) for one, two in pairs])
    assert not marks[:300].any()
    found = marks[300:]
    clear = 4 * 0.035
    assert (exact > 0.8 + clear).sum() > 50
    assert (exact < 0.8 - clear).sum() > 50
    assert found[exact > 0.8 + clear].all()
    assert not found[exact < 0.8 - clear].any()
    assert found[exact >= 0.8].mean() > 0.9
    assert (exact[found] >= 0.8).mean() > 0.9


Recipe = Callable[..., Any]


def build(recipe: Recipe, paths: list[Path], options: dict[str, Any], **source: Any) -> Store:
    data, tokenizer = recipe(paths[0])
    sources = [{"path": str(path), **source} for path in paths]
    changed = DataSection.model_validate({**data.model_dump(), "sources": sources, **options})
    return Store.open(prepare_store(changed, tokenizer))


def read_all(store: Store) -> set[str]:
    return {text for split in SPLITS for text in decode(store, split)}


def edit(text: str) -> str:
    return text.replace("said", "told", 1)


def test_the_first_of_all_sources_stays_whatever_the_processes(
    tmp_path: Path, recipe, small_parts, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    texts = [f"{text} " + " ".join(f"{i}x{k}" for k in range(60)) for i, text in enumerate(make_texts(120))]
    a = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts + texts[5:15]])
    b = write_jsonl(
        tmp_path / "b.jsonl", [{"text": text} for text in ["", *texts[30:50], *map(edit, texts[60:90]), "the new one"]]
    )
    lenient = {"on_bad_record": "skip", "max_bad_share": 0.5, "validation_share": 0.3}
    edited = sum(edit(text) != text for text in texts[60:90])
    assert edited > 20
    monkeypatch.setattr("data_prep.executor.POOL_START_SECONDS", 0)
    stores = {}
    for method, processes in (("exact", 1), ("minhash", 1), ("minhash", 2)):
        options = {"deduplicate": method, "num_proc": processes, "store_dir": str(tmp_path / f"{method}{processes}")}
        store = build(recipe, [a, b], {**lenient, **options})
        manifest, stores[method, processes] = store.manifest, store
        left_out = [10, 20 + 30 - edited] if method == "exact" else [10, 20 + 30]
        assert [source.duplicates for source in manifest.sources] == left_out
        assert [source.bad_records for source in manifest.sources] == [0, 1]
        assert (manifest.duplicates, manifest.bad_records) == (sum(left_out), 1)
        assert manifest.num_documents + manifest.duplicates + manifest.bad_records == 130 + 52
        kept = read_all(store)
        assert len(kept) == manifest.num_documents
        assert kept == {*texts, "the new one", *(map(edit, texts[60:90]) if method == "exact" else ())}
        assert not (store.path / duplicates.FOLDER).exists()
        assert f"{sum(left_out)} duplicates left out" in caplog.text
    one, two = stores["minhash", 1].manifest, stores["minhash", 2].manifest
    assert one.fingerprint == two.fingerprint
    assert [shard.name for shard in one.shards] == [shard.name for shard in two.shards]
    assert len(one.shards) > 6


def test_near_duplicates_are_never_on_both_sides_of_the_split(tmp_path: Path, recipe):
    texts = [f"{i} " + " ".join(f"{i}x{k}" for k in range(100)) for i in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for t in texts for text in (t, t + " more", "so " + t)])
    store = build(recipe, [path], {"deduplicate": "minhash", "validation_share": 0.5})
    sides = [{text.removeprefix("so ").split()[0] for text in decode(store, split)} for split in SPLITS]
    assert min(map(len, sides)) > 20
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 100


@pytest.mark.parametrize("method", ["none", "exact", "minhash"])
def test_every_record_is_stored_or_counted_once(tmp_path: Path, recipe, monkeypatch, method: str):
    monkeypatch.setattr("data_prep.store.build.BATCH_DOCUMENTS", 7)
    texts = make_texts(60)
    records = [{"text": text} for text in [*texts, *texts[:7], "the", "cat " * 300, *["said"] * 3]]
    path = write_jsonl(tmp_path / "a.jsonl", [*records, {"text": ""}, {"wrong": 1}])
    options = {"deduplicate": method, "min_document_tokens": 6, "max_document_tokens": 200}
    store = build(recipe, [path], {**options, "on_bad_record": "skip", "max_bad_share": 0.5})
    manifest = store.manifest
    assert (manifest.too_long, manifest.bad_records) == (1, 2)
    if method != "minhash":  # these texts are much alike
        assert (manifest.duplicates, manifest.too_short) == ((0, 4) if method == "none" else (9, 2))
    left_out = manifest.duplicates + manifest.too_short + manifest.too_long + manifest.bad_records
    assert manifest.num_documents + left_out == len(records) + 2
    lengths = np.concatenate([store.split(split).lengths for split in SPLITS])
    assert 6 <= lengths.min() <= lengths.max() <= 200
    assert manifest.sources[0].tokens == lengths.sum()
    kept = [text for split in SPLITS for text in decode(store, split)]
    assert method == "none" or len(set(kept)) == len(kept)
    assert method != "exact" or set(kept) == set(texts)
    sizes = [len(text.encode()) for text in kept]
    assert manifest.sources[0].bytes_per_token == pytest.approx(sum(sizes) / lengths.sum())


def test_limits_say_what_is_read_before_duplicates_are_left_out(tmp_path: Path, recipe):
    texts = make_texts(40)
    doubled = [{"text": text} for text in texts for _ in (0, 1)]
    path = write_jsonl(tmp_path / "a.jsonl", doubled)
    whole = build(recipe, [path], {"validation_share": 0}, max_documents=11)
    limit = int(whole.split("train").lengths.sum())
    for source in ({"max_documents": 11}, {"max_tokens": limit}, {"max_tokens": limit + 1}):
        store = build(recipe, [path], {"deduplicate": "exact", "validation_share": 0}, **source)
        assert decode(store) == texts[:6]
        assert store.manifest.duplicates == 5
    # Documents beyond a limit are not read, so they do not make documents of the next source duplicates.
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": texts[20]}])
    data, tokenizer = recipe(path)
    sources = [{"path": str(path), "max_tokens": limit}, {"path": str(other)}]
    changed = DataSection.model_validate({**data.model_dump(), "sources": sources, "deduplicate": "minhash"})
    assert Store.open(prepare_store(changed, tokenizer)).manifest.sources[1].documents == 1


def test_what_conversations_have_in_common_does_not_make_them_similar(tmp_path: Path, recipe):
    system = {"role": "system", "content": " ".join(f"rule {i}" for i in range(200))}
    texts = make_texts(20)

    def chat(question: str, answer: str) -> dict[str, Any]:
        turns = [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns}

    chats = [chat(text, f"{text[5]} {text[::-1]}") for text in texts]
    similar = [chat(text, f"{text[5]} {text[::-1]}") | {"source": "again"} for text in texts[:4]]
    path = write_jsonl(tmp_path / "a.jsonl", chats + similar)
    for method in ("exact", "minhash"):
        assert build(recipe, [path], {"deduplicate": method}).manifest.duplicates == 4


def test_pairs_that_differ_in_the_rejected_answer_are_not_equal(tmp_path: Path, recipe):
    def pair(rejected: str) -> dict[str, Any]:
        turns = [
            [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": a}]
            for a in ("four", rejected)
        ]
        return {"chosen": turns[0], "rejected": turns[1]}

    path = write_jsonl(tmp_path / "a.jsonl", [pair("two"), pair("three"), pair("two")])
    manifest = build(recipe, [path], {"deduplicate": "exact", "validation_share": 0}).manifest
    assert (manifest.duplicates, manifest.num_documents) == (1, 2)
    assert manifest.splits["train_rejected"].documents == 2


def test_a_stopped_build_does_not_sign_again(tmp_path: Path, recipe, small_parts, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(200) + make_texts(10)])
    signed: list[int] = []
    real = duplicates._sign_part
    monkeypatch.setattr(duplicates, "_sign_part", lambda task, **spec: (signed.append(1), real(task, **spec))[1])

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.prepare.assemble_store", stop)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, [path], {"deduplicate": "exact"})
    first = len(signed)
    assert first > 1
    assert build(recipe, [path], {"deduplicate": "exact"}).manifest.duplicates == 10
    assert len(signed) == first


def test_options_name_the_store_only_where_they_count(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(30)])

    def name(**options: Any) -> str:
        return build(recipe, [path], options).manifest.fingerprint

    assert name() == name(minhash_similarity=0.9)
    names = [name(), name(deduplicate="exact"), name(deduplicate="minhash"), name(min_document_tokens=5)]
    names += [name(deduplicate="minhash", minhash_similarity=0.9), name(max_document_tokens=50)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"streaming": True, "deduplicate": "exact"}, "deduplicate: exact reads all documents"),
        ({"min_document_tokens": 9, "max_document_tokens": 8}, "no document is left"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], what: str):
    with pytest.raises(ValueError, match=what):
        DataSection.model_validate(options)
