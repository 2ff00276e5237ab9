"""Encodes documents to token ids, with gigatoken if its results are identical to those of HF tokenizers.

The library is chosen once per build (`encoder_choice.py`). On one core gigatoken encodes 100 MB/s of source code, and
HF tokenizers 1 to 2.5 MB/s.

The loss mask needs the position of each token in the text. gigatoken does not return it, but tokens of a byte-level
tokenizer are pieces of the text: if the decoded tokens equal the text byte for byte, the cumulative sum of their sizes
gives their positions. This is checked for each batch. HF tokenizers encode a document again, and it is counted, if the
check fails (a normalizer changed the text), or if it contains a byte for which the vocabulary has no token. With either
library, a document whose text contains special tokens is encoded by `literal_encoding`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gigatoken
import numpy as np
import orjson
from tokenizers import Tokenizer

from data_prep.encode.literal_encoding import LiteralEncoder
from data_prep.encode.loss_runs import CharSpan, Ids, Offsets, find_loss_runs
from data_prep.encode.tokenizer import LoadedTokenizer, byte_symbols
from data_prep.options import SpecialInText
from data_prep.render.documents import Document

logger = logging.getLogger("redline.data")

EncoderName = Literal["gigatoken", "tokenizers"]


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded documents as one array.

    ids, offsets: document i is `ids[offsets[i]:offsets[i + 1]]`; shapes (tokens,) and (documents + 1,).
    loss_runs: for each document, flattened [start, end) token ranges that carry loss, (2 * ranges,); None means all.
    fallbacks: number of documents that gigatoken could not encode.
    spelled: by document number, the first special token that is written in its text.
    """

    ids: Ids
    offsets: Offsets
    loss_runs: list[Ids | None]
    fallbacks: int = 0
    spelled: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> "EncodedBatch":
        """Make a batch of `count` documents without tokens."""
        return cls(np.empty(0, np.int32), np.zeros(count + 1, np.int64), [None] * count)


class Encoder:
    """Encodes batches of documents with one of the two libraries.

    `in_text` decides how special tokens that are written in a text are encoded (data.special_tokens_in_text). Special
    tokens that a chat template writes are always encoded as tokens.
    """

    def __init__(self, tokenizer: LoadedTokenizer, name: EncoderName, in_text: SpecialInText = "text"):
        self.tokenizer = tokenizer
        self.name = name
        self._literal = LiteralEncoder(tokenizer) if in_text != "token" else None
        self._giga = _Gigatoken(tokenizer.backend, tokenizer.vocab_size) if name == "gigatoken" else None

    def encode_documents(self, documents: Sequence[Document]) -> EncodedBatch:
        """Encode complete documents, texts or chats.

        Texts get the end-of-document token, and a leading token if the tokenizer itself adds one.
        """
        if self._giga is None:
            batch, left = EncodedBatch.empty(len(documents)), list(range(len(documents)))
        else:
            batch, left = self._giga.encode(documents)
        batch = self._encode_exactly(documents, left, batch) if left else batch
        batch = self._encode_literally(documents, batch)
        return batch if all(document.is_chat for document in documents) else self._add_ends(batch, documents)

    def _encode_exactly(self, documents: Sequence[Document], chosen: list[int], batch: EncodedBatch) -> EncodedBatch:
        """Replace the chosen documents of a batch by their encodings of HF tokenizers."""
        texts = [documents[i].text for i in chosen]
        encodings = dict(zip(chosen, self._encode_hf(texts), strict=True))
        runs = list(batch.loss_runs)
        for i, encoding in encodings.items():
            loss = documents[i].loss
            runs[i] = None if loss is None else find_loss_runs(encoding.offsets, loss)
        ids = {i: np.array(encoding.ids, np.int32) for i, encoding in encodings.items()}
        return EncodedBatch(*_replace(batch.ids, batch.offsets, ids), runs, len(chosen))

    def _encode_literally(self, documents: Sequence[Document], batch: EncodedBatch) -> EncodedBatch:
        """Replace documents that contain special tokens in their text; these become ordinary text."""
        if self._literal is None:
            return batch
        spelled = self._literal.find(documents, batch.ids, batch.offsets)
        if not spelled:
            return batch
        runs, ids = list(batch.loss_runs), {}
        for i in spelled:
            ids[i], places = self._literal.encode(documents[i])
            loss = documents[i].loss
            runs[i] = None if loss is None else find_loss_runs(places, loss)
        return replace(EncodedBatch(*_replace(batch.ids, batch.offsets, ids), runs, batch.fallbacks), spelled=spelled)

    def _encode_hf(self, texts: list[str]) -> list[Any]:
        return self.tokenizer.backend.encode_batch(texts, add_special_tokens=False)

    def _add_ends(self, batch: EncodedBatch, documents: Sequence[Document]) -> EncodedBatch:
        """Add the end token and any leading token to each text. The template has written those of chats."""
        tokenizer, offsets = self.tokenizer, batch.offsets
        texts = np.array([not document.is_chat for document in documents])
        leading = texts & (tokenizer.bos_id is not None)
        added = leading.astype(np.int64) + texts
        wider = offsets + np.concatenate([[0], np.cumsum(added)])
        result = np.empty(int(wider[-1]), np.int32)
        is_old = np.ones(len(result), bool)
        is_old[wider[1:][texts] - 1] = False
        is_old[wider[:-1][leading]] = False
        result[is_old] = batch.ids
        result[wider[1:][texts] - 1] = tokenizer.eos_id
        result[wider[:-1][leading]] = tokenizer.bos_id or 0
        return replace(batch, ids=result, offsets=wider)


class _Gigatoken:
    """gigatoken's encoder for one tokenizer. `_sizes[id]` is the size of a token in bytes, shape (vocab_size,)."""

    def __init__(self, backend: Tokenizer, vocab_size: int):
        self._json, self._vocab_size = _fill_byte_gaps(backend.to_str(), vocab_size), vocab_size
        self._load()

    def _load(self) -> None:
        self._tokenizer = gigatoken.Tokenizer.from_json(self._json)
        vocab = self._tokenizer.vocab
        self._sizes = np.zeros(max(vocab) + 1, np.int32)
        self._sizes[list(vocab)] = [len(token) for token in vocab.values()]

    def encode(self, documents: Sequence[Document]) -> tuple[EncodedBatch, list[int]]:
        """Encode a batch without end tokens; also return the numbers of documents that HF tokenizers must encode."""
        texts = [document.text for document in documents]
        runs: list[Ids | None] = [None] * len(texts)
        try:
            # One by one: gigatoken returns a batch as an awkward array, whose import costs each worker 0.5 s and 30 MB.
            encoded = [self._tokenizer.encode(text) for text in texts]
        except BaseException as error:
            if not is_panic(error):
                raise
            logger.warning("encoder: gigatoken panicked (%s): tokenizers encodes this batch", one_line(error))
            self._load()  # the old one may be in an invalid state
            return EncodedBatch.empty(len(texts)), list(range(len(texts)))
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        ids = np.concatenate(encoded).view(np.int32)
        left = self._find_gaps(ids, offsets)
        masked = [i for i, document in enumerate(documents) if document.loss is not None]
        if masked:
            places = np.concatenate([[0], np.cumsum(self._sizes[ids], dtype=np.int64)])  # byte offsets in the batch
            left |= self._find_changed_texts(ids, offsets, places, texts)
            for i in masked:
                if i not in left:
                    mine = places[offsets[i] : offsets[i + 1] + 1] - places[offsets[i]]
                    runs[i] = _find_runs_by_bytes(mine, texts[i], documents[i].loss or [])
        return EncodedBatch(ids, offsets, runs), sorted(left)

    def _find_gaps(self, ids: Ids, offsets: Offsets) -> set[int]:
        """Find the documents with a byte for which the vocabulary has no token; return their numbers."""
        if len(self._sizes) == self._vocab_size or not len(ids) or int(ids.max()) < self._vocab_size:
            return set()
        places = np.flatnonzero(ids >= self._vocab_size)
        return set((np.searchsorted(offsets, places, side="right") - 1).tolist())

    def _find_changed_texts(self, ids: Ids, offsets: Offsets, places: Offsets, texts: list[str]) -> set[int]:
        """Find the texts that differ from their decoded tokens; return their numbers.

        Usually needs one comparison for the whole batch.
        """
        data = [text.encode() for text in texts]
        is_wrong = np.diff(places[offsets]) != [len(text) for text in data]
        if not is_wrong.any() and self._decode(ids) == b"".join(data):
            return set()
        pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return {i for i, (a, b) in enumerate(pairs) if is_wrong[i] or self._decode(ids[a:b]) != data[i]}

    def _decode(self, ids: Ids) -> bytes:
        return self._tokenizer.decode(ids.view(np.uint32))


def _fill_byte_gaps(tokenizer_json: str, vocab_size: int) -> str:
    """Add missing byte tokens to a byte-level vocabulary, because gigatoken refuses one without a token for each byte.

    SmolLM2 lacks 21 of them. They get ids beyond the vocabulary; HF tokenizers encode a document with such an id.
    """
    value = orjson.loads(tokenizer_json)
    if value["model"]["type"] != "BPE" or (value["decoder"] or {}).get("type") != "ByteLevel":
        return tokenizer_json
    vocab = value["model"]["vocab"]
    missing = [symbol for symbol in byte_symbols() if symbol not in vocab]
    vocab.update({symbol: vocab_size + i for i, symbol in enumerate(missing)})
    return orjson.dumps(value).decode()


def _replace(ids: Ids, offsets: Offsets, others: dict[int, Ids]) -> tuple[Ids, Offsets]:
    """Replace some documents of a batch; return its new ids and offsets."""
    pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    pieces = [others[i] if i in others else ids[a:b] for i, (a, b) in enumerate(pairs)]
    lengths = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.concatenate([[0], lengths])


def _find_runs_by_bytes(places: Offsets, text: str, loss: Sequence[CharSpan]) -> Ids:
    """Do as `find_loss_runs`, with token i at bytes [places[i], places[i + 1]) of the text."""
    edges = sorted({edge for span in loss for edge in span})
    sizes = [len(text[a:b].encode()) for a, b in zip([0, *edges], edges, strict=False)]
    byte_of = dict(zip(edges, np.cumsum(sizes).tolist(), strict=True))
    offsets = np.stack([places[:-1], places[1:]], axis=1)
    return find_loss_runs(offsets, [(byte_of[a], byte_of[b]) for a, b in loss])


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of Rust code, which is not an Exception and whose class cannot be imported."""
    return type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split())
