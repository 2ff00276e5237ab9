"""Losses of other tokenizers are compared in bits per byte, or not at all; never in nats per token."""

import json

import pytest

from tests.reporting.conftest import CONFIG, make_records, to_lines
from training.comparing.comparison import compare
from training.comparing.page import format_page
from training.comparing.picture import draw_comparison
from training.comparing.sides import load_side
from training.metrics import names

BITS = (names.TRAIN_BITS_PER_BYTE, names.EVAL_BITS_PER_BYTE)
NATS = (names.TRAIN_LOSS, names.EVAL_LOSS)


@pytest.fixture
def write(tmp_path):
    """A run whose tokens are of `width` bytes; its loss is that of all others in bits per byte."""

    def write_run(name, cuts, width=None, tokenizer="null"):
        records = make_records(400, 5, seed=len(name))
        for record in records:
            for loss, bits in zip(NATS, BITS, strict=True):
                if loss in record and width:
                    record[bits] = record[loss] / 4
                    record[loss] = record[bits] * width
            record |= {"text_bytes": record["tokens"] * width} if width else {}
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.jsonl").write_text(to_lines(records))
        (run / "config.yaml").write_text(f"{CONFIG}tokenizer:\n  path: {tokenizer}\n")
        (run / "events.jsonl").write_text(json.dumps({"step": 0, "kind": "start", "tokenizer_cuts": cuts}) + "\n")
        return load_side(name.upper(), [run])

    return write_run


def compare_two(*sides):
    comparison = compare(sides)
    return comparison, comparison.pairs[0], format_page(comparison)


def test_one_tokenizer_shows_both_units(write):
    comparison, pair, page = compare_two(write("a", "x", 4), write("b", "x", 4))
    assert [(loss.key, loss.axis) for loss in pair.losses] == [
        (names.TRAIN_LOSS, "tokens"), (names.TRAIN_LOSS, "time_s"), (names.EVAL_LOSS, "tokens"),
        (names.TRAIN_BITS_PER_BYTE, "tokens"), (names.EVAL_BITS_PER_BYTE, "tokens"),
    ]  # fmt: skip
    assert "nats per token and bits per byte" in page and "tokenizers" not in page
    units = [loss["unit"] for loss in comparison.as_json()["pairs"][0]["losses"]]
    assert units == ["nats per token"] * 3 + ["bits per byte"] * 2


def test_other_tokenizers_are_compared_in_bits_per_byte_alone(write):
    comparison, pair, page = compare_two(write("a", "x", 4), write("bb", "y", 2))
    assert [(loss.key, loss.axis) for loss in pair.losses] == [
        (names.TRAIN_BITS_PER_BYTE, "text_bytes"), (names.TRAIN_BITS_PER_BYTE, "time_s"),
        (names.EVAL_BITS_PER_BYTE, "text_bytes"),
    ]  # fmt: skip
    assert not any(loss.interval and loss.interval.differs for loss in pair.losses)
    assert names.TRAIN_LOSS not in page and "bytes of text" in page
    assert any("The tokenizers of A and BB differ" in note for note in comparison.notes)
    assert draw_comparison(comparison).startswith(b"\x89PNG")


@pytest.mark.parametrize("widths", [(4, None), (None, None)])
def test_without_a_byte_count_they_are_not_compared(write, widths):
    comparison, pair, page = compare_two(write("a", "x", widths[0]), write("bb", "y", widths[1]))
    assert pair.losses == () and "loss: cannot be compared" in page and "Without a byte count in" in page
    assert "nats per token" not in page.replace("losses in nats per token cannot be compared", "")
    assert draw_comparison(comparison).startswith(b"\x89PNG")


@pytest.mark.parametrize(("paths", "same"), [(("one", "one"), True), (("one", "other"), False)])
def test_runs_of_an_older_version_are_told_apart_by_their_settings(write, paths, same):
    sides = [write(name, None, None, path) for name, path in zip(("a", "b"), paths, strict=True)]
    assert bool(compare(sides).pairs[0].losses) == same
