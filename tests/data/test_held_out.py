"""No document is held out: evaluation goes off with a line, or the run is refused where it depends on it."""

import json

import pytest
from transformers import TrainingArguments

from data_prep.errors import UserError
from data_prep.prepare import prepare
from training.config import load_config
from training.data.held_out import warn_of_few_rows, warn_of_warmup, without_empty_evaluation


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """`stored(number of documents, share, *flags)`: the recipe and its store."""
    folder = tmp_path_factory.mktemp("stores")

    def build(count, share, *flags):
        file = folder / f"{count}.jsonl"
        file.write_text(
            "".join(json.dumps({"text": f"document {number} of some words"}) + "\n" for number in range(count))
        )
        argv = [f"data.sources=[{{path: {file}}}]", f"--store_dir={folder}", f"--validation_share={share}"]
        loaded = load_config([*argv, "--vocab_size", "300", "--num_proc", "1", *flags])
        return loaded, prepare(loaded.config.data, loaded.config.tokenizer)

    return build


@pytest.mark.parametrize(("count", "share"), [(1, 0.02), (4, 0.001), (4, 0)])
def test_evaluation_goes_off_with_one_line(stored, caplog, count, share):
    caplog.clear()
    loaded = without_empty_evaluation(*stored(count, share, "--eval_strategy", "steps"))
    assert loaded.config.argument("eval_strategy") == "no"
    (line,) = [record.message for record in caplog.records if "evaluation is off" in record.message]
    assert f"none of {count} documents is held out (data.validation_share: {share:g})" in line


def test_it_stays_on_with_a_document(stored):
    loaded, prepared = stored(40, 0.5)
    assert without_empty_evaluation(loaded, prepared) is loaded


@pytest.mark.parametrize(
    "flags", [["--load_best_model_at_end", "--eval_steps", "30"], ["--metric_for_best_model", "eval_loss"]]
)
def test_a_best_checkpoint_needs_an_evaluation(stored, flags):
    loaded, prepared = stored(1, 0.02, *flags)
    with pytest.raises(UserError, match="needs an evaluation, and none of 1 documents is held out"):
        without_empty_evaluation(loaded, prepared)


@pytest.mark.parametrize(("rows", "said"), [(2, True), (64, False), (100, False)])
def test_fewer_rows_than_a_step_has(caplog, rows, said):
    caplog.clear()
    warn_of_few_rows(rows, 64)
    assert ("2 rows to train on, fewer than the 64 of one step: a step sees some more than once" in caplog.text) == said


@pytest.mark.parametrize(
    ("steps", "warmup", "schedule", "said"),
    [
        (
            1,
            0.03,
            "cosine",
            "warm-up takes all 1 steps (training.warmup_steps: 0.03): the rate ends at 0 of 0.001, and",
        ),
        (5, 10, "linear", "warm-up takes all 5 steps (training.warmup_steps: 10): the rate ends at 0.0004 of 0.001; "),
        (5, 4, "linear", ""),
        (1, 0, "linear", ""),
        (1, 0.03, "constant", ""),
    ],
)
def test_steps_that_are_all_warm_up(tmp_path, caplog, steps, warmup, schedule, said):
    args = TrainingArguments(
        str(tmp_path), max_steps=steps, warmup_steps=warmup, lr_scheduler_type=schedule, learning_rate=1e-3
    )
    warn_of_warmup(args)
    assert caplog.text.count("warm-up") == bool(said) and said in caplog.text
