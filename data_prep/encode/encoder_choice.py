"""Chooses the encoding library for each build by comparing both on a sample of its data.

The sample has about 512 kB of documents from parts that are spread evenly over each source, including the last part.
Of each part, it has the first documents and the first one that is not plain ASCII. Texts on which tokenizers are known
to disagree are added.

Observed with gigatoken 0.10: identical ids for trained byte-level BPEs, GPT-2, MiniMind and Qwen3, and for SmolLM2's
vocabulary, which lacks tokens for 21 bytes (HF tokenizers encode documents with such bytes). Not supported: a
pre-tokenizer that splits digits without a regular expression (`Digits`, as in SmolLM2's own tokenizer.json).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from data_prep.encode.encoding import EncodedBatch, Encoder, EncoderName, is_panic, one_line
from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.options import SpecialInText
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord, Record
from data_prep.render.documents import Document, LeftOut

logger = logging.getLogger("redline.data")

SAMPLE_CHARACTERS = 512 * 1024
SAMPLE_PARTS = 32
LOOKED_AT = 200  # documents of a part that are searched for one that is not ASCII
PROBES = (  # normal forms, scripts, white space, digits, contractions
    "caf\u00e9 cafe\u0301 \u212b \uff21\ufb01 \u0958 stra\u00dfe I\u0307 \u732b\u5750\u5728\u57ab\u5b50\u4e0a\uff0c"
    "\u56db\uff01 \ud55c\uad6d\uc5b4 \u0639\u0631\u0628\u064a \u0e44\u0e17\u0e22 \U0001f408\u200d\u2b1b\U0001f1eb",
    " \t\n\r\n  x\u00a0\u3000y \n\n  \x00\x01\x1c\x7f\x85\u2028\ufeff\ufffd ",
    "it's IT'S I'd'll 'tis 3.14159 1,000,000 12345678 \u0664\u0665 x\u00b2 0x1F __init__ a_b-c//d {{}}!!??...",
)


def sample_documents(
    parts: Sequence[Part], read: Callable[[Part], Iterable[Document | BadRecord | LeftOut]]
) -> Iterator[Document]:
    """Yield documents from parts of every source; `read` returns those of one part."""
    sources = sorted({part.source for part in parts})
    for source in sources:
        mine = [part for part in parts if part.source == source]
        chosen = np.unique(np.linspace(0, len(mine) - 1, min(len(mine), SAMPLE_PARTS)).round().astype(int)).tolist()
        for index in chosen:
            yield from _sample_part(read(mine[index]), SAMPLE_CHARACTERS // len(sources) // len(chosen))


def _sample_part(documents: Iterable[Document | BadRecord | LeftOut], left: int) -> Iterator[Document]:
    """Yield the first `left` characters, and if these are all ASCII, the next document that is not."""
    found = False
    for document in islice(documents, LOOKED_AT):
        if not isinstance(document, Document):
            continue
        is_plain = document.text.isascii()
        if left > 0 or not (found or is_plain):
            found = found or not is_plain
            cut = _cut(document, max(left, SAMPLE_CHARACTERS // 16))
            left -= len(cut.text)
            yield cut
        if left <= 0 and found:
            return


def _cut(document: Document, size: int) -> Document:
    """Cut a document after `size` characters, with its loss spans."""
    if len(document.text) <= size:
        return document
    loss = None if document.loss is None else [(a, min(b, size)) for a, b in document.loss if a < size]
    spelled = [(a, b) for a, b in document.spelled if b <= size]
    return replace(document, text=document.text[:size], loss=loss, rejected=None, spelled=spelled)


def choose_encoder(
    tokenizer: LoadedTokenizer, sample: Sequence[Document], in_text: SpecialInText = "text"
) -> EncoderName:
    """Choose gigatoken if its ids and masks equal those of HF tokenizers on the sample and the probes; log the choice.

    Otherwise the result is "tokenizers".
    """
    special = [*tokenizer.special_tokens.values()]
    texts = [*PROBES, "a ".join([*special, " ", *special]), "".join(special)]
    # Probes are chats, so that their special tokens are encoded as tokens.
    probes = [Document(text, b"", Record(None, "probe", "text", i), is_chat=True) for i, text in enumerate(texts)]
    checked = [*sample, *probes]
    what = f"{len(sample)} documents, {sum(len(document.text.encode()) for document in sample) // 1000} kB"
    exact = Encoder(tokenizer, "tokenizers", in_text).encode_documents(checked)
    try:
        fast = Encoder(tokenizer, "gigatoken", in_text).encode_documents(checked)
    except BaseException as error:  # HF tokenizers can load what gigatoken cannot
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        logger.info("encoder: tokenizers (gigatoken does not support this tokenizer: %s)", one_line(error))
        return "tokenizers"
    if fast.fallbacks > len(checked) // 2:
        logger.info("encoder: tokenizers (gigatoken cannot encode %d documents of %s)", fast.fallbacks, what)
        return "tokenizers"
    if not _is_same(fast, exact):
        logger.info("encoder: tokenizers (gigatoken gives different ids or masks on %s)", what)
        return "tokenizers"
    logger.info("encoder: gigatoken (same ids and masks as tokenizers on %s)", what)
    return "gigatoken"


def _is_same(one: EncodedBatch, two: EncodedBatch) -> bool:
    masks = zip(one.loss_runs, two.loss_runs, strict=True)
    same_masks = all(a is b is None or (a is not None and b is not None and np.array_equal(a, b)) for a, b in masks)
    return same_masks and np.array_equal(one.offsets, two.offsets) and np.array_equal(one.ids, two.ids)
