"""Batches by hand, and against a real model: what a row gives is what its documents give alone."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from data_prep.options import DataSection
from training.data.batch import BATCH_INFO, BatchInfo
from training.data.collator import VARLEN_KEYS, Collator
from training.data.dataset import Row, build_datasets


def row(*documents: list[int]) -> Row:
    labels = [label for document in documents for label in [-100, *document[1:]]]
    ids = [token for document in documents for token in document]
    return Row(np.array(ids, np.int32), np.array(labels, np.int32), [len(document) for document in documents])


def test_packed_rows_have_a_static_shape_and_padding_is_its_own_document():
    batch = Collator(9, 8, 4, "best_fit")([row([1, 2, 3], [4, 5]), row([6] * 8)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 9, 9, 9], [6] * 8]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5, -100, -100, -100], [-100] + [6] * 7]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], list(range(8))]
    assert batch[BATCH_INFO] == BatchInfo(2, 8, 16, 13, 10, [3, 2, 8])
    assert set(batch) == {"input_ids", "labels", "position_ids", BATCH_INFO, *VARLEN_KEYS}
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5, 8, 16]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] is batch["max_length_k"] == 8 and type(batch["max_length_q"]) is int
    assert set(Collator(9, 8, 4, "best_fit", varlen=False)([row([1, 2])])).isdisjoint(VARLEN_KEYS)
    assert {batch[key].dtype for key in ("input_ids", "labels", "position_ids")} == {torch.int64}


def test_unpacked_rows_are_padded_to_a_multiple_with_a_mask():
    batch = Collator(9, 16, 4, "none")([row([1, 2, 3]), row([4] * 5)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 9, 9, 9, 9], [4] * 5 + [9] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]
    assert batch["position_ids"].tolist() == [list(range(8))] * 2
    assert batch[BATCH_INFO] == BatchInfo(2, 8, 16, 8, 6, [3, 5])


def test_no_mask_without_padding_and_no_padding_past_the_row_length():
    assert "attention_mask" not in Collator(9, 16, 4, "none")([row([1] * 8), row([2] * 8)])
    assert Collator(9, 10, 64, "none")([row([1] * 9)])["input_ids"].shape == (1, 10)


def test_boundaries_are_what_transformers_would_find_in_the_positions():
    """The keys of its attention functions, found by its own code; in 5.17 to 5.23 they come before the positions."""
    from transformers.modeling_flash_attention_utils import FlashAttentionKwargs, prepare_fa_kwargs_from_position_ids

    batch = Collator(9, 8, 4, "best_fit")([row([1, 2, 3], [4, 5]), row([6] * 8), row([1], [2], [3] * 6)])
    (query, key), (longest, _) = prepare_fa_kwargs_from_position_ids(batch["position_ids"])
    assert batch["cu_seq_lens_q"].tolist() == query.tolist() == batch["cu_seq_lens_k"].tolist() == key.tolist()
    assert batch["max_length_q"] == int(longest)
    assert set(FlashAttentionKwargs.__annotations__) >= set(VARLEN_KEYS)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}  # its signature has no such keyword
    config = Qwen2Config(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **attention,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def token_losses(model: Qwen2ForCausalLM, batch: dict) -> torch.Tensor:
    """Losses of all predicted tokens, in the order of the batch.

    transformers looks for packed rows only where there is no cache; its Trainer sets `use_cache` to False.
    """
    inputs = {key: value for key, value in batch.items() if key not in (BATCH_INFO, "labels")}
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses[labels.flatten() != -100]


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_documents_in_a_batch_give_the_losses_they_give_alone(model: Qwen2ForCausalLM, make_store, packing):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 128, length).tolist() for length in (5, 17, 9, 30, 12, 3)]
    data = DataSection.model_validate({"seq_len": 32, "packing": packing, "pad_to_multiple_of": 8})
    train, _ = build_datasets(make_store(documents), data)
    rows = [train[i] for i in range(len(train))]
    batch = Collator(0, 32, 8, packing)(rows)
    pieces = [p for r in rows for p in np.split(r.input_ids, np.cumsum(r.document_lengths)[:-1])]
    alone = [token_losses(model, Collator(0, len(p), 1, "none")([row(p.tolist())])) for p in pieces]
    assert sorted(map(len, pieces)) == sorted(map(len, documents))
    together = token_losses(model, batch)
    assert len(together) == batch[BATCH_INFO].loss_tokens == sum(map(len, documents)) - len(documents)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_model_loss_is_the_mean_over_loss_tokens(model: Qwen2ForCausalLM, make_store):
    documents = [[(7 * i + j) % 127 + 1 for j in range(n)] for i, n in enumerate((5, 9, 14))]
    train, _ = build_datasets(make_store(documents), DataSection.model_validate({"seq_len": 16}))
    batch = Collator(0, 16, 8, "best_fit")([train[i] for i in range(len(train))])
    with torch.no_grad():
        loss = model(**{key: value for key, value in batch.items() if key != BATCH_INFO}, use_cache=False).loss
    torch.testing.assert_close(loss, token_losses(model, batch).mean())
