"""Prompts are checked before a model is loaded, and what is wrong is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from training.inference.prompts import check_prompt, read_prompts

SYSTEM = [{"role": "system", "content": "Be brief."}]
ASK = [{"role": "user", "content": "a"}]


def test_a_text_and_messages_become_prompts() -> None:
    assert check_prompt(" a", "x", chat=False, system=[]) == " a"
    assert check_prompt("a", "x", chat=True, system=SYSTEM) == SYSTEM + ASK
    assert check_prompt(ASK, "x", chat=True, system=SYSTEM) == SYSTEM + ASK
    own = [{"role": "system", "content": "Mine."}, *ASK]
    assert check_prompt(own, "x", chat=True, system=SYSTEM) == own


@pytest.mark.parametrize(
    "value,chat,message",
    [
        ("", False, "x: is empty"),
        ("  ", True, "x: is empty"),
        (ASK, False, "x: messages need --chat"),
        ([], True, "x: neither a text nor messages"),
        ([{"content": "a"}], True, "x: neither a text nor messages"),
        (3, False, "x: neither a text nor messages"),
    ],
)
def test_what_is_no_prompt_is_refused(value: Any, chat: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_prompt(value, "x", chat=chat, system=[])


def test_files_of_lines_and_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt", chat=False, system=[]) == ["one", " two"]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"messages": ASK}) + "\n")
    assert read_prompts(tmp_path / "a.jsonl", chat=True, system=[]) == [ASK, ASK]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("none.txt", None, "none.txt cannot be read"),
        ("a.txt", " \n", "a.txt holds no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', r"a.jsonl line 2: no JSON"),
        ("a.jsonl", '{"text": "a"}', r"a.jsonl line 1: an object with `prompt` or `messages`"),
        ("a.jsonl", '{"prompt": ""}', r"a.jsonl line 1: is empty"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name, chat=False, system=[])
