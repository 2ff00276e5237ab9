import json
import logging
from pathlib import Path

import pytest

from data_prep.encode.template_choice import build_template, choose_template
from data_prep.encode.tokenizer import LoadedTokenizer, fingerprint_tokenizer, load_tokenizer, train_tokenizer
from data_prep.errors import UserError
from data_prep.options import TokenizerSection
from data_prep.parse.kinds import Conversation, Shape
from data_prep.prepare import prepare
from data_prep.render.chatml import CHATML
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
        assert str(caught.value).startswith(
            f"data.chat_template: {path}: the chat template is not valid Jinja (line 2: "
        )
    assert choose_template(str(path), tokenizer, TEXT) == fault


def test_so_is_that_of_a_tokenizer(tokenizer_dir: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer_dir / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(BROKEN)
    with pytest.raises(
        UserError, match=rf"tokenizer\.path: {tmp_path}: the chat template is not valid Jinja \(line 2: "
    ):
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
    options = TokenizerSection.model_validate({"vocab_size": 400, "special_tokens": ["<|end|>", "<|im_start|>"]})
    train_tokenizer(make_texts(50), options, tmp_path / "one")
    choose_template("chatml", load_tokenizer(tmp_path / "one"), TEXT)
    assert not caplog.messages
    choose_template("chatml", load_tokenizer(tmp_path / "one"), CHAT)
    assert [message.partition(" of ")[0] for message in caplog.messages] == ["<|im_end|>"]
    assert "split into several tokens by" in caplog.text


PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)


def name_templates(directory: Path, tokenizer_dir: Path, is_list: bool) -> Path:
    """A tokenizer with two templates, in the format of older files or of transformers."""
    directory.mkdir()
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    (directory / "tokenizer.json").write_bytes((tokenizer_dir / "tokenizer.json").read_bytes())
    named = {"tool_use": "TOOLS {{ tools[0].function.name }} " + PLAIN, "default": PLAIN}
    config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()] if is_list else None
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if not is_list:
        (directory / "additional_chat_templates").mkdir()
        (directory / "chat_template.jinja").write_text(named["default"])
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text(named["tool_use"])
    return directory


@pytest.mark.parametrize("is_list", [True, False])
def test_conversations_with_tools_take_the_template_for_tools(tmp_path: Path, tokenizer_dir: Path, is_list: bool):
    tokenizer = load_tokenizer(name_templates(tmp_path / "two", tokenizer_dir, is_list))
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    tools = [{"type": "function", "function": {"name": "look"}}]
    chosen = choose_template(None, tokenizer, CHAT)
    own, other = (build_template(source, tokenizer, "refuse", "text") for source in (chosen, CHATML))
    assert own.render(Conversation(messages), "assistant").text == "<user>Q</s><assistant>A</s>"
    rendered = own.render(Conversation(messages, tools), "assistant")
    assert (rendered.text, rendered.loss) == ("TOOLS look <user>Q</s><assistant>A</s>", [(33, 38)])
    assert "TOOLS" not in other.render(Conversation(messages, tools), "assistant").text


def test_each_named_template_is_in_the_name_of_a_tokenizer(tmp_path: Path, tokenizer_dir: Path):
    directory = name_templates(tmp_path / "two", tokenizer_dir, is_list=False)
    before = fingerprint_tokenizer(directory)
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text(BROKEN)
    assert fingerprint_tokenizer(directory) != before
    with pytest.raises(UserError, match=r"is not valid Jinja \(line 2"):
        choose_template(None, load_tokenizer(directory), CHAT)
