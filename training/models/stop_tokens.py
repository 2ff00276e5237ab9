"""Which tokens end a trained turn, and a model and tokenizer that stop at them and write the prompts of the training.

A base model stops at its end-of-text token. Trained on chats it ends its turns with another one (`<|im_end|>`,
`<|eot_id|>`, …), and whoever generates from it must be told. Who reads what:

| program | reads |
|---|---|
| transformers `generate`, pipelines | `generation_config.eos_token_id` |
| vLLM | the tokenizer's `eos_token`, and `generation_config.eos_token_id` |
| SGLang | `eos_token_id` of config and generation_config, and the tokenizer's |
| llama.cpp's conversion | the tokenizer's `eos_token`, and names that it knows |

So the stop tokens stand first in `generation_config.eos_token_id`, before those that were there, and the first of them
is the tokenizer's `eos_token`. The tokenizer keeps its own where its chat template writes `eos_token`, which would
then write something else, and where plain text was trained on beside the chats, whose documents end with it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig, PreTrainedTokenizerBase

from data_prep.store.document_table import DocumentTable
from data_prep.store.store import Store
from data_prep.stream.stream import StreamPlan

from .saved_files import find_base

logger = logging.getLogger("redline.models")

SAMPLED_DOCUMENTS = 20_000
WARNED_SHARE = 0.9


@dataclass(frozen=True)
class Chats:
    """How chats are rendered (None: no source holds any), and which sources hold them."""

    template: str | None
    is_chat: tuple[bool, ...]

    @classmethod
    def of(cls, source: Store | StreamPlan) -> Chats:
        """Of a store or a stream."""
        if isinstance(source, Store):
            manifest = source.manifest
            return cls(manifest.chat_template, tuple(counts.kind != "text" for counts in manifest.sources))
        is_chat = tuple(shape.kind != "text" for shape in source.spec.shapes)
        return cls(source.spec.template if any(is_chat) else None, is_chat)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Makes `template` the tokenizer's; several named ones stay where their default is this one already."""
    own: Any = tokenizer.chat_template
    if template != (own.get("default") if isinstance(own, dict) else own):
        tokenizer.chat_template = template


@dataclass(frozen=True)
class TurnEnds:
    """The special or added tokens that end trained turns, the most frequent first; of how many turns (none of which
    may end with one), and how many of them end with one."""

    tokens: list[int]
    turns: int
    stopped: int


def find_turn_ends(table: DocumentTable, is_chat: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> TurnEnds:
    """Looks at up to SAMPLED_DOCUMENTS chats, evenly over the table; `is_chat` goes by source.

    White space after the token belongs to the frame. A token that the turn continues after, too (gpt-oss ends its
    analysis with the `<|end|>` that also ends earlier turns), stops nothing, unless there is no other.
    """
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if not str(token).isspace()}
    chats = np.flatnonzero(np.asarray(is_chat, bool)[table.sources])
    ends, within, turns = Counter[int](), Counter[int](), 0
    for document in chats[:: -(-len(chats) // SAMPLED_DOCUMENTS) or 1].tolist():
        ids, runs = table.ids(document), table.loss_runs(document)
        edges = [0, len(ids)] if runs is None else runs.tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            turn, turns = ids[begin:end].tolist(), turns + 1
            last = _find_last(turn, special, tokenizer)
            if last is not None:
                ends[turn[last]] += 1
                within.update(set(turn[:last]) & special)
    found = [token for token, _ in ends.most_common()]
    return TurnEnds([token for token in found if not within[token]] or found, turns, ends.total())


def prepare_chats(chats: Chats, table: DocumentTable, tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Has tokenizer and model, as they will be saved, write the prompts and stop at the ends of what is trained on.

    Nothing changes where no source holds chats. `table`: documents that are trained on, or held out from them.
    """
    if chats.template is None:
        return
    set_chat_template(tokenizer, chats.template)
    ends = find_turn_ends(table, chats.is_chat, tokenizer)
    if ends.tokens:
        stop_at(model, tokenizer, ends.tokens, only_chats=all(chats.is_chat))
    if ends.stopped < WARNED_SHARE * ends.turns:
        logger.warning(
            "only %d of %d trained turns end with a special token: after the others nothing that the model learns "
            "stops it (data.chat_template: chatml ends each turn with one)",
            ends.stopped, ends.turns,
        )  # fmt: skip


def _find_last(turn: list[int], special: set[int], tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Place of the special token that ends a turn but for white space."""
    for place in range(len(turn) - 1, -1, -1):
        if turn[place] in special:
            return place
        if not str(tokenizer.decode([turn[place]])).isspace():
            return None
    return None


def stop_at(model: Any, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int], *, only_chats: bool) -> None:
    """Has `model` (a Hugging Face model) and `tokenizer` stop at `stops`; see the module docstring. Logged."""
    model = find_base(model)
    generation: GenerationConfig = model.generation_config
    own: Any = tokenizer.eos_token_id
    before = [*_as_list(generation.eos_token_id), *_as_list(own)]
    generation.eos_token_id = list(dict.fromkeys([*stops, *before]))
    generation._from_model_config = False  # or transformers 4 would make it again from config.json
    if generation.pad_token_id is None:
        pad: Any = tokenizer.pad_token_id
        generation.pad_token_id = own if pad is None else pad
    names, kept = ", ".join(repr(tokenizer.convert_ids_to_tokens(token)) for token in stops), tokenizer.eos_token
    if own in stops:
        eos = ""
    elif not only_chats or _writes_eos(tokenizer.chat_template):
        why = "the template writes" if only_chats else "ends plain text"
        eos = f"; its tokenizer's eos stays {kept!r}, which {why}"
    else:
        new: Any = tokenizer.convert_ids_to_tokens(stops[0])
        tokenizer.eos_token = new
        model.config.get_text_config().eos_token_id = stops[0]
        eos = f", and its tokenizer's eos is {new!r} (was {kept!r})"
    logger.info("trained turns end with %s: final/ stops there%s", names, eos)


def _as_list(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _writes_eos(template: Any) -> bool:
    templates = template.values() if isinstance(template, dict) else [template or ""]
    return any(re.search(r"\beos_token\b", source) for source in templates)
