"""Documents to token ids, by gigatoken where that is the same, else by HF tokenizers.

Which one is decided once per build (`encoder_choice.py`). On one core gigatoken encodes 100 MB/s of source code and HF
tokenizers 1 to 2.5 MB/s.

The loss mask needs to know where each token stands in the text. gigatoken does not say it, but the tokens of a
byte-level tokenizer are pieces of the text itself: where the decoded tokens are the text, byte for byte, the running
sum of their sizes is their place. That is checked for each batch. A document for which it does not hold (a normalizer
changed it), or that has a byte for which the vocabulary has no token, goes through HF tokenizers alone, and is counted.
So does one whose words spell a special token (`literal_encoding`), with either library.
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
    """Documents as one array: document i is `ids[offsets[i]:offsets[i + 1]]`; `loss_runs[i]` holds flattened
    [start, end) token ranges within it, None where every token carries loss. `fallbacks` counts the documents that
    gigatoken could not do; `spelled` holds, by document, the first special token that its own words spell."""

    ids: Ids
    offsets: Offsets
    loss_runs: list[Ids | None]
    fallbacks: int = 0
    spelled: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> "EncodedBatch":
        """`count` documents without tokens."""
        return cls(np.empty(0, np.int32), np.zeros(count + 1, np.int64), [None] * count)


class Encoder:
    """Encodes batches of documents with one of the two libraries. `in_text` says what becomes of special tokens that
    their words spell (data.special_tokens_in_text); those of a chat template are always tokens."""

    def __init__(self, tokenizer: LoadedTokenizer, name: EncoderName, in_text: SpecialInText = "text"):
        self.tokenizer = tokenizer
        self.name = name
        self._literal = LiteralEncoder(tokenizer) if in_text != "token" else None
        self._giga = _Gigatoken(tokenizer.backend, tokenizer.vocab_size) if name == "gigatoken" else None

    def encode_documents(self, documents: Sequence[Document]) -> EncodedBatch:
        """Whole documents, texts or chats. Texts get the end-of-document token, and a leading one where the tokenizer
        itself puts one."""
        if self._giga is None:
            batch, left = EncodedBatch.empty(len(documents)), list(range(len(documents)))
        else:
            batch, left = self._giga.encode(documents)
        batch = self._encode_exactly(documents, left, batch) if left else batch
        batch = self._encode_literally(documents, batch)
        return batch if all(document.is_chat for document in documents) else self._add_ends(batch, documents)

    def _encode_exactly(self, documents: Sequence[Document], chosen: list[int], batch: EncodedBatch) -> EncodedBatch:
        """The batch with the chosen documents encoded by HF tokenizers."""
        texts = [documents[i].text for i in chosen]
        encodings = dict(zip(chosen, self._encode_hf(texts), strict=True))
        runs = list(batch.loss_runs)
        for i, encoding in encodings.items():
            loss = documents[i].loss
            runs[i] = None if loss is None else find_loss_runs(encoding.offsets, loss)
        ids = {i: np.array(encoding.ids, np.int32) for i, encoding in encodings.items()}
        return EncodedBatch(*_replace(batch.ids, batch.offsets, ids), runs, len(chosen))

    def _encode_literally(self, documents: Sequence[Document], batch: EncodedBatch) -> EncodedBatch:
        """The batch with the documents whose words spell special tokens encoded as text there."""
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
        """With the end token, and the leading one, of each text; chats have theirs from their template."""
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
    """gigatoken's encoder for one tokenizer. `_sizes[id]` is the number of bytes of a token, shape (words,)."""

    def __init__(self, backend: Tokenizer, vocab_size: int):
        self._json, self._vocab_size = _fill_byte_gaps(backend.to_str(), vocab_size), vocab_size
        self._load()

    def _load(self) -> None:
        self._tokenizer = gigatoken.Tokenizer.from_json(self._json)
        vocab = self._tokenizer.vocab
        self._sizes = np.zeros(max(vocab) + 1, np.int32)
        self._sizes[list(vocab)] = [len(token) for token in vocab.values()]

    def encode(self, documents: Sequence[Document]) -> tuple[EncodedBatch, list[int]]:
        """The batch without end tokens, and the numbers of the documents that have to be encoded otherwise."""
        texts = [document.text for document in documents]
        runs: list[Ids | None] = [None] * len(texts)
        try:
            # One by one: a batch comes back as an awkward array, whose import costs each worker 0.5 s and 30 MB.
            encoded = [self._tokenizer.encode(text) for text in texts]
        except BaseException as error:
            if not is_panic(error):
                raise
            logger.warning("encoder: gigatoken panicked (%s): tokenizers does this batch", one_line(error))
            self._load()  # whatever state it was left in is thrown away
            return EncodedBatch.empty(len(texts)), list(range(len(texts)))
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
        ids = np.concatenate(encoded).view(np.int32)
        left = self._find_gaps(ids, offsets)
        masked = [i for i, document in enumerate(documents) if document.loss is not None]
        if masked:
            places = np.concatenate([[0], np.cumsum(self._sizes[ids], dtype=np.int64)])  # in the batch, in bytes
            left |= self._find_unspelled(ids, offsets, places, texts)
            for i in masked:
                if i not in left:
                    mine = places[offsets[i] : offsets[i + 1] + 1] - places[offsets[i]]
                    runs[i] = _find_runs_by_bytes(mine, texts[i], documents[i].loss or [])
        return EncodedBatch(ids, offsets, runs), sorted(left)

    def _find_gaps(self, ids: Ids, offsets: Offsets) -> set[int]:
        """Numbers of documents with a byte for which the vocabulary has no token."""
        if len(self._sizes) == self._vocab_size or not len(ids) or int(ids.max()) < self._vocab_size:
            return set()
        places = np.flatnonzero(ids >= self._vocab_size)
        return set((np.searchsorted(offsets, places, side="right") - 1).tolist())

    def _find_unspelled(self, ids: Ids, offsets: Offsets, places: Offsets, texts: list[str]) -> set[int]:
        """Numbers of texts that their tokens do not spell byte for byte. Usually one comparison for the whole batch."""
        data = [text.encode() for text in texts]
        is_wrong = np.diff(places[offsets]) != [len(text) for text in data]
        if not is_wrong.any() and self._decode(ids) == b"".join(data):
            return set()
        pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        return {i for i, (a, b) in enumerate(pairs) if is_wrong[i] or self._decode(ids[a:b]) != data[i]}

    def _decode(self, ids: Ids) -> bytes:
        return self._tokenizer.decode(ids.view(np.uint32))


def _fill_byte_gaps(tokenizer_json: str, vocab_size: int) -> str:
    """gigatoken refuses a byte-level vocabulary without a token for each byte (SmolLM2 lacks 21). Those missing get ids
    past the vocabulary: where one comes out, the document is encoded by tokenizers."""
    value = orjson.loads(tokenizer_json)
    if value["model"]["type"] != "BPE" or (value["decoder"] or {}).get("type") != "ByteLevel":
        return tokenizer_json
    vocab = value["model"]["vocab"]
    missing = [symbol for symbol in byte_symbols() if symbol not in vocab]
    vocab.update({symbol: vocab_size + i for i, symbol in enumerate(missing)})
    return orjson.dumps(value).decode()


def _replace(ids: Ids, offsets: Offsets, others: dict[int, Ids]) -> tuple[Ids, Offsets]:
    """The batch with some of its documents exchanged."""
    pairs = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    pieces = [others[i] if i in others else ids[a:b] for i, (a, b) in enumerate(pairs)]
    lengths = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return np.concatenate(pieces), np.concatenate([[0], lengths])


def _find_runs_by_bytes(places: Offsets, text: str, loss: Sequence[CharSpan]) -> Ids:
    """As `find_loss_runs`; token i of the text is its bytes [places[i], places[i + 1])."""
    edges = sorted({edge for span in loss for edge in span})
    sizes = [len(text[a:b].encode()) for a, b in zip([0, *edges], edges, strict=False)]
    byte_of = dict(zip(edges, np.cumsum(sizes).tolist(), strict=True))
    offsets = np.stack([places[:-1], places[1:]], axis=1)
    return find_loss_runs(offsets, [(byte_of[a], byte_of[b]) for a, b in loss])


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked: that is no Exception, and its class cannot be imported."""
    return type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """The error's text without line breaks, at most 200 characters."""
    return " ".join(str(error).split())
