"""The tokens that end trained turns are found in the documents, and model and tokenizer are saved to stop there."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

from data_prep.encode.encoding import EncodedBatch
from data_prep.store.build import build_record_batch
from data_prep.store.document_table import DocumentTable
from tests.models.tiny import CHAT_TEMPLATE, chat_tokenizer, tiny_minigpt
from training.models.stop_tokens import Chats, TurnEnds, find_turn_ends, prepare_chats, set_chat_template, stop_at

EOS, START, IM_END, END, RETURN, CALL, NEWLINE, USER, ASSISTANT, A, B, C = range(12)


def table_of(*documents: tuple[Sequence[int], Sequence[int] | None], source: int = 0) -> DocumentTable:
    """Documents of ids, each with its flattened ranges that carry loss."""
    ids, runs = zip(*documents, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
    arrays = [None if each is None else np.array(each, np.int32) for each in runs]
    encoded = EncodedBatch(np.concatenate(ids).astype(np.int32), offsets, arrays)
    return DocumentTable([build_record_batch(encoded, source, [bytes(16)] * len(documents))])


CHAT = ([START, USER, A, IM_END, START, ASSISTANT, B, IM_END, NEWLINE], [6, 8])


def test_the_end_of_a_turn_is_found_behind_white_space_and_without_a_mask() -> None:
    with_newline = (CHAT[0], [6, 9])
    whole = (CHAT[0], None)
    for document in (CHAT, with_newline, whole):
        assert find_turn_ends(table_of(document), [True], chat_tokenizer()) == TurnEnds([IM_END], 1, 1)


def test_a_token_that_the_turn_goes_on_after_stops_nothing() -> None:
    """As gpt-oss: an analysis ends with <|end|>, so do earlier turns; <|return|> and <|call|> end the last one."""
    reasoning = [A, END, START, ASSISTANT, B, RETURN]
    documents = [([C, *reasoning], [1, 7]), ([C, *reasoning], [1, 7]), ([A, END, START, A, CALL], [0, 2, 3, 5])]
    ends = find_turn_ends(table_of(*documents), [True], chat_tokenizer())
    assert ends == TurnEnds([RETURN, CALL], 4, 4)
    # Two turns without a header between them are one range: the only token there is stops them all the same.
    assert find_turn_ends(table_of(([A, IM_END, B, IM_END], [0, 4])), [True], chat_tokenizer()).tokens == [IM_END]


def test_plain_text_and_turns_without_a_special_token() -> None:
    tokenizer = chat_tokenizer()
    assert find_turn_ends(table_of(CHAT), [False], tokenizer) == TurnEnds([], 0, 0)
    assert find_turn_ends(table_of(([A, B, C], [1, 3])), [True], tokenizer) == TurnEnds([], 1, 0)


@pytest.mark.parametrize(
    "stops,only_chats,template,eos,listed",
    [
        ([IM_END], True, CHAT_TEMPLATE, IM_END, [IM_END, 7, EOS]),
        ([RETURN, CALL], True, CHAT_TEMPLATE, RETURN, [RETURN, CALL, 7, EOS]),
        ([IM_END], False, CHAT_TEMPLATE, EOS, [IM_END, 7, EOS]),  # plain text ends with eos
        ([IM_END], True, CHAT_TEMPLATE + "{{ eos_token }}", EOS, [IM_END, 7, EOS]),  # would write another token
        ([EOS], True, CHAT_TEMPLATE, EOS, [EOS, 7]),
    ],
)
def test_what_is_saved_stops_there(
    stops: list[int], only_chats: bool, template: str, eos: int, listed: list[int], tmp_path: Path
) -> None:
    model, tokenizer = tiny_minigpt(eos_token_id=7), chat_tokenizer(template)
    stop_at(model, tokenizer, stops, only_chats=only_chats)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.eos_token_id == listed and saved.pad_token_id == EOS and not saved._from_model_config
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token_id == eos
    assert model.config.eos_token_id == (eos if eos != EOS else 7)


def test_chats_bring_their_template_and_texts_leave_all_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_minigpt(eos_token_id=0), chat_tokenizer(None)
    prepare_chats(Chats(None, (False,)), table_of(CHAT), tokenizer, model)
    assert tokenizer.chat_template is None and model.generation_config.eos_token_id == 0
    with caplog.at_level(logging.INFO, logger="redline.models"):
        prepare_chats(Chats(CHAT_TEMPLATE, (True,)), table_of(CHAT), tokenizer, model)
    assert tokenizer.chat_template == CHAT_TEMPLATE and model.generation_config.eos_token_id == [IM_END, EOS]
    assert (
        "end with '<|im_end|>': final/ stops there, and its tokenizer's eos is '<|im_end|>' (was '<|endo" in caplog.text
    )
    assert "nothing that the model learns" not in caplog.text
    prepare_chats(Chats(CHAT_TEMPLATE, (True,)), table_of(([A, B], None)), tokenizer, model)
    assert "only 0 of 1 trained turns end with a special token" in caplog.text


def test_named_templates_stay_where_their_default_was_the_training_s() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    set_chat_template(tokenizer, "a")
    assert tokenizer.chat_template == {"default": "a", "tool_use": "b"}
    set_chat_template(tokenizer, "c")
    assert tokenizer.chat_template == "c"
