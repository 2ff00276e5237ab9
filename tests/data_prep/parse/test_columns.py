from typing import Any

import pytest

from data_prep.options import DataSection
from data_prep.parse.columns import find_layout, find_unused, take
from data_prep.parse.kinds import Conversation, LabelledFalse, RecordError, Shape, find_shape, parse_record

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM, CONTEXT = {"role": "system", "content": "s"}, {"role": "user", "content": "q\nc"}
KNOWN = [
    ({"instruction": "q", "context": "c", "response": "a", "category": "x"}, [CONTEXT, ASSISTANT], ["category"]),
    ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, [SYSTEM, USER, ASSISTANT], ["id"]),
    ({"uuid": "1", "instruction": "q", "response": "a"}, [USER, ASSISTANT], ["uuid"]),
    ({"source": "x", "problem": "q", "solution": "a", "answer": "4"}, [USER, ASSISTANT], ["source", "answer"]),
    ({"source": "x", "problem": "p", "solution": "s", "messages": [USER, ASSISTANT]}, [USER, ASSISTANT],
     ["source", "problem", "solution"]),
    ({"input": "q", "output": "a"}, [USER, ASSISTANT], []),
    ({"inputs": "q", "targets": "a"}, [USER, ASSISTANT], []),
    ({"Question": "q", "Answer ": "a"}, [USER, ASSISTANT], []),
    ({"instruction": "q", "input": "c", "output": "a", "prompt": "q c"}, [CONTEXT, ASSISTANT], ["prompt"]),
    ({"instruction": "q", "input": "", "output": "a", "text": "q a"}, [USER, ASSISTANT], ["text"]),
    ({"context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, [CONTEXT, ASSISTANT],
     []),
    ({"question": "q", "answers": [{"text": "a", "answer_start": 1}]}, [USER, ASSISTANT], []),
    ({"query": "q", "response": "a", "type": "GSM", "original_question": "o"}, [USER, ASSISTANT],
     ["type", "original_question"]),
    ({"id": "1", "data": ["q", "a"]}, [USER, ASSISTANT], ["id"]),
    ({"conversations": ["q", "a"], "source": "x"}, [USER, ASSISTANT], ["source"]),
    ({"conversation": [{"human": "q", "assistant": "a"}]}, [USER, ASSISTANT], []),
    ({"conversation": [{"input": "q", "output": "a"}]}, [USER, ASSISTANT], []),
    ({"dialog": [{"speaker": "Human", "utterance": "q"}, {"speaker": "bot", "utterance": "a"}]}, [USER, ASSISTANT], []),
    ({"prompt": "q", "response": "a", "helpfulness": 4}, [USER, ASSISTANT], ["helpfulness"]),
    ({"prompt": "q", "completion": "a", "messages": None}, [USER, ASSISTANT], ["messages"]),
    ({"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
      "systemInstruction": {"parts": [{"text": "s"}]}}, [SYSTEM, USER, ASSISTANT], []),
    ({"system": "s", "messages": [USER, ASSISTANT]}, [SYSTEM, USER, ASSISTANT], []),
]  # fmt: skip


@pytest.mark.parametrize(("record", "messages", "unused"), KNOWN)
def test_the_columns_of_well_known_sets(record: dict[str, Any], messages: list[dict], unused: list[str]):
    shape = find_shape(record, "auto", None)
    parsed = parse_record(record, shape)
    assert isinstance(parsed, Conversation)
    assert parsed.messages == messages
    layout = find_layout(record, shape.kind, shape.columns)
    assert layout is not None
    assert find_unused(layout, record) == unused


HH = "\n\nHuman: q\n\nAssistant: {}"


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": HH.format("a"), "rejected": HH.format("b")},
        {"prompt": HH.format(""), "response": "x", "chosen": "a", "rejected": "b"},
        {"system": "", "question": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "messages": [USER, ASSISTANT], "chosen": "a", "rejected": "b"},
        {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [
            {**ASSISTANT, "content": "b"}]},
    ],
)  # fmt: skip
def test_preference_pairs_of_well_known_sets(record: dict[str, Any]):
    shape = find_shape(record, "auto", None)
    assert shape.kind == "preference"
    parsed = parse_record(record, shape)
    assert [parsed.chosen.messages, parsed.rejected.messages] == [  # type: ignore[union-attr]
        [USER, ASSISTANT],
        [USER, {**ASSISTANT, "content": "b"}],
    ]


def test_a_text_of_many_hh_turns_is_as_many_turns():
    text = HH.format("a") + HH.format("b: c\n\nd")
    parsed = parse_record({"chosen": text, "rejected": text}, Shape("preference"))
    said = [message["content"] for message in parsed.chosen.messages]  # type: ignore[union-attr]
    assert said == ["q", "a", "q", "b: c\n\nd"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "q", "output": "a", "response": "b"}, "columns: {prompt: instruction, completion: output} or"),
        ({"question": "q", "answer": "4", "solution": "a"}, "columns: {prompt: question, completion: solution}"),
        ({"prompt": "p", "question": "q", "chosen": "a", "rejected": "b"}, "columns: {prompt: question}"),
        ({"instruction": "q", "input": "c", "context": "d", "output": "a"}, "columns: {context: context} or"),
        ({"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"}, "one message of a tree"),
        ({"conversation_id": 1, "role": "user", "content": "q"}, "one message .role, content.: write"),
        ({"talk": [{"who": "x", "what": "y"}]}, "columns: {messages: talk, role: …, content: …}"),
        ({"prompt": "q", "response_1": "a", "response_2": "b"}, "columns: {prompt: prompt, completion: response_1}"),
        ({"version": "1", "data": [{"text": "t"}]}, "records_key: data"),
        ([{"text": "t"}], "a list of 1 objects"),
    ],
)
def test_what_has_two_readings_or_none_says_how_to_choose(record: Any, reason: str):
    with pytest.raises(RecordError, match=reason):
        find_shape(record, "auto", None)


@pytest.mark.parametrize(
    ("record", "columns", "messages"),
    [
        ({"a": "q", "b": "a", "text": "t"}, {"prompt": "a", "completion": "b"}, [USER, ASSISTANT]),
        ({"x": {"a": "q", "b": "a"}}, {"prompt": "x.a", "completion": "x.b"}, [USER, ASSISTANT]),
        ({"x.a": "q", "b": "a"}, {"prompt": "x.a", "completion": "b"}, [USER, ASSISTANT]),
        ({"a": "q", "response": "a", "z": "s"}, {"prompt": "a", "system": "z"}, [SYSTEM, USER, ASSISTANT]),
        ({"instruction": "q", "input": "c", "output": "a"}, {"context": ""}, [USER, ASSISTANT]),
        ({"t": [{"w": "user", "d": "q"}, {"w": "bot", "d": "a"}]}, {"messages": "t", "role": "w", "content": "d"},
         [USER, ASSISTANT]),
    ],
)  # fmt: skip
def test_columns_of_the_recipe_come_first(record: dict, columns: dict[str, str], messages: list):
    shape = find_shape(record, "auto", None, tuple(columns.items()))
    assert parse_record(record, shape).messages == messages  # type: ignore[union-attr]


def test_a_column_of_the_recipe_that_is_not_there_is_named():
    columns = (("prompt", "a"), ("completion", "b"))
    with pytest.raises(RecordError, match=r"columns\.completion: 'b' is missing or null \(found keys: a, c\)"):
        find_shape({"a": "q", "c": "x"}, "auto", None, columns)
    with pytest.raises(RecordError, match="columns for prompt_completion are incomplete: columns: {prompt: a}"):
        find_shape({"a": "q", "c": "x"}, "auto", None, columns[:1])


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        *((True, False), (1, 0), (1.0, 0.0), ("1.0", "0.0"), ("true", "false"), ("True", " False")),
        *(("desirable", "undesirable"), ("accepted", "rejected"), ("correct", "incorrect")),
    ],
)
@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_an_answer_that_its_label_calls_bad_is_left_out(key: str, good: object, bad: object):
    turns, pair = {"messages": [USER, ASSISTANT]}, {"prompt": "q", "completion": "a"}
    for record in (turns, pair, {"prompt": [USER], "completion": [ASSISTANT]}, {"text": "t", **pair}):
        shape = find_shape({**record, key: good}, "auto", None)
        assert isinstance(parse_record({**record, key: good}, shape), Conversation)
        assert parse_record({**record, key: bad}, shape) == LabelledFalse()
        for missing in (record, {**record, key: None}):
            with pytest.raises(RecordError, match=f"columns.label: '{key}' is missing or null"):
                parse_record(missing, shape)
        with pytest.raises(RecordError, match=f"'{key}' is 7, neither good nor bad: columns: {{label: ''}} ignores it"):
            parse_record({**record, key: 7}, shape)
    with pytest.raises(RecordError, match="no assistant turn"):  # the record is parsed completely even so
        parse_record({"messages": [USER], key: bad}, Shape("messages"))


@pytest.mark.parametrize("key", ["question", "prompt", "Input"])
def test_a_prompt_without_an_answer_is_no_text(key: str):
    record = {"id": 1, key: "q", "replies": ["a", "b"]}
    reason = f"a prompt under '{key}', but no known key of an answer .* text_key: {key} to train on prompts alone"
    with pytest.raises(RecordError, match=reason):
        find_shape(record, "auto", None)
    assert parse_record(record, find_shape(record, "auto", key)) == "q"
    answered = parse_record(record, find_shape(record, "auto", None, (("completion", "replies"),)))
    assert isinstance(answered, Conversation)
    assert [message["content"] for message in answered.messages] == ["q", "a"]


@pytest.mark.parametrize("label", [2, "sports", 0.5, ["x"]])
def test_a_class_is_no_such_label(label: object):
    record = {"question": "q", "answer": "a", "label": label}
    shape = find_shape(record, "auto", None)
    assert isinstance(parse_record({**record, "label": 0}, shape), Conversation)
    text = {"text": "t", "label": 0}
    assert parse_record(text, find_shape(text, "auto", None)) == "t"
    off = (("label", ""),)
    shape = find_shape({**record, "label": 1}, "auto", None, off)
    assert isinstance(parse_record({**record, "label": 0}, shape), Conversation)


def test_columns_of_all_sources_are_for_those_that_have_none_of_their_own():
    section = {"path": "a.jsonl"}
    sources = [section, {**section, "columns": {"prompt": "q"}}, {**section, "text_key": "t"}, {"path": "embedded"}]
    data = DataSection.model_validate({"sources": sources, "columns": {"prompt": "x", "completion": "y"}})
    named = [source.named_columns for source in data.list_sources()]
    assert named == [(("prompt", "x"), ("completion", "y")), (("prompt", "q"),), (), ()]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"text_key": "a", "columns": {"text": "b"}}, "text_key: a and columns.text: b differ"),
        (
            {"kind": "text", "columns": {"prompt": "b"}},
            "kind text have no prompt: remove it from columns, or use one of text",
        ),
        ({"columns": {"messages": "a", "prompt": "b"}}, "records of kind messages have no prompt"),
        ({"kind": "alpaca", "columns": {"chosen": "b"}}, "records of kind alpaca have no chosen"),
        ({"columns": {"promt": "b"}}, "promt"),
        ({"delimiter": ", "}, "delimiter"),
    ],
)
def test_options_that_contradict_each_other(source: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        DataSection.model_validate({"sources": [{"path": "a", **source}]})


def test_a_dotted_key_leads_into_objects_unless_it_is_one():
    assert take({"a": {"b": {"c": 1}}}, "a.b.c") == 1
    assert take({"a.b": 2, "a": {"b": 1}}, "a.b") == 2
    assert take({"a": "x"}, "a.b") is None
