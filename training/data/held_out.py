"""Evaluation where no document is held out: switched off with a line, or refused where the run depends on it.

`data.validation_share` is a share of documents chosen by content hash, so that of a few documents often none is.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from data_prep.errors import UserError
from data_prep.prepare import Prepared
from data_prep.store import Store
from training.config import LoadedConfig

logger = logging.getLogger("redline.data")

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
