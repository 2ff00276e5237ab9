from pathlib import Path

import numpy as np
import pytest

from data_prep.options import SourceSection
from data_prep.read import chunks
from data_prep.read.parts import Part, plan_parts
from data_prep.read.records import Span, read_records
from data_prep.read.sources import find_inputs
from data_prep.store.contents import find_contents
from tests.data_prep.conftest import make_texts, write_jsonl


def plan(path: Path, **options) -> list[Part]:
    inputs = find_inputs([SourceSection(path=str(path), **options)])
    return plan_parts(inputs, [find_contents(item, path.parent / "stores") for item in inputs])


def contents(parts: list[Part]) -> set[str]:
    return {part.content for part in parts}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """300 files of 20 to 400 bytes."""
    directory = tmp_path / "tree"
    directory.mkdir()
    generator = np.random.default_rng(0)
    for index in range(300):
        text = generator.integers(97, 122, generator.integers(20, 400), np.uint8).tobytes()
        (directory / f"{index:03d}.txt").write_bytes(text)
    return directory


def test_small_files_are_grouped_in_order(tree: Path, small_parts):
    parts = plan(tree)
    assert [Path(span.path).name for part in parts for span in part.spans] == [f"{i:03d}.txt" for i in range(300)]
    assert [part.index for part in parts] == list(range(len(parts)))
    assert all(part.size == sum(Path(span.path).stat().st_size for span in part.spans) for part in parts)
    assert all(chunks.MIN_BYTES <= part.size <= chunks.MAX_BYTES for part in parts[:-1])
    assert 10 < len(parts) < 30


@pytest.mark.parametrize("kind", ["add", "remove", "change"])
def test_a_file_that_changes_moves_the_parts_around_it(tree: Path, small_parts, kind: str):
    before = plan(tree)
    changed = []
    for index in range(5, 300, 40):
        path = tree / f"{index:03d}.txt"
        kept = path.read_bytes()
        added = tree / f"{index:03d}a.txt"
        match kind:
            case "add":
                added.write_bytes(b"a new text " * 10)
            case "remove":
                path.unlink()
            case "change":
                path.write_bytes(b"b" + kept[1:])
        changed.append(len(contents(plan(tree)) - contents(before)))
        path.write_bytes(kept)
        added.unlink(missing_ok=True)
    assert np.mean(changed) < 2.5


def test_large_files_are_parts_of_their_own(tmp_path: Path, small_parts):
    for name, count in (("a", 5), ("b", 300), ("c", 5), ("d", 5)):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"text": text} for text in make_texts(count, name)])
    parts = plan(tmp_path / "in")
    names = ["".join(Path(span.path).stem for span in part.spans) for part in parts]
    assert names[0] == "a"
    assert names[1:-1] == ["b"] * (len(names) - 2)
    assert names[-1].endswith("cd")
    assert parts[2].spans[0].start == parts[1].spans[0].end
    assert sum(part.size for part in parts) == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())


def test_parts_read_as_the_file_does_with_its_line_numbers(tmp_path: Path, small_parts):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(300)])
    parts = plan(path)
    assert len(parts) > 5
    whole = list(read_records(Span(str(path), "jsonl")))
    assert [record for part in parts for span in part.spans for record in read_records(span)] == whole


def test_a_limited_source_is_one_part(tmp_path: Path, small_parts):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(300)])
    (part,) = plan(path, max_documents=3)
    assert (part.spans, part.max_documents, part.max_tokens) == ((Span(str(path), "jsonl"),), 3, None)


def test_what_a_part_is_called_says_nothing_of_where_it_lies(tmp_path: Path, small_parts):
    for name in ("x", "y"):
        write_jsonl(tmp_path / name / f"{name}.jsonl", [{"text": text} for text in make_texts(300)])
    assert [part.content for part in plan(tmp_path / "x")] == [
        part.content for part in plan(tmp_path / "y" / "y.jsonl")
    ]
