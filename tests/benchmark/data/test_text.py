"""Trees of files to JSONL, and its prefixes."""

import json

from training.benchmark.__main__ import main
from training.benchmark.data.text import cut_prefix, read_corpus, read_tree, write_jsonl


def test_a_tree_becomes_its_utf8_files_in_an_order_of_its_own(tmp_path, capsys):
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for number in range(20):
        (tree / "deep" / f"{number:02d}.txt").write_text(f"text {number} ä")
    (tree / "latin1.txt").write_bytes(b"\xe4")
    (tree / "empty.txt").write_bytes(b"")
    (tree / "copy.txt").write_text("text 3 ä")
    (tree / "link.txt").symlink_to(tree / "deep" / "00.txt")
    assert main(["text", str(tree), str(tmp_path / "out.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "20 documents" in capsys.readouterr().out
    assert {line["text"] for line in lines} == {f"text {number} ä" for number in range(20)}
    assert [line["path"] for line in lines] != sorted(line["path"] for line in lines)
    assert list(read_tree(tree)) == list(read_tree(tree))


def test_a_tree_without_files_is_an_error(tmp_path, capsys):
    assert main(["text", str(tmp_path), str(tmp_path / "out.jsonl")]) == 2
    assert "no files below" in capsys.readouterr().err


def test_a_prefix_is_the_whole_lines_that_fit(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"12345\n678\n")
    second.write_bytes(b"9\nabcdef\n")
    sizes = {size: cut_prefix([first, second], size, tmp_path / "out") for size in (1, 6, 9, 10, 12, 99)}
    assert sizes == {1: 6, 6: 6, 9: 6, 10: 10, 12: 12, 99: 19}
    assert (tmp_path / "out").read_bytes() == first.read_bytes() + second.read_bytes()


def test_the_corpus_holds_no_document_twice(tmp_path):
    documents, size = write_jsonl(read_corpus(), tmp_path / "corpus.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert len(texts) == len(set(texts)) == documents
    assert size == (tmp_path / "corpus.jsonl").stat().st_size > 4e6
