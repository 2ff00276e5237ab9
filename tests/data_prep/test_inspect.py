import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.errors import UserError
from data_prep.inspect import inspect, main, show_document, show_histogram
from data_prep.prepare import prepare
from data_prep.store.store import Store
from tests.data_prep.conftest import make_texts, prepare_store, write_jsonl


def test_histogram_counts_every_document():
    text = show_histogram(np.array([1, 2, 3, 4, 100], np.int32))
    lines = [line.split() for line in text.splitlines()[:-1]]
    assert sum(int(line[-1]) for line in lines) == 5
    assert [line[0] for line in lines] == ["1", "2", "4", "8", "16", "32", "64"]


def test_the_mask_is_in_colour(tokenizer: LoadedTokenizer):
    ids = np.array(tokenizer.backend.encode("the cat said hello").ids)
    shown = show_document(ids, np.array([1, 3]), tokenizer.backend)
    assert shown.plain == "the cat said hello"
    expected = tokenizer.backend.decode(ids[1:3].tolist())
    assert [shown.plain[s.start : s.end] for s in shown.spans if s.style == "green"] == [expected]


def test_command_shows_a_store_and_its_bad_records(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(60)] + [{"text": ""}])
    store = prepare(*recipe(path, {"on_bad_record": "skip", "max_bad_share": 0.1})).store_dir
    out = io.StringIO()
    assert main([str(store), "--documents", "2"], Console(file=out, width=120)) == 0
    for expected in ("validation", "tokens per document", "document 0", "among the longest", "line 61: empty text"):
        assert expected in out.getvalue()


def test_the_oddest_documents_and_what_was_left_out_are_shown(tmp_path: Path, recipe):
    odd = ["of course " * 60, "Zürich 猫坐在垫子上 qqq"]
    records = [{"text": text} for text in [*make_texts(60), *odd, "said", odd[0]]]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    options = {"deduplicate": "exact", "min_document_tokens": 6, "validation_share": 0}
    store = prepare(*recipe(path, options)).store_dir
    out = io.StringIO()
    assert main([str(store), "--documents", "1"], Console(file=out, width=160)) == 0
    shown = out.getvalue()
    assert "1 duplicates, 1 too short" in shown
    rarest, repeated = shown[shown.index("rarest words") :], shown[shown.index("most repetitive") :]
    assert "Zürich" in rarest[: rarest.index("most repetitive")]
    assert "of course of course" in repeated


def test_without_colour_the_mask_is_marked(tmp_path: Path, recipe, monkeypatch):
    pair = {"prompt": "what is two", "completion": "four"}
    store = prepare(*recipe(write_jsonl(tmp_path / "a.jsonl", [pair]), {"validation_share": 0})).store_dir

    def show(**options) -> str:
        out = io.StringIO()
        assert main([str(store), "--documents", "1"], Console(file=out, width=160, **options)) == 0
        return out.getvalue()

    assert "⟦four<|im_end|>⟧" in show()
    coloured = show(force_terminal=True, color_system="standard")
    assert "\x1b[32mfour<|im_end|>" in coloured and "⟦" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦four<|im_end|>⟧" in show(force_terminal=True, color_system="standard")


def test_a_store_shows_itself_wherever_it_lies_and_without_its_sources(tmp_path: Path, recipe, monkeypatch):
    (tmp_path / "built").mkdir()
    monkeypatch.chdir(tmp_path / "built")
    data, tokenizer = recipe(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(9)]))
    shutil.copytree(str(tokenizer.path), "tokenizer")
    options = tokenizer.model_copy(update={"path": "tokenizer"})
    store = prepare(data.model_copy(update={"store_dir": "stores"}), options).store_dir
    assert store is not None
    moved = store.rename(tmp_path / "moved")
    shutil.rmtree("tokenizer")
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    assert main(["moved"], Console(file=out, width=160)) == 0
    assert "⟦Text 0: " in out.getvalue()
    (moved / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"moved/tokenizer.json is missing"):
        inspect(Store.open(moved), "train", 1, Console(file=out))


def test_verify_names_a_shard_with_a_flipped_bit(tmp_path: Path, recipe, capsys):
    store = prepare(*recipe(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(60)]))).store_dir
    assert store is not None
    assert main([str(store), "--verify"]) == 0
    assert "all 2 shards" in capsys.readouterr().out
    shard = next(store.glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main([str(store), "--verify"]) == 2
    assert f"1 of 2 shards differ from their hash in the manifest ({shard.name})" in capsys.readouterr().err


def test_a_number_of_documents_is_not_below_0(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["store", "--documents", "-1"])
    assert "--documents: '-1' is not a number of documents" in capsys.readouterr().err


def test_what_is_no_store_is_an_error(tmp_path: Path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["bad_records.jsonl", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, "{broken"])
def test_a_damaged_list_or_tokenizer_is_one_line(tmp_path: Path, recipe, capsys, name: str, content: str | None):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])
    store = prepare_store(*recipe(path))
    (store / name).unlink()
    if content is not None:
        (store / name).write_text(content)
    assert main([str(store)], Console(file=io.StringIO())) == 2
    assert f"error: {store / name}" in capsys.readouterr().err
