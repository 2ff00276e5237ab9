from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.options import SourceSection
from data_prep.records import Span
from data_prep.sources import Input, Part, find_inputs, plan_parts


def find(path: Path | str, **options) -> Input:
    return find_inputs([SourceSection(path=str(path), **options)])[0]


def names(item: Input) -> list[tuple[str, str]]:
    return [(Path(file.path).name, file.format) for file in item.files]


def test_directory_takes_known_files_in_order_and_no_hidden_ones(tmp_path: Path):
    for name in ("b.txt", "a.jsonl.gz", ".hidden.txt", "c.bin", "sub/d.md", "__pycache__/e.py", "f.json", "g.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "f.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "g.json").write_text('{\n "text": "a"\n}\n')
    expected = [("a.jsonl.gz", "jsonl"), ("b.txt", "text"), ("f.json", "jsonl"), ("g.json", "json"), ("d.md", "text")]
    assert names(find(tmp_path)) == expected


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


def test_plan_groups_small_files_and_cuts_large_ones(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x" * 40)
    (tmp_path / "b.txt").write_text("x" * 40)
    (tmp_path / "c.jsonl").write_text("x" * 250)
    a, b, c = (str(tmp_path / name) for name in ("a.txt", "b.txt", "c.jsonl"))
    assert plan_parts([find(tmp_path)], part_bytes=100) == [
        Part(0, 0, (Span(a, "text"), Span(b, "text"))),
        Part(1, 0, (Span(c, "jsonl", 0, 100),)),
        Part(2, 0, (Span(c, "jsonl", 100, 200),)),
        Part(3, 0, (Span(c, "jsonl", 200, 250),)),
    ]


def test_a_limited_source_is_one_part(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    path.write_text("x" * 250)
    assert plan_parts([find(path, max_documents=3)], part_bytes=100) == [Part(0, 0, (Span(str(path), "jsonl"),), 3)]
