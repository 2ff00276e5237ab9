"""Tests that the split depends on content, so that growing data never moves documents between splits."""

import random

from data_prep.prepare import prepare
from data_prep.store.store import SPLITS, Split, Store
from tests.data_prep.conftest import make_texts, write_jsonl


def test_growing_data_moves_no_document_between_the_splits(recipe, tmp_path):
    texts = make_texts(120)
    before = split_texts(recipe, write_jsonl(tmp_path / "before" / "a.jsonl", [{"text": text} for text in texts]))
    grown = make_texts(150, salt="new ") + texts + texts[:10]  # the old texts come later, some of them twice
    random.Random(0).shuffle(grown)
    write_jsonl(tmp_path / "after" / "b.jsonl", [{"text": text} for text in grown[:90]])
    write_jsonl(tmp_path / "after" / "a.jsonl", [{"text": text} for text in grown[90:]])
    after = split_texts(recipe, tmp_path / "after")
    assert before["validation"] and len(before["train"] | before["validation"]) == len(texts)
    assert before["validation"] <= after["validation"]
    assert before["train"] <= after["train"]
    assert not after["train"] & after["validation"]


def test_documents_on_both_sides_by_the_split_of_their_sources_are_counted(recipe, tmp_path, caplog):
    for name, texts in (("a", make_texts(40) + make_texts(3)), ("b", make_texts(5))):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
    data, tokenizer = recipe("unused")

    def count(splits: str, **options) -> tuple[int, bool]:
        caplog.clear()
        sources = [
            {"path": str(tmp_path / f"{n}.jsonl"), "split": s} for n, s in zip("ab", splits.split(), strict=True)
        ]
        directory = prepare(
            data.model_validate({**data.model_dump(), "sources": sources, **options}), tokenizer
        ).store_dir
        assert directory is not None
        found = Store.open(directory).manifest.also_in_validation
        return found, f"{found} training documents are also in validation" in caplog.text

    for _ in range(2):  # first built, then reused
        assert count("train validation") == (8, True)  # of the five, three occur twice in the first source
    found, warned = count("auto validation", validation_share=0.5)
    assert 0 < found < 8 and warned
    assert count("auto auto") == (0, False)
    assert count("train train") == (0, False)
    assert count("train validation", deduplicate="exact") == (0, False)


def split_texts(recipe, path) -> dict[Split, set[tuple[int, ...]]]:
    """Ids of the documents of each split; all stores have the same tokenizer."""
    store_dir = prepare(*recipe(path)).store_dir
    assert store_dir is not None
    found: dict[Split, set[tuple[int, ...]]] = {}
    for name in SPLITS:
        table = Store.open(store_dir).split(name)
        found[name] = {tuple(table.ids(index).tolist()) for index in range(len(table))}
    return found
