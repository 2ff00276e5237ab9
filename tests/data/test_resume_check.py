"""Whatever moves a row is named at a resume; what moves none is free."""

import json
from pathlib import Path

import pytest

from data_prep.encode.tokenizer import train_tokenizer
from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.prepare import prepare
from data_prep.store.store import Store
from data_prep.stream import stream
from tests.data_prep.conftest import make_texts, write_jsonl
from training.data.resume_check import check_same_order, describe_order

CHECKPOINT = Path("run/checkpoint-3")
OF_THE_ORDER = {
    "seq_len": 32, "packing": "wrapped", "long_documents": "drop", "seed": 5, "max_tokens_per_batch": 512,
    "group_by_length": True,
}  # fmt: skip
FREE = {"num_workers": 3, "verify_packing": False, "num_proc": 1, "pad_to_multiple_of": 8}


def build_data(source: Path, weight: float = 1.0, **options) -> DataSection:
    sources = [{"path": str(source), "weight": weight}]
    given = {"sources": sources, "store_dir": str(source.parent / "stores"), "packing": "none", **options}
    return DataSection.model_validate(given)


@pytest.fixture
def order_of(tmp_path: Path):
    """`order_of(number of texts, …)`: the order of a recipe, as a checkpoint gives it back."""
    train_tokenizer(make_texts(50), TokenizerSection.model_validate({"vocab_size": 400}), tmp_path / "tokenizer")
    tokenizer = TokenizerSection.model_validate({"path": str(tmp_path / "tokenizer")})

    def build(count: int = 50, **options):
        data = build_data(write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(count)]), **options)
        prepared = prepare(data, tokenizer)
        source = prepared.stream or Store.open(prepared.store_dir or "")
        return json.loads(json.dumps(describe_order(source, data)))

    return build


def test_each_option_that_moves_rows_is_named_with_both_values(order_of):
    before = order_of()
    for key, value in OF_THE_ORDER.items():
        now = order_of(**{key: value})
        with pytest.raises(UserError, match=f"data.{key} was .*, is .*--resume never") as caught:
            check_same_order(CHECKPOINT, before, now)
        assert str(CHECKPOINT) in str(caught.value) and json.dumps(value) in str(caught.value)
    with pytest.raises(UserError, match=r"weight was \[1.0\], is \[2.5\]"):
        check_same_order(CHECKPOINT, before, order_of(weight=2.5))


def test_what_moves_no_row_is_free(order_of):
    check_same_order(CHECKPOINT, order_of(), order_of(**FREE))


def test_padding_counts_where_it_cuts_batches(order_of):
    budget = {"max_tokens_per_batch": 512}
    with pytest.raises(UserError, match="pad_to_multiple_of was 64, is 8"):
        check_same_order(CHECKPOINT, order_of(**budget), order_of(**budget, pad_to_multiple_of=8))


@pytest.mark.parametrize("streaming", [False, True])
def test_other_data_is_noticed(order_of, streaming: bool, monkeypatch):
    monkeypatch.setattr(stream, "UNIT_BYTES", 4000)
    before = order_of(streaming=streaming)
    check_same_order(CHECKPOINT, before, order_of(streaming=streaming))
    with pytest.raises(UserError, match=r"(token store|content) of data.sources was \"\w+\", is \"\w+\": resume with"):
        check_same_order(CHECKPOINT, before, order_of(51, streaming=streaming))


def test_a_stream_and_a_store_do_not_go_on_from_each_other(order_of):
    store, streamed = order_of(), order_of(streaming=True)
    for before, now in ((store, streamed), (streamed, store)):
        with pytest.raises(
            UserError, match=r"here, .*left: data.streaming was (true|false), is (true|false): resume with"
        ):
            check_same_order(CHECKPOINT, before, now)
