"""The sample at the end of a run: an assistant answers a chat's prompt, and whether it stopped is told and kept."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.models.test_stop_tokens import ASSISTANT, CHAT, EOS, IM_END, START, USER, A, B, table_of
from tests.models.tiny import CHAT_TEMPLATE, chat_tokenizer, tiny_minigpt
from training.inference.sample import MAX_NEW_TOKENS, NEW_TOKENS, find_chat_prompt, write_sample
from training.models.stop_tokens import Chats

CHATS = Chats(CHAT_TEMPLATE, (True,))
PROMPT = [START, USER, A, IM_END, START, ASSISTANT]


class Trainer(SimpleNamespace):
    """What a sample asks of a trainer."""

    def __init__(self) -> None:
        events: list[dict[str, Any]] = []
        run_dir = SimpleNamespace(append_event=lambda kind, step, text, **more: events.append({"kind": kind, **more}))
        super().__init__(
            processing_class=chat_tokenizer(), args=SimpleNamespace(seed=0), state=SimpleNamespace(global_step=3),
            run_dir=run_dir, events=events,
        )  # fmt: skip


@pytest.mark.parametrize("runs", [[6, 8], None], ids=["masked", "all carries loss"])
def test_the_prompt_is_what_stands_before_the_first_trained_turn(runs: list[int] | None) -> None:
    prompt = find_chat_prompt(table_of((CHAT[0], runs)), CHATS, chat_tokenizer())
    assert prompt is not None and prompt.ids == PROMPT and prompt.limit == NEW_TOKENS
    long = find_chat_prompt(table_of(([*PROMPT, *[B] * 400], [6, 406])), CHATS, chat_tokenizer())
    assert long is not None and long.limit == MAX_NEW_TOKENS
    assert find_chat_prompt(table_of(([A] * 900, [800, 900])), CHATS, chat_tokenizer()) is None
    assert find_chat_prompt(table_of(CHAT), Chats(None, (False,)), chat_tokenizer()) is None


def test_a_turn_that_stops_and_one_that_does_not(caplog: pytest.LogCaptureFixture) -> None:
    model, trainer = tiny_minigpt(max_position_embeddings=16).eval(), cast(Any, Trainer())
    model.generation_config.eos_token_id = None
    with caplog.at_level(logging.INFO, logger="redline.train"):
        sample = write_sample(model, trainer, CHATS, table_of(CHAT), None)
        assert not sample.stopped and sample.tokens == sample.limit == 16 - len(PROMPT)
        assert sample.prompt == trainer.processing_class.decode(PROMPT)
        words = sample.text.split()
        model.generation_config.eos_token_id = [trainer.processing_class.convert_tokens_to_ids(words[4]), EOS]
        sample = write_sample(model, trainer, CHATS, table_of(CHAT), None)
    assert sample.stopped and sample.text.split() == words[: words.index(words[4]) + 1]
    assert "did not stop within 10 tokens" in caplog.text and "ended on its own, with" in caplog.text
    assert [event["stopped"] for event in trainer.events] == [False, True]


def test_a_prompt_of_the_recipe_is_a_user_s_message_or_a_text() -> None:
    model, trainer = tiny_minigpt().eval(), cast(Any, Trainer())
    model.generation_config.eos_token_id = None
    asked = write_sample(model, trainer, CHATS, table_of(CHAT), "w20")
    assert asked.prompt == "<|im_start|> user w20 <|im_end|> <|im_start|> assistant"
    plain = write_sample(model, trainer, Chats(None, (False,)), table_of(CHAT), "w20")
    assert plain.prompt == "w20" and plain.stopped is None and plain.limit == NEW_TOKENS
    assert len(trainer.events) == 1
