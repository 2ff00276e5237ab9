import io
from pathlib import Path

import numpy as np
from rich.console import Console

from data_prep.inspect import main, show_document, show_histogram
from data_prep.prepare import prepare
from data_prep.tokenizer import LoadedTokenizer
from tests.data_prep.conftest import make_texts, write_jsonl


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


def test_what_is_no_store_is_an_error(tmp_path: Path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
