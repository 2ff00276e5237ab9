"""Documents to token ids, by gigatoken where that is the same, else by HF tokenizers.

`choose_encoder` compares the two on a sample of the very data, once per build, and says which one is used. On one core
gigatoken encodes about 130 MB/s and HF tokenizers 2.5 MB/s (8k words, Python sources). Conversations go through HF
tokenizers always, since the loss mask needs the offsets of tokens.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gigatoken
import numpy as np
from numpy.typing import NDArray

from data_prep.chat import CharSpan
from data_prep.documents import Document
from data_prep.tokenizer import LoadedTokenizer

logger = logging.getLogger("redline.data")

EncoderName = Literal["gigatoken", "tokenizers"]


@dataclass(frozen=True)
class EncodedBatch:
    """Documents as one array: document i is `ids[offsets[i]:offsets[i + 1]]`; `loss_runs[i]` holds flattened
    [start, end) token ranges within it, None where every token carries loss."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    loss_runs: list[NDArray[np.int32] | None]

    def head(self, count: int) -> "EncodedBatch":
        """The first `count` documents."""
        end = self.offsets[count]
        return EncodedBatch(self.ids[:end], self.offsets[: count + 1], self.loss_runs[:count])


class Encoder:
    """Encodes batches of documents with one of the two libraries."""

    def __init__(self, tokenizer: LoadedTokenizer, name: EncoderName):
        self.tokenizer = tokenizer
        self.name = name
        self._giga = gigatoken.Tokenizer.from_json(tokenizer.backend.to_str()) if name == "gigatoken" else None

    def encode_texts(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids and offsets of plain texts, without any special token. Special tokens that stand in the text count."""
        if self._giga is None:
            return _join([encoding.ids for encoding in self._encode_hf(texts)])
        layout: Any = self._giga.encode_batch(list(texts)).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        return np.asarray(layout.content.data)[: offsets[-1]].astype(np.int32), offsets

    def encode_documents(self, documents: Sequence[Document]) -> EncodedBatch:
        """Whole documents, all texts or all chats. Texts get the end-of-document token, and a leading one where the
        tokenizer itself puts one; chats with a loss mask go through HF tokenizers, for the offsets."""
        texts = [document.text for document in documents]
        if all(document.loss is None for document in documents):
            ids, offsets = self.encode_texts(texts)
            if not documents[0].is_chat:
                ids, offsets = self._add_ends(ids, offsets)
            return EncodedBatch(ids, offsets, [None] * len(documents))
        encodings = self._encode_hf(texts)
        runs = [find_loss_runs(e.offsets, d.loss or []) for e, d in zip(encodings, documents, strict=True)]
        return EncodedBatch(*_join([encoding.ids for encoding in encodings]), list(runs))

    def _encode_hf(self, texts: Sequence[str]) -> list[Any]:
        return self.tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)

    def _add_ends(
        self, ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        steps = np.arange(len(offsets))
        if self.tokenizer.bos_id is not None:
            ids, offsets = np.insert(ids, offsets[:-1], self.tokenizer.bos_id), offsets + steps
        return np.insert(ids, offsets[1:], self.tokenizer.eos_id), offsets + steps


def _join(lists: list[list[int]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    flat = [np.asarray(ids, np.int32) for ids in lists]
    return np.concatenate(flat) if flat else np.empty(0, np.int32), offsets


def find_loss_runs(token_offsets: Sequence[CharSpan], loss: Sequence[CharSpan]) -> NDArray[np.int32]:
    """Flattened [start, end) ranges of tokens that share a character with a loss span.

    A token across a span's edge carries loss: the model has to write it to write the turn's first character.
    """
    offsets = np.asarray(token_offsets, np.int64).reshape(-1, 2)
    runs: list[int] = []
    for start, end in loss:
        # Offsets never decrease, so the tokens of a span are one range.
        first = int(np.searchsorted(offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(offsets[:, 0], end, side="left"))
        if runs and first <= runs[-1]:
            runs[-1] = max(runs[-1], last)
        elif first < last:
            runs += [first, last]
    return np.asarray(runs, np.int32)


def choose_encoder(tokenizer: LoadedTokenizer, sample: Sequence[str]) -> EncoderName:
    """gigatoken when it gives the ids of HF tokenizers on every text of the sample, else `tokenizers`; logged."""
    exact = Encoder(tokenizer, "tokenizers").encode_texts(sample)
    size = sum(len(text.encode()) for text in sample)
    try:
        fast = Encoder(tokenizer, "gigatoken").encode_texts(sample)
    except Exception as error:  # whatever it cannot load or encode, HF can; a Rust panic is a BaseException and stops
        logger.info("encoder: tokenizers (gigatoken cannot take this tokenizer: %s)", " ".join(str(error).split()))
        return "tokenizers"
    if all(np.array_equal(one, two) for one, two in zip(fast, exact, strict=True)):
        logger.info("encoder: gigatoken (same ids as tokenizers on %d documents, %d kB)", len(sample), size // 1000)
        return "gigatoken"
    logger.info("encoder: tokenizers (gigatoken gives other ids on %d documents, %d kB)", len(sample), size // 1000)
    return "tokenizers"
