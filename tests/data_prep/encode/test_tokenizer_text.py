from pathlib import Path

import pytest

from data_prep.encode.tokenizer_text import choose_parts, read_texts
from data_prep.errors import UserError
from data_prep.options import SourceSection
from data_prep.parse.kinds import Shape
from data_prep.read.parts import Part, plan_parts
from data_prep.read.sources import find_inputs
from data_prep.store.contents import find_contents
from tests.data_prep.conftest import make_texts, write_jsonl


def plan(tmp_path: Path, *sources: dict) -> list[Part]:
    inputs = find_inputs([SourceSection.model_validate(source) for source in sources])
    return plan_parts(inputs, [find_contents(item, tmp_path) for item in inputs])


@pytest.fixture
def sources(tmp_path: Path) -> list[dict]:
    for name, count in (("a", 600), ("b", 20), ("c", 600)):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in make_texts(count, name)])
    return [{"path": str(tmp_path / f"{name}.jsonl")} for name in "abc"]


def test_reading_is_bounded_and_takes_some_of_each_source(tmp_path: Path, sources: list[dict], small_parts):
    parts = plan(tmp_path, *sources)
    few = choose_parts(parts, 20_000, 0)
    assert {part.source for part in few} == {0, 1, 2}
    assert 20_000 <= sum(part.size for part in few) < 40_000 < sum(part.size for part in parts)
    assert sorted(choose_parts(parts, 2**40, 0), key=lambda part: part.index) == parts
    assert {part.content for part in choose_parts(parts, 20_000, 1)} != {part.content for part in few}
    turned = choose_parts(plan(tmp_path, *sources[::-1]), 20_000, 0)
    assert {part.content for part in turned} == {part.content for part in few}


def test_good_texts_up_to_the_limit_of_their_source(tmp_path: Path, sources: list[dict]):
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n{"text": "three"}\n')
    parts = plan(tmp_path, {**sources[1], "max_documents": 2})
    assert list(read_texts(parts, [Shape("text", "text")])) == ["one", "two"]


def test_the_first_bad_record_is_why_there_is_no_text(tmp_path: Path):
    turns = {"messages": [{"role": "user", "content": "Hi"}]}
    write_jsonl(tmp_path / "chat.jsonl", [turns, turns])
    parts = plan(tmp_path, {"path": str(tmp_path / "chat.jsonl")})
    reason = r"no text to train it on: .*chat\.jsonl, line 1: no assistant turn, so there is nothing to train on"
    with pytest.raises(UserError, match=reason):
        list(read_texts(parts, [Shape("messages")]))
