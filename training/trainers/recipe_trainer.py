"""`RecipeTrainer`: `Profiled` with what our recipes add: batches of our own, exact resume, and checks.

The seams beside those of `Profiled`; no part of the training loop is copied:

| seam | what happens there |
|---|---|
| `get_train_dataloader` | the batches of `training/data/loader.py`, which end no epoch: their position does |
| `prepare_measuring` | weights and packing are checked on the model as it will train |
| `_prepare_inputs` | the collator's `BatchInfo` is taken out and counted; `h2d` of what was not copied ahead |
| `optimizer.step`, `_get_grad_norm` | first, all is finite (`finite.py`) |
| `_save_checkpoint` | its record is written, its weights are checked; `saving.py` does the rest |
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from data_prep.progress import progress
from training.callbacks.contract import read_states
from training.callbacks.sinks import Sink
from training.checkpoints.manifest import read_manifest
from training.checkpoints.progress import Progress
from training.checkpoints.store import StoreOptions
from training.data.batch import BATCH_INFO, BatchInfo
from training.data.loader import TrainBatches
from training.data.resume_check import check_same_order
from training.loss.head import find_loss_head
from training.loss.plain import build_loss
from training.loss.terms import PLAIN, LossTerms
from training.metrics import names
from training.metrics.flops import measure_flops
from training.metrics.throughput import Meter
from training.ranks import gather_floats, sum_over_ranks
from training.run_dir import RunDir, keep_finite
from training.stop_signals import Stopped
from training.trainers.evaluation import TokenMeanEvaluation
from training.trainers.finite import FiniteCheck, check_weights, guard_step
from training.trainers.packing import check_documents_apart
from training.trainers.profiled_trainer import Profiled
from training.trainers.progress_keeper import ProgressKeeper
from training.trainers.resumed_options import AsBuilt, apply_changes
from training.trainers.saving import StagedSaves
from training.trainers.setup_errors import explain_setup_errors
from training.trainers.skipped_steps import SkippedSteps
from training.trainers.text_counter import TextCounter


@dataclass(frozen=True)
class RecipeParts:
    """What a recipe gives its trainer beside the arguments of `transformers.Trainer`."""

    run_dir: RunDir
    train_batches: TrainBatches
    """Where training batches come from; they know where they stand."""
    order: dict[str, Any]
    """What the order of the batches is a function of; checkpoints keep it."""
    verify_packing: bool = False
    """Check before the first step that packed documents leave each other alone."""
    meter: Meter | None = None
    """Counts work against time; None trains without any measuring (`perf.enabled: false`)."""
    log_every: int = 10
    """Optimizer steps between `perf/` records."""
    terms: LossTerms = PLAIN
    """Of the training loss."""
    flops_profile_every: int = 0
    """Optimizer steps between counts of executed FLOPs against the analytic ones; 0: never."""
    store: StoreOptions = StoreOptions()
    """How checkpoints are kept; their number is that of `save_total_limit`."""


class RecipeTrainer(Profiled, StagedSaves, TokenMeanEvaluation):
    """The Trainer of a recipe.

    `start_data` comes before `train`: it takes the data to where the checkpoint stood and settles the number of steps.
    Rank 0 gets its sinks through `on_start` when the number of steps is known, within what `on_open` was given.
    """

    def __init__(
        self,
        *args: Any,
        parts: RecipeParts,
        **kwargs: Any,
    ) -> None:
        self.run_dir = parts.run_dir
        self.progress = Progress()
        self._log_every = parts.log_every
        self._flops_profile_every = parts.flops_profile_every
        self.train_batches = parts.train_batches
        self._order = parts.order
        self._verify_packing = parts.verify_packing
        self._build_sinks: Callable[[int], list[Sink]] = lambda max_steps: []
        self._open_run: Callable[[Callable[[], list[Sink]]], list[Sink]] = lambda build: build()
        self.changed_options: dict[str, tuple[Any, Any]] = {}  # since the checkpoint that is resumed from: old, new
        self._as_built: AsBuilt | None = None
        self._step_rate: float | None = None
        self._saved_step = 0
        self._resumed_progress: Progress | None = None
        self._started = 0.0
        self._step_tokens = 0  # of this rank, since the last record of progress
        self._text = TextCounter()
        self._finite = FiniteCheck(self)
        self._skipped = SkippedSteps(self)
        super().__init__(*args, **kwargs)
        self.open_store(parts.run_dir, parts.store)
        self.meter, self.recorder.keeps_all = parts.meter, False
        self._terms = parts.terms
        self.label_smoother = None  # the loss smooths itself
        if find_loss_head(cast(torch.nn.Module, self.model)) is None:
            self.compute_loss_func = build_loss(parts.terms, lambda: self.is_training)
        self.add_callback(ProgressKeeper(self))

    # ---- measuring ----

    def prepare_measuring(self) -> None:
        """Check weights and packing, and guard the optimizer step."""
        check_weights(self, "no step is taken", is_open=False)
        if self._verify_packing:
            with progress("checking that packed documents leave each other alone"):
                check_documents_apart(self)
        guard_step(self, self._finite)

    def open_records(self, max_steps: int, checkpoint: str | None) -> None:
        """Open the run directory, as `on_open` was told."""
        self.recorder.sinks = self._open_run(lambda: self._build_sinks(max_steps))

    def close_records(self, error: BaseException | None) -> None:
        """Complete a save in the background; `close` closes the records, when the run has been finished."""
        self.settle_store(error)

    def is_record_due(self) -> bool:
        """After every `log_every` steps, and after the last."""
        return self.state.global_step % self._log_every == 0 or self.state.global_step >= self.state.max_steps

    def describe_position(self) -> dict[str, Any]:
        """Step, passes over the rows, seconds, tokens and bytes of text. Collective."""
        self._update_progress()
        return {
            "step": self.state.global_step,
            "epoch": self.train_batches.passes,
            "time_s": self.progress.seconds,
            "tokens": self.progress.tokens,
            **({"text_bytes": self.progress.text_bytes} if self.progress.text_bytes else {}),
        }

    @contextmanager
    def setting_up(self) -> Iterator[None]:
        """Show progress, explain errors, and apply options that changed since the checkpoint."""
        setting_up = progress("setting up optimizer and engine (the first time, DeepSpeed compiles its kernels)")
        with explain_setup_errors(), setting_up:
            yield
            if self.changed_options and self._as_built:
                apply_changes(self, self._as_built, self.changed_options)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Build the schedule, and note optimizer and schedule as built."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if optimizer is None:  # now both stand as configured, and a checkpoint is not loaded yet
            self._as_built = AsBuilt.of(self.optimizer, scheduler)
        return scheduler

    def _get_learning_rate(self) -> float:
        """Of the step that is logged: DeepSpeed has moved its own schedules on by then."""
        return super()._get_learning_rate() if self._step_rate is None else self._step_rate

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """Note the rate of the step under DeepSpeed, which moves it on before it is logged."""
        if self.is_deepspeed_enabled:
            self._step_rate = float(cast(Any, self.optimizer).param_groups[0]["lr"])
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        info: BatchInfo | None = inputs.pop(BATCH_INFO, None)
        if info is not None:
            self._count(info)
        if self.args.device.type == "cpu":
            return super()._prepare_inputs(inputs)  # the batch is where it is needed
        with self.span(names.H2D) if self.is_training else nullcontext():
            return super()._prepare_inputs({key: self._copy_to_device(value) for key, value in inputs.items()})

    def _copy_to_device(self, value: Any) -> Any:
        return value.to(self.args.device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    def _count(self, info: BatchInfo) -> None:
        if not self.is_training:
            self.count_evaluated(info)
            return
        if not self._finite.infos:
            self._skipped.begin_step()
        self._finite.begin(info)
        self._step_tokens += info.useful_tokens
        self._text.add(info)
        if self.meter:
            self.meter.add(
                info.document_lengths,
                rows=info.rows,
                tokens=info.tokens,
                useful_tokens=info.useful_tokens,
                loss_tokens=info.loss_tokens,
            )

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-step, under torch's FLOP counter when that is due."""
        if not self._profile_flops_now():
            return super().training_step(model, inputs, *args, **kwargs)
        return self._training_step_with_flops(model, inputs, *args, **kwargs)

    def _profile_flops_now(self) -> bool:
        every = self._flops_profile_every
        if not (self.meter and every):
            return False
        return (self.state.global_step + 1) % every == 0 and self.accelerator.sync_gradients

    def _training_step_with_flops(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """One micro-step under torch's FLOP counter: what was executed over what was counted from shapes."""
        assert self.meter is not None
        losses: list[torch.Tensor] = []
        step = super().training_step
        executed = measure_flops(lambda: losses.append(step(model, inputs, *args, **kwargs)))
        if self.meter.last_batch_flops:
            self.add_to_record({names.PERF_FLOPS_COUNTED_RATIO: executed / self.meter.last_batch_flops})
        return losses[0]

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Between the last backward pass and `optimizer.step`; under DeepSpeed after its step, which checks itself."""
        norm = super()._get_grad_norm(*args, **kwargs)
        with self.span(names.OPTIMIZER):
            if not (self.is_deepspeed_enabled or self._skipped.is_scaling):
                self._finite.check(norm)
        return norm

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super()._evaluate(*args, **kwargs)
        if self.state.global_step == 0:  # `eval_on_start`: its record is that of step 0, not of the first one
            self.write_record()
        elif self.state.global_step == self._initial_global_step:  # of a resumed run, whose record is there already
            self.recorder.record.clear()
        return metrics

    # ---- records ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also record bits per byte; the history keeps JSON values only."""
        with self.span(names.LOGGING):
            super().log(logs, start_time)
            self.state.log_history[-1] = keep_finite(self.state.log_history[-1])  # trainer_state.json is JSON
            if "loss" in logs and self._terms.is_plain:  # with other terms it is no length of a code
                self.add_to_record(self._text.take_record(logs["loss"], self.args.device))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step
        if self._finite.infos:  # not so at the end of an epoch, which calls this once more
            self._finite.forget()
            self._skipped.end_step()
        self.end_measured_step()  # before more is logged than the Trainer would
        self.control.should_log |= step >= self.state.max_steps  # the last loss is told, whatever `train_every` is
        if self.control.should_log:
            self.add_to_record(self._skipped.take_record())
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except Stopped:  # in the evaluation, which comes before the save
            if self._saved_step != step:
                self._save_checkpoint(*args[2:4])  # model and trial
            raise

    def _update_progress(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._started
        self._started = now
        done = [float(self._step_tokens), float(self._text.take_bytes())]
        tokens, text_bytes = sum_over_ranks(done, self.args.device)
        self.progress.tokens += int(tokens)
        self.progress.text_bytes += int(text_bytes)
        self._step_tokens = 0

    # ---- data ----

    def start_data(self, checkpoint: Path | None) -> None:
        """Take the data to where the checkpoint stood (None: to its beginning), and turn epochs into steps.

        Afterwards `args.max_steps` is set. Raises UserError when the checkpoint does not say where the data stood, or
        when the data has changed since.
        """
        progress = Progress.read(checkpoint) if checkpoint else Progress()
        batches, args = self.train_batches, self.args
        if checkpoint is not None:
            self._resumed_progress = progress
            check_same_order(checkpoint, progress.order, self._order)
        batches.start(progress.position, lambda: self.span(names.H2D))
        if args.max_steps <= 0:
            done = read_manifest(checkpoint).step if checkpoint else 0
            args.max_steps = done + batches.count_steps(args.num_train_epochs, args.gradient_accumulation_steps)

    def get_train_dataloader(self) -> Any:
        """Batches without end and without a length: the Trainer counts steps only, accelerate has no part in them."""
        return self.train_batches

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
        if self.state.global_step >= self.args.max_steps:
            return sys.maxsize, 0  # no step is left, the loop over epochs is empty
        return int(self.train_batches.epoch), 0  # no batches to skip: the data stands where it should

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied head stands in a checkpoint under one of its names: nothing is missing."""
        tied = cast(Any, self.model).all_tied_weights_keys
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def _get_dataloader(self, dataset: Dataset[Any], *args: Any, **kwargs: Any) -> DataLoader[Any]:
        # Batches stay on the host until their own micro-step: counting labels needs no sync, and h2d is a phase.
        placement, self.accelerator.device_placement = self.accelerator.device_placement, False
        try:
            return super()._get_dataloader(dataset, *args, **kwargs)
        finally:
            self.accelerator.device_placement = placement

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the meter counts FLOPs."""
        return 0  # the Trainer's own count leaves attention out, counts frozen weights, and walks the model each time

    # ---- checkpoints ----

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A loss that is not finite is never the best one."""
        name = self.args.metric_for_best_model
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}") if name else None
        if value is not None and not math.isfinite(value):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.write_record()  # a run killed right after the save has the record of its last step
        with self.span(names.CHECKPOINT):
            check_weights(self, f"checkpoint-{self.state.global_step}: not written")
        super()._save_checkpoint(*args, **kwargs)
        self._saved_step = self.state.global_step

    def note_progress(self) -> tuple[Progress, Any]:
        """The progress of the run up to this step, and the order of its data. Collective."""
        self._update_progress()
        self.progress.loss_sums = [*gather_floats(float(self._tr_loss.item()), self.args.device)]
        self.progress.last_logged_step = self._globalstep_last_logged
        self.progress.unlogged = self._text.sum_unlogged(self.args.device)
        self.progress.position, self.progress.order = self.train_batches.position, self._order
        self.progress.callbacks = read_states(self.callback_handler.callbacks)
        return deepcopy(self.progress), self._order

    def on_start(self, build_sinks: Callable[[int], list[Sink]]) -> None:
        """Have the sinks built from the number of optimizer steps once it is known."""
        self._build_sinks = build_sinks

    def on_open(self, open_run: Callable[[Callable[[], list[Sink]]], list[Sink]]) -> None:
        """Have the run directory opened once model, optimizer and schedule stand. Collective. `open_run` gets what
        builds the sinks and gives them back."""
        self._open_run = open_run

    def close(self) -> None:
        """Flush and close the sinks."""
        self.recorder.close()
