"""`perf.micro_batch_size: auto`: the largest micro-batch that fits, chosen by the plan and confirmed by a trial.

The rows of an optimizer step are the recipe's, per_device_train_batch_size x gradient_accumulation_steps on each rank,
to the row; only how many of them are computed at once is chosen, so only their divisors come into question.

1. Each rank takes the largest divisor whose planned peak fits in what its device has free; the smallest of all ranks'
   is tried. On a CPU a share of the available memory is left alone and the rest divided by the ranks on it
   (`training/memory/available.py`).
2. The trial is a throwaway run: another trainer, built by the same code, takes two optimizer steps on rows of random
   tokens, in an empty directory. The second has the optimizer's states, so its peak is that of training. Out of memory
   on any rank: the next smaller divisor.
3. Of the trial nothing stays: model, optimizer, data and run directory are built again for the run, which seeds itself,
   so it trains what it would train had its sizes been written in the recipe (tested).

Costs a few traces of the model and the trial: its start and two steps of at most two micro-batches. When one of
several ranks alone runs out of memory inside a collective, the others wait for it until `training.ddp_timeout`.
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_prep.errors import UserError
from data_prep.prepare import Prepared
from data_prep.progress import progress
from training.config import Config, LoadedConfig
from training.data.collator import Collator
from training.data.dataset import Row
from training.launch import World
from training.memory.available import measure_free_bytes
from training.memory.run_plan import Planner
from training.models.planned import build_planned_model
from training.ranks import gather_floats
from training.run.build import build_trainer, build_training_arguments
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")

GIB = 2**30
TRIAL_STEPS = 2


def fit_micro_batch(loaded: LoadedConfig, prepared: Prepared, world: World, device: torch.device) -> LoadedConfig:
    """`loaded` with the largest micro-batch that fits. Collective.

    Afterwards every TrainingArguments built before is stale. Raises UserError when not even one row fits.
    """
    rows = count_rows(loaded.config)
    unset_hf_deepspeed_config()  # or, under ZeRO-3, the plan's model would be partitioned
    planner = Planner(loaded, partial(build_planned_model, loaded.config), world.size, on_gpu=device.type == "cuda")

    def predict(size: int) -> int:
        return planner.predict_peak(size, accumulates=size < rows)

    budget = measure_free_bytes(device, world.local_size)
    planned = int(min(gather_floats(float(find_largest_fitting(predict, rows, budget)), device)))
    evaluation = planner.estimate_evaluation()
    if evaluation and evaluation.device_peak > budget:
        logger.warning(
            "evaluation of %d rows is planned to take %.2f of %.2f GiB: lower training.per_device_eval_batch_size",
            evaluation.rows, evaluation.device_peak / GIB, budget / GIB,
        )  # fmt: skip
    for size in (divisor for divisor in find_divisors(rows) if divisor <= planned):
        chosen = with_micro_batch(loaded, size)
        if try_training(chosen, prepared, world, device):
            logger.info(
                "micro-batch: %d x %d accumulated = %d rows a rank and step (auto: planned peak %.2f of %.2f GiB, "
                "the plan's choice %d, confirmed by %d trial steps)",
                size, rows // size, rows, predict(size) / GIB, budget / GIB, planned, TRIAL_STEPS,
            )  # fmt: skip
            return chosen
        logger.info("micro-batch: out of memory in a trial step of %d rows, trying fewer", size)
    raise UserError("perf.micro_batch_size: not even one row fits: shorten data.seq_len, or shard or offload the model")


def count_rows(config: Config) -> int:
    """Rows of one rank in one optimizer step."""
    micro = int(config.argument("per_device_train_batch_size"))
    return micro * int(config.argument("gradient_accumulation_steps") or 1)


def with_micro_batch(loaded: LoadedConfig, size: int) -> LoadedConfig:
    """The same rows a step, `size` of them at once."""
    return _with_training(
        loaded, per_device_train_batch_size=size, gradient_accumulation_steps=count_rows(loaded.config) // size
    )


def _with_training(loaded: LoadedConfig, **values: Any) -> LoadedConfig:
    config = loaded.config.model_copy(update={"training": {**loaded.config.training, **values}})
    return replace(loaded, config=config)


def find_divisors(number: int) -> list[int]:
    """Largest first."""
    return [divisor for divisor in range(number, 0, -1) if number % divisor == 0]


def find_largest_fitting(predict: Callable[[int], int], rows: int, budget: int) -> int:
    """The largest divisor of `rows` whose predicted bytes are within `budget`; 1 when none is, for the trial to judge.

    Bisection, as memory only grows with the micro-batch.
    """
    divisors = find_divisors(rows)[::-1]
    low, high = 0, len(divisors)  # the answer is in divisors[low:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if predict(divisors[middle]) <= budget else (low, middle)
    return divisors[low]


# ---- the trial ----


def try_training(loaded: LoadedConfig, prepared: Prepared, world: World, device: torch.device) -> bool:
    """Whether a throwaway run of `loaded` takes its steps on every rank. Collective; leaves nothing behind."""
    accumulation = int(loaded.config.argument("gradient_accumulation_steps") or 1)
    trial = _as_trial(_with_training(loaded, gradient_accumulation_steps=min(2, accumulation)))
    ran_out = False
    rows = loaded.config.argument("per_device_train_batch_size")
    trying = progress(f"micro-batch: trying {rows} rows")
    with trying, tempfile.TemporaryDirectory(prefix="redline-trial-") as directory, _quiet():
        try:
            _train_once(trial, prepared, RunDir(Path(directory)), world, device)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            ran_out = True
        gc.collect()  # not within the except block: there the traceback holds the step's tensors
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    return not any(gather_floats(float(ran_out), device))


def _as_trial(loaded: LoadedConfig) -> LoadedConfig:
    """Without what a run writes, measures and evaluates."""
    changed = _with_training(
        loaded, max_steps=TRIAL_STEPS, num_train_epochs=1, report_to="none", eval_strategy="no", save_strategy="no",
        load_best_model_at_end=False,
    )  # fmt: skip
    config = changed.config.model_copy(
        update={
            "perf": changed.config.perf.model_copy(update={"enabled": False, "profile_steps": None}),
            "monitor": changed.config.monitor.model_copy(update={"plot_every": 0}),
            "data": changed.config.data.model_copy(update={"verify_packing": False}),
        }
    )
    return replace(changed, config=config)


def _train_once(loaded: LoadedConfig, prepared: Prepared, run_dir: RunDir, world: World, device: torch.device) -> None:
    args = build_training_arguments(loaded, run_dir, device, world)
    trainer = build_trainer(loaded, prepared, run_dir, args, world)
    try:
        collator: Any = trainer.data_collator
        model: Any = trainer.model
        vocabulary = int(model.config.get_text_config().vocab_size)
        trainer.train_batches = FullBatches(collator, args.train_batch_size, vocabulary, device)
        trainer.train()
    finally:
        trainer.close()
        engine: Any = trainer.deepspeed if trainer.is_deepspeed_enabled else None
        if engine is not None:
            engine.destroy()
        trainer.accelerator.free_memory()


@dataclass
class FullBatches:
    """`TrainBatches` of full rows of random tokens, two documents in each where rows are packed, and one row a token
    short where they are not: so attention gets the mask that costs memory."""

    collator: Collator
    rows: int
    vocabulary: int
    device: torch.device
    position: int = 0
    epoch: float = 0.0
    passes: float = 0.0

    def start(self, position: Any, copy_span: Any = nullcontext) -> None:
        """Nothing to start from."""

    def count_steps(self, num_epochs: float, gradient_accumulation_steps: int) -> int:
        """As many as a trial takes."""
        return TRIAL_STEPS

    def describe_rows(self, row_ids: Sequence[Any]) -> str:
        """Made-up rows have no origin."""
        return "random tokens"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        packed = self.collator.packing != "none"
        width = self.collator.seq_len
        lengths = [width] * self.rows if packed else [width - 1, *[width] * (self.rows - 1)]
        draw = np.random.default_rng(0)
        rows = []
        for length in lengths:
            ids = draw.integers(self.vocabulary, size=length, dtype=np.int32)
            rows.append(Row(ids, ids, [length // 2, length - length // 2] if packed else [length]))
        return self.collator(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """The run will say the same again."""
    root = logging.getLogger("redline")
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)
