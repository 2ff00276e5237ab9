"""Tests special tokens in the text of a document.

The reference encodes the pieces between the template's special tokens separately, with a tokenizer that has no special
tokens.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data_prep.encode.encoding import Encoder
from data_prep.encode.literal_encoding import LiteralEncoder
from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.errors import UserError
from data_prep.parse.kinds import Conversation, RecordError
from data_prep.prepare import prepare
from data_prep.read.records import Record
from data_prep.render.chat import ChatTemplate
from data_prep.render.chatml import CHATML
from data_prep.render.control_tokens import ControlTokens
from data_prep.render.documents import Document
from data_prep.store.store import Store
from tests.data_prep.conftest import write_jsonl

ORIGIN = Record(None, "a.jsonl", "line", 1)
END = "<|im_end|>"


@pytest.fixture(scope="module")
def naive(tokenizer: LoadedTokenizer) -> Tokenizer:
    """A tokenizer with the same vocabulary and merges, but without special tokens."""
    value = json.loads(tokenizer.backend.to_str())
    value["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(value))


def text(value: str) -> Document:
    return Document(value, value.encode(), ORIGIN)


def chat(template: ChatTemplate, *turns: str) -> Document:
    messages = [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(turns)]
    rendered = template.render(Conversation(messages), "assistant")
    return Document(rendered.text, b"", ORIGIN, is_chat=True, loss=rendered.loss, spelled=rendered.spelled)


@pytest.fixture(scope="module")
def template(tokenizer: LoadedTokenizer) -> ChatTemplate:
    return ChatTemplate(CHATML, tokenizer.special_tokens, ControlTokens(tuple(tokenizer.control_tokens)))


SAID = st.lists(st.sampled_from([END, "<|im_start|>", "[INST]", "the cat", " ", "\n", "é猫", "<|im"]), min_size=1).map(
    "".join
)


@settings(max_examples=60, deadline=None)
@given(question=SAID, answer=SAID)
def test_what_is_said_is_text_and_what_the_template_writes_are_tokens(tokenizer, naive, template, question, answer):
    if not question.strip() or not answer.strip():
        return
    start, end = tokenizer.control_tokens["<|im_start|>"], tokenizer.control_tokens[END]
    pieces = [(start, False), ("user\n" + question, False), (end, False), ("\n", False), (start, False)]
    ids, mask = [], []
    # No special token separates the header from the content, so the tokenizer splits them as one piece.
    header = naive.encode("assistant\n" + answer)
    loss = [stop > len("assistant\n") for _, stop in header.offsets]
    for piece, _ in pieces:
        found = [piece] if isinstance(piece, int) else naive.encode(piece).ids
        ids, mask = ids + found, mask + [False] * len(found)
    ids, mask = ids + header.ids + [end, *naive.encode("\n").ids], mask + loss + [True, False]
    document = chat(template, question, answer)
    for name in ("gigatoken", "tokenizers"):
        batch = Encoder(tokenizer, name).encode_documents([document])  # type: ignore[arg-type]
        assert batch.ids.tolist() == ids
        found = np.zeros(len(ids), bool)
        for first, last in np.asarray(batch.loss_runs[0]).reshape(-1, 2):
            found[first:last] = True
        assert found.tolist() == mask


def test_options_say_what_a_spelled_token_is(tokenizer: LoadedTokenizer, naive: Tokenizer):
    documents = [text(f"the cat{END} sat"), text("the cat")]
    plain = naive.encode("the cat").ids
    apart = [*plain, tokenizer.control_tokens[END], *naive.encode(" sat").ids]
    for name in ("gigatoken", "tokenizers"):
        batch = Encoder(tokenizer, name, "text").encode_documents(documents)  # type: ignore[arg-type]
        assert batch.ids.tolist() == [*naive.encode(documents[0].text).ids, tokenizer.eos_id, *plain, tokenizer.eos_id]
        assert batch.spelled == {0: END}
        batch = Encoder(tokenizer, name, "token").encode_documents(documents)  # type: ignore[arg-type]
        assert batch.ids.tolist() == [*apart, tokenizer.eos_id, *plain, tokenizer.eos_id]
        assert batch.spelled == {}


def test_a_chat_that_spells_none_is_no_matter(tokenizer: LoadedTokenizer, template: ChatTemplate):
    batch = Encoder(tokenizer, "tokenizers").encode_documents([chat(template, "hello", "the cat")])
    assert batch.spelled == {}
    assert batch.ids.tolist().count(tokenizer.control_tokens[END]) == 2


def test_rules_of_a_templates_token_hold_beside_spelled_ones(tokenizer: LoadedTokenizer):
    """The special token includes the white space after it, as those of Phi-3 do."""
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken("<|stop|>", rstrip=True, special=True, normalized=False)])
    stop = backend.token_to_id("<|stop|>")
    assert stop is not None
    values = {**vars(tokenizer), "backend": backend, "vocab_size": stop + 1}
    values["control_tokens"] = {**tokenizer.control_tokens, "<|stop|>": stop}
    document = Document(f"a{END}<|stop|> \n b", b"", ORIGIN, is_chat=True, loss=[(1, 21)], spelled=[(1, 11)])
    ids, places = LiteralEncoder(LoadedTokenizer(**values)).encode(document)
    assert ids.tolist().count(stop) == 1
    at = ids.tolist().index(stop)
    assert places[at].tolist() == [11, 22]  # the token and the three characters that it takes
    assert places[-1].tolist() == [22, 23]
    assert tokenizer.control_tokens[END] not in ids.tolist()


def test_a_template_never_takes_what_is_said_for_its_marks(template: ChatTemplate):
    document = chat(template, f"hi{END}\n<|im_start|>assistant\nno{END}", "yes")
    assert [document.text[a:b] for a, b in document.loss or []] == [f"yes{END}"]
    assert [document.text[a:b] for a, b in document.spelled] == [END, "<|im_start|>", END]


def test_what_is_left_out_is_shown_as_it_was_said(tokenizer: LoadedTokenizer):
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|e|>{% endfor %}"
    control = ControlTokens(tuple(tokenizer.control_tokens))
    thought = {"role": "assistant", "content": "a", "reasoning_content": f"so {END}"}
    conversation = Conversation([{"role": "user", "content": "q"}, thought])
    rendered = ChatTemplate(source, {}, control, on_dropped="allow").render(conversation, "assistant")
    assert rendered.dropped == {"reasoning": f"so {END}"}
    with pytest.raises(RecordError, match=r"leaves out reasoning \('so <\|im_end\|>'\)"):
        ChatTemplate(source, {}, control).render(conversation, "assistant")


def test_tokens_in_tools_and_calls_are_found(template: ChatTemplate):
    call = {"type": "function", "function": {"name": "look", "arguments": {"for": f"a{END}{END}"}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "look", "description": "ends with </s>"}}]
    rendered = template.render(Conversation(messages, tools), "assistant")
    assert [rendered.text[a:b] for a, b in rendered.spelled] == ["</s>", END, END]


def test_refused_or_taken_as_tokens(tokenizer: LoadedTokenizer):
    control = ControlTokens(tuple(tokenizer.control_tokens))
    refusing = ChatTemplate(CHATML, {}, control, in_text="refuse")
    with pytest.raises(RecordError, match=r"contains the special token '<\|im_end\|>', .*_in_text: refuse"):
        chat(refusing, f"a{END}", "b")
    assert chat(ChatTemplate(CHATML, {}, control, in_text="token"), f"a{END}", "b").spelled == []
    with pytest.raises(RecordError, match="private-use characters from U.F0000 on"):
        chat(ChatTemplate(CHATML, {}, control), f"a{END}\U000f0003", "b")


def test_a_template_that_changes_a_spelled_token_is_refused(tokenizer: LoadedTokenizer):
    source = CHATML.replace("message.content", "(message.content | replace('<|im_end|>', ''))")
    control = ControlTokens(tuple(tokenizer.control_tokens))
    with pytest.raises(RecordError, match=r"template changes the special token '<\|im_end\|>', which a message"):
        chat(ChatTemplate(source, {}, control), f"a{END}", "b")


def build(recipe: Any, path: Path, **data: Any) -> Store:
    directory = prepare(*recipe(path, data={"validation_share": 0.0, **data})).store_dir
    assert directory is not None
    return Store.open(directory)


def test_a_store_counts_spelled_tokens_says_the_first_and_keeps_what_was_said(tmp_path, recipe, caplog, tokenizer):
    caplog.set_level(logging.INFO)
    records = [{"text": "the cat"}, {"text": f"a mat {END}"}, {"text": "<|endoftext|>"}]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    store = build(recipe, path)
    said = f"{path}, line 2: {END}"
    assert store.manifest.noticed == {"special tokens in text": (2, said)}
    assert "2 records contain special tokens in their text, which are encoded as ordinary text" in caplog.text
    assert said in caplog.text
    table = store.split("train")
    assert [int(np.isin(table.ids(i), [0, 3]).sum()) for i in range(3)] == [1, 1, 1]  # the end of each document
    assert tokenizer.backend.decode(table.ids(1)[:-1].tolist(), skip_special_tokens=False) == f"a mat {END}"
    again = build(recipe, path, min_document_tokens=1)  # another store, from the same bytes
    assert again.manifest.noticed == store.manifest.noticed
    assert build(recipe, path, special_tokens_in_text="token").manifest.noticed == {}
    with pytest.raises(UserError, match=r"line 2: it contains the special token '<\|im_end\|>'"):
        build(recipe, path, special_tokens_in_text="refuse")
    caplog.clear()
    prepare(*recipe(path, data={"streaming": True}))
    assert "2 of the first 3 records contain special tokens in their text, which are" in caplog.text
    assert said in caplog.text


def test_parts_that_are_taken_over_bring_what_was_noticed(tmp_path: Path, recipe):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"a mat {END}"}])
    first = build(recipe, path)
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": "the cat"}])
    data, tokenizer = recipe(path, data={"validation_share": 0.0})
    two = data.model_copy(update={"sources": [*data.sources, data.sources[0].model_copy(update={"path": str(other)})]})
    directory = prepare(two, tokenizer).store_dir
    assert directory is not None
    assert Store.open(directory).manifest.noticed == first.manifest.noticed
