"""Bytes of tokens by hand, for each kind of tokenizer, and against the text that ids decode to."""

import math
from typing import cast

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.data.batch import BatchInfo
from training.data.collator import BATCH_INFO, Collator
from training.data.dataset import Row
from training.data.token_bytes import count_token_bytes, fingerprint_cuts
from training.metrics import names
from training.trainers.text_counter import TextCounter, find_bits_per_byte

TEXT = "Grüße, 漢字 😀\n\tand  more words; more words"


def train_byte_level(vocab_size: int) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_byte_level_tokens_sum_to_the_bytes_of_the_text():
    tokenizer = train_byte_level(280)
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer.add_tokens(["<think>"])
    counted = count_token_bytes(tokenizer)
    assert counted is not None and len(counted) == len(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert len(ids) < len(TEXT.encode()) and counted[ids].sum() == len(TEXT.encode())
    assert counted[cast(int, tokenizer.eos_token_id)] == 0 and counted[tokenizer.convert_tokens_to_ids("<think>")] == 7


def test_pieces_of_sentencepiece_and_of_wordpiece():
    vocabulary = [("<unk>", 0.0), ("▁ab", -1.0), ("ü", -2.0), ("<0x0A>", -3.0), ("▁", -4.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    pieces = PreTrainedTokenizerFast(tokenizer_object=backend)
    counted = count_token_bytes(pieces)
    assert counted is not None and counted[1:].tolist() == [3, 2, 1, 1]
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##able": 2}, unk_token="[UNK]"))
    backend.add_special_tokens([AddedToken("[UNK]", special=True)])
    counted = count_token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert counted is not None and counted.tolist() == [0, 3, 4]


def test_tokenizers_are_the_same_when_they_cut_text_alike():
    one, other, larger = train_byte_level(270), train_byte_level(270), train_byte_level(280)
    other.add_special_tokens({"pad_token": "<pad>"})
    other.chat_template = "{{ messages }}"
    assert fingerprint_cuts(one) == fingerprint_cuts(other) != fingerprint_cuts(larger)


def test_a_batch_counts_the_bytes_of_what_carries_loss():
    token_bytes = np.array([0, 1, 2, 4, 8], np.int32)
    ids, labels = np.array([4, 1, 2, 3], np.int32), np.array([4, -100, 2, 3], np.int32)  # the first is not predicted
    collator = Collator(0, 6, 2, "none", token_bytes=token_bytes)
    assert collator([Row(ids, labels, [4])])[BATCH_INFO].loss_bytes == 2 + 4
    assert Collator(0, 6, 2, "none")([Row(ids, labels, [4])])[BATCH_INFO].loss_bytes == 0


def test_bits_per_byte_by_hand():
    """5 + 3 tokens of 2.1 nats spell 20 + 12 bytes: 8 x 2.1 / ln 2 / 32."""
    counter = TextCounter()
    for tokens, text_bytes in ((5, 20), (3, 12)):
        counter.add(BatchInfo(1, 8, 8, 8, tokens, [8], loss_bytes=text_bytes))
    record = counter.take_record(2.1, None)  # pyright: ignore[reportArgumentType]  one rank: no device is asked
    assert record == {names.TRAIN_BITS_PER_BYTE: pytest.approx(8 * 2.1 / math.log(2) / 32)}
    assert counter.take_record(2.1, None) == {}  # pyright: ignore[reportArgumentType]
    assert (counter.take_bytes(), counter.take_bytes()) == (32, 0)
    assert find_bits_per_byte(3.0, 0) is None
