import logging
from pathlib import Path

import pytest

from data_prep.chatml import CHATML
from data_prep.errors import UserError
from data_prep.kinds import Shape
from data_prep.options import TokenizerSection
from data_prep.prepare import prepare
from data_prep.template_choice import choose_template
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer, train_tokenizer
from tests.data_prep.conftest import make_texts, write_jsonl

CHAT, TEXT = [Shape("text", "text"), Shape("messages")], [Shape("text", "text")]
BROKEN = "{%- for m in messages %}\n{{ m.role }\n{% endfor %}"


@pytest.mark.parametrize("fault", [BROKEN, "\n{{ messages | no_such_filter }}", "\n{% if %}"])
def test_a_template_that_is_no_jinja_is_named_with_its_line(
    tmp_path: Path, tokenizer: LoadedTokenizer, recipe, fault: str
):
    path = tmp_path / "mine.jinja"
    path.write_text(fault)
    source = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    for options in ({}, {"on_bad_record": "skip"}):
        with pytest.raises(UserError) as caught:
            prepare(*recipe(source, {"chat_template": str(path), **options}))
        assert str(caught.value).startswith(f"data.chat_template: {path}: the chat template is no Jinja (line 2: ")
    assert choose_template(str(path), tokenizer, TEXT) == fault


def test_so_is_that_of_a_tokenizer(tokenizer_dir: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer_dir / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(BROKEN)
    with pytest.raises(UserError, match=rf"tokenizer\.path: {tmp_path}: the chat template is no Jinja \(line 2: "):
        choose_template(None, load_tokenizer(tmp_path), CHAT)
    assert choose_template("chatml", load_tokenizer(tmp_path), CHAT) == CHATML


def test_a_template_that_refuses_some_conversations_is_taken(tmp_path: Path, tokenizer: LoadedTokenizer):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ raise_exception('no user may begin') }}")
    assert choose_template(str(path), tokenizer, CHAT) == path.read_text()


def test_marks_that_are_no_single_tokens_are_said(tmp_path: Path, tokenizer: LoadedTokenizer, caplog):
    caplog.set_level(logging.WARNING)
    choose_template("chatml", tokenizer, CHAT)
    assert not caplog.messages
    options = TokenizerSection(vocab_size=400, special_tokens=["<|end|>", "<|im_start|>"])
    train_tokenizer(make_texts(50), options, tmp_path / "one")
    choose_template("chatml", load_tokenizer(tmp_path / "one"), TEXT)
    assert not caplog.messages
    choose_template("chatml", load_tokenizer(tmp_path / "one"), CHAT)
    assert [message.partition(" of ")[0] for message in caplog.messages] == ["<|im_end|>"]
    assert "no single token of" in caplog.text
