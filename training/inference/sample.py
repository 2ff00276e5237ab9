"""What a trained model writes at the end of a run: a text continues, an assistant answers and has to stop.

After training on chats the prompt is that of a chat, as far as its first trained turn: what the model saw before it had
to write. Whether it then stops is the one thing of `final/` that equal logits do not show.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.store.document_table import DocumentTable
from training.models.stop_tokens import Chats
from training.models.writing import Sampling, count_free_positions, render_prompt, write
from training.trainers.recipe_trainer import RecipeTrainer

logger = logging.getLogger("redline.train")

PROMPT_TOKENS = 16  # of a text
NEW_TOKENS = 120
MAX_PROMPT_TOKENS = 512  # of a chat
MAX_NEW_TOKENS = 512
TRIED_CHATS = 100


@dataclass(frozen=True)
class Sample:
    """As `summary.json` has it. `stopped`: whether the model ended its turn within `limit` tokens; None of a text."""

    prompt: str
    text: str
    tokens: int
    limit: int
    stopped: bool | None = None


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    limit: int
    is_chat: bool


def write_sample(model: Any, trainer: RecipeTrainer, chats: Chats, table: DocumentTable, text: str | None) -> Sample:
    """Lets `model` write after `text` (`monitor.sample_prompt`; of chats a user's message), or after the beginning of a
    document of `table`. Says so, once, when an assistant did not stop."""
    tokenizer: Any = trainer.processing_class
    prompt = _of_text(text, chats, tokenizer) if text else find_chat_prompt(table, chats, tokenizer)
    prompt = prompt or _Prompt(_first_tokens(trainer), NEW_TOKENS, is_chat=False)
    free = count_free_positions(model, len(prompt.ids))
    limit = prompt.limit if free is None else max(1, min(prompt.limit, free))
    [written] = write(model, [prompt.ids], Sampling(max_new_tokens=limit, seed=trainer.args.seed))
    sample = Sample(
        tokenizer.decode(prompt.ids),
        tokenizer.decode(written.ids),
        len(written.ids),
        limit,
        written.stopped if prompt.is_chat else None,
    )
    if prompt.is_chat:
        _tell(sample, tokenizer.decode(written.ids[-1:]), trainer)
    return sample


def _tell(sample: Sample, last: str, trainer: RecipeTrainer) -> None:
    if sample.stopped:
        message = f"the sample's turn ended on its own, with {last!r} after {sample.tokens} tokens"
        logger.info("%s", message)
    else:
        message = f"the sample's turn did not stop within {sample.limit} tokens (trained too little, or no stop token)"
        logger.warning("%s", message)
    details = {key: value for key, value in asdict(sample).items() if key not in ("prompt", "text")}
    trainer.run_dir.append_event("sample", trainer.state.global_step, message, **details)


def _of_text(text: str, chats: Chats, tokenizer: Any) -> _Prompt:
    if chats.template is None:
        return _Prompt(tokenizer(text).input_ids, NEW_TOKENS, is_chat=False)
    return _Prompt(render_prompt(tokenizer, [{"role": "user", "content": text}]), MAX_NEW_TOKENS, is_chat=True)


def find_chat_prompt(table: DocumentTable, chats: Chats, tokenizer: Any) -> _Prompt | None:
    """What stands before the first trained turn of a chat, and twice the length of that turn as the limit. None where
    the first TRIED_CHATS chats have no such turn, or none with a prompt of MAX_PROMPT_TOKENS at most."""
    if chats.template is None:
        return None
    marker = _find_generation_prompt(tokenizer)
    for document in np.flatnonzero(np.asarray(chats.is_chat)[table.sources])[:TRIED_CHATS].tolist():
        ids, runs = table.ids(document).tolist(), table.loss_runs(document)
        begin, end = (_find_end(ids, marker), len(ids)) if runs is None else (int(runs[0]), int(runs[1]))
        if 0 < begin <= MAX_PROMPT_TOKENS:
            return _Prompt(ids[:begin], min(max(2 * (end - begin), NEW_TOKENS), MAX_NEW_TOKENS), is_chat=True)
    return None


def _find_generation_prompt(tokenizer: Any) -> list[int]:
    """The ids with which the template opens an assistant's turn; [] where it refuses a lone user or opens none."""
    question = [{"role": "user", "content": "a"}]
    try:
        asked = tokenizer.apply_chat_template(question, tokenize=True, return_dict=False)
        prompted = render_prompt(tokenizer, question)
    except Exception:  # a template is a program of someone else's: it may raise anything
        return []
    return prompted[len(asked) :] if prompted[: len(asked)] == list(asked) else []


def _find_end(ids: list[int], piece: list[int]) -> int:
    """Where the first occurrence of `piece` in `ids` ends; 0 where there is none."""
    size = len(piece)
    starts = range(len(ids) - size + 1) if size else ()
    return next((start + size for start in starts if ids[start : start + size] == piece), 0)


def _first_tokens(trainer: RecipeTrainer) -> list[int]:
    dataset: Any = trainer.eval_dataset or trainer.train_dataset
    return trainer.data_collator([dataset[0]])["input_ids"][0, :PROMPT_TOKENS].tolist()
