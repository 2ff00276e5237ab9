"""What little data does to a run: said in a line, or refused where the run depends on it.

`data.validation_share` is a share of documents chosen by content hash, so that of a few documents often none is held
out. Few rows make few steps, and the first of them are warm-up.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from transformers import TrainingArguments

from data_prep.errors import UserError
from data_prep.prepare import Prepared
from data_prep.store.store import Store
from training.config import LoadedConfig

logger = logging.getLogger("redline.data")

_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
_ADVICE = "raise data.validation_share, or give a source with split: validation"


def without_empty_evaluation(loaded: LoadedConfig, prepared: Prepared) -> LoadedConfig:
    """`loaded`, with `training.eval_strategy: no` where the store holds no validation document.

    Raises UserError when the best checkpoint is to be chosen by an evaluation. Of a stream it is known only later.
    """
    config = loaded.config
    if prepared.store_dir is None or config.argument("eval_strategy") == "no":
        return loaded
    splits = Store.open(prepared.store_dir).manifest.splits
    validation, train = (splits[name].documents if name in splits else 0 for name in ("validation", "train"))
    if validation:
        return loaded
    fact = f"none of {train:,} documents is held out (data.validation_share: {config.data.validation_share:g})"
    for name in ("load_best_model_at_end", "metric_for_best_model"):
        if config.argument(name):
            raise UserError(f"training.{name}: needs an evaluation, and {fact}: {_ADVICE}")
    logger.warning("evaluation is off: %s; to have one, %s", fact, _ADVICE)
    training = {name: value for name, value in config.training.items() if name not in ("eval_on_start", "eval_delay")}
    if training.get("save_strategy") == "best":
        raise UserError(f"training.save_strategy: best needs an evaluation, and {fact}: {_ADVICE}")
    return replace(loaded, config=config.model_copy(update={"training": training | {"eval_strategy": "no"}}))


def warn_of_few_rows(num_rows: int, rows_per_step: int) -> None:
    """One line when a step sees rows more than once: the loss then says little about anything else."""
    if 0 < num_rows < rows_per_step:
        logger.warning(
            "%d rows to train on, fewer than the %d of one step: a step sees some more than once; lower "
            "training.per_device_train_batch_size or gradient_accumulation_steps, or data.seq_len",
            num_rows, rows_per_step,
        )  # fmt: skip


def warn_of_warmup(args: TrainingArguments) -> None:
    """One line when warm-up takes every step: the rate is 0 in the first, so that one step alone learns nothing."""
    steps, warmup = args.max_steps, args.get_warmup_steps(args.max_steps)
    if 0 < steps <= warmup and args.lr_scheduler_type not in _WITHOUT_WARMUP:
        logger.warning(
            "warm-up takes all %d steps (training.warmup_steps: %g): the rate ends at %.3g of %.3g%s; raise "
            "training.num_train_epochs or max_steps, or lower gradient_accumulation_steps or training.warmup_steps",
            steps, args.warmup_steps, args.learning_rate * (steps - 1) / warmup, args.learning_rate,
            ", and nothing is learnt" * (steps == 1),
        )  # fmt: skip
