import logging
from pathlib import Path

import pytest

from data_prep.inspect import main as inspect
from data_prep.prepare import prepare
from data_prep.store.examples import (
    ASCII_BRACKETS,
    BRACKETS,
    COLOURS,
    Example,
    choose_marks,
    describe_example,
    load_examples,
    shorten,
)
from tests.data_prep.conftest import make_texts, write_jsonl

SHOWN = """\
source 0 as it is trained on: {path}, line 2 (prompt_completion, {tokens} tokens, {loss} with loss between ⟦ and ⟧)
  | <|im_start|>user
  | what is two plus two?<|im_end|>
  | <|im_start|>assistant
  | ⟦four, of course<|im_end|>⟧
  not used of the record: id, note"""


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    row = {"id": 1, "prompt": "what is two plus two?", "completion": "four, of course", "note": "x"}
    worse = {**row, "completion": "five"}
    others = [{**row, "prompt": text} for text in make_texts(20)]
    labelled = [{**worse, "label": False}, *({**one, "label": True} for one in (row, *others))]
    return write_jsonl(tmp_path / "chats.jsonl", labelled)


def test_a_record_is_shown_at_each_start_and_by_inspect(chats: Path, recipe, caplog, capsys):
    """This holds for a new store, a reused store and a stream; the first record is labelled false, and counted."""
    caplog.set_level(logging.INFO)
    sections = recipe(chats)
    store = prepare(*sections).store_dir
    assert store is not None
    [example] = load_examples(store)
    expected = SHOWN.format(path=chats, tokens=example.tokens, loss=example.tokens_with_loss)
    assert describe_example(example, BRACKETS) == expected
    assert expected in caplog.text
    assert "records whose 'label' marks the answer as bad are left out and counted" in caplog.text
    assert "21 documents, 0.00 M tokens, 1 labelled false left out" in caplog.text
    for again in (sections, recipe(chats, {"streaming": True})):
        caplog.clear()
        prepare(*again)
        assert expected in caplog.text
    assert inspect([str(store), "--documents", "1"]) == 0
    out = capsys.readouterr().out
    assert "  | ⟦four, of course<|im_end|>⟧" in out and "not used of the record: id, note" in out


def test_plain_text_carries_loss_everywhere(tmp_path: Path, recipe, caplog):
    caplog.set_level(logging.INFO)
    prepare(*recipe(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(20)])))
    assert "tokens, all with loss)\n  | Text 0: the cat sat" in caplog.text


def test_the_edges_of_each_piece_stay_in_sight():
    lines = "\n".join(map(str, range(100)))
    example = Example(3, "a.jsonl, line 1", "messages", 9, 4, [(f"<u>{lines}</u>", False), (f"<a>{lines}</a>", True)])
    text = describe_example(example, BRACKETS)
    assert text.count("\n") <= 18
    assert all(edge in text for edge in ("<u>0\n", "99</u>⟦<a>0\n", "99</a>⟧", "… 9"))
    many = Example(0, "p", "messages", 400, 200, [(f"[{i}]", i % 2 == 1) for i in range(200)])
    assert describe_example(many, ASCII_BRACKETS).splitlines()[1:] == [
        "  | [0][[[1]]][2][[[3]]]", "  | … 192 pieces …", "  | [196][[[197]]][198][[[199]]]"]  # fmt: skip


def test_what_the_template_drops_is_shown_and_no_control_character_reaches_a_terminal():
    example = Example(0, "p", "text", 2, 1, [("a\033[2Jb", False), ("c", True)], dropped={"reasoning": "because"})
    lines = describe_example(example, COLOURS).splitlines()
    assert lines[1] == "  | \033[2ma\\x1b[2Jb\033[0m\033[32mc\033[0m"
    assert lines[2] == "  left out by the chat template: reasoning (because)"


def test_a_long_text_keeps_both_ends():
    assert shorten("x" * 50 + "y" * 50, 10, 5) == "xxxxx … 90 characters … yyyyy"
    assert shorten("short", 10, 1) == "short"


def test_marks_are_what_the_output_can_show(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert choose_marks(True, "utf-8") == COLOURS
    assert choose_marks(False, "utf-8") == BRACKETS
    assert choose_marks(False, "latin-1") == ASCII_BRACKETS
    monkeypatch.setenv("NO_COLOR", "1")
    assert choose_marks(True, "utf-8") == BRACKETS
