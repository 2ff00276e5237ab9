"""`Profiled`: a mixin that measures any Hugging Face Trainer; `ProfiledTrainer`: the stock one with it.

    from training.trainers import Profiled, ProfiledTrainer
    trainer = ProfiledTrainer(...)                      # in place of transformers.Trainer, same arguments
    class MySFT(Profiled, trl.SFTTrainer): ...          # over any subclass

No part of the training loop is copied and no number that is trained changes. The seams:

| seam | what happens there |
|---|---|
| `get_batch_samples` | `data_wait`: the loop blocks in the loader |
| `_prepare_for_training` | the step is timed and the records are opened, once model and optimizer are ready |
| `_prepare_inputs` | `h2d`: the copy to the device, where the loader has not made it |
| `compute_loss_context_manager` | `forward`, while training |
| forward pre-hook of each model | the documents and FLOPs of the forward pass are counted (`forward_counter.py`) |
| `accelerator.backward` | `backward`; under DeepSpeed it also runs `engine.step`, which is `optimizer` |
| collectives of DeepSpeed, the end of DDP's backward pass, DDP's buffers | `comm_exposed` (`step_timing.py`) |
| `_get_num_items_in_batch` | `comm_exposed`: the ranks add up their tokens with loss |
| `optimizer.step`, `_clip_grad_norm`, `_get_grad_norm` | `optimizer` |
| `evaluate`, `_save_checkpoint`, `log` | `eval`, `checkpoint`, `logging` |
| `_maybe_log_save_evaluate` | a step ends; its record is completed and written (`recorder.py`) |
| `train` | the summary and the report are written |

Without a recipe the run directory is `args.output_dir`, and a record is written whenever the Trainer logs
(`logging_steps`). `RecipeTrainer` adds what our recipes need.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer

from training.metrics import names
from training.metrics.memory import measure_allocated_bytes, measure_memory
from training.metrics.throughput import Meter
from training.trainers.forward_counter import ForwardCounter
from training.trainers.meter import build_meter
from training.trainers.own_run import OwnRun
from training.trainers.recorder import Clock, Recorder, read_saved, save_state
from training.trainers.step_timing import time_step

Base = Trainer if TYPE_CHECKING else object


class Profiled(Base):
    """Phases, throughput, MFU and records of a Trainer subclass. Put it first among the base classes.

    Attributes:
        meter: counts work against time; None: nothing is measured. Built when training starts unless it was set.
        recorder: the record of the step under way and the files and trackers that get it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the arguments of the trainer that is measured."""
        super().__init_subclass__(**kwargs)
        if cls.__init__ is Profiled.__init__:
            following = next(
                base for base in cls.__mro__[cls.__mro__.index(Profiled) + 1 :] if "__init__" in vars(base)
            )
            cls.__signature__ = inspect.signature(following)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.meter: Meter | None = None
        self._built_meter: Meter | None = None
        self.recorder = Recorder()
        self.last_measured_step = 0
        self._forwards = ForwardCounter(self)
        self._own_run: OwnRun | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(Clock(self))

    # ---- what callbacks use ----

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Time inside goes to `phase`. Callbacks that do something slow name it with this."""
        return self.meter.timer.span(phase) if self.meter else nullcontext()

    def annotate_spans(self, annotate: Callable[[str], AbstractContextManager[Any]] | None) -> None:
        """Enter `annotate(phase)` with each span from now on; None: no longer."""
        if self.meter:
            self.meter.timer.annotate = annotate

    def add_to_record(self, values: dict[str, float]) -> None:
        """Put metrics into the record of the step under way."""
        self.recorder.add(values)

    def pause_measuring(self) -> Callable[[], None]:
        """Stop measuring and writing records; the function that is returned starts both again."""
        meter, self.meter = self.meter, None

        def resume() -> None:
            self.meter = meter
            if meter is not None:
                meter.timer.start()
            # The Trainer ends the last step of an epoch twice: the second time is no step.
            self.last_measured_step = self.state.global_step

        return resume

    # ---- what a subclass may replace ----

    def prepare_measuring(self) -> None:
        """Between the preparation of model and optimizer and the timing of the step."""
        if self.meter is self._built_meter:  # none was set, or that of an earlier call of `train`
            self._built_meter = self.meter = build_meter(cast(torch.nn.Module, self.model), self.args)
        self._forwards.start()

    def setting_up(self) -> AbstractContextManager[None]:
        """Entered while the Trainer prepares model, optimizer and schedule."""
        return nullcontext()

    def open_records(self, max_steps: int, checkpoint: str | None) -> None:
        """Give `recorder` its sinks. Collective."""
        self.recorder.restore(read_saved(checkpoint), self.callback_handler.callbacks)
        self._own_run = OwnRun(self, max_steps)
        self.recorder.sinks = self._own_run.open()

    def close_records(self, error: BaseException | None) -> None:
        """After training, or what ended it. Collective unless there was an error."""
        self._forwards.stop()
        if self._own_run is not None:
            self._own_run.close(error)
        self._own_run = None

    def is_record_due(self) -> bool:
        """Whether the step that ends gets performance metrics. The same on all ranks."""
        return self.control.should_log or self.state.global_step >= self.state.max_steps

    def describe_position(self) -> dict[str, Any]:
        """The head of a record: where the training stands. Collective."""
        progress = self.recorder.progress
        self._update_elapsed(wait=False)
        return {
            "step": self.state.global_step,
            "epoch": self.state.epoch or 0.0,
            "time_s": progress.seconds,
            "tokens": progress.tokens,
        }

    def _update_elapsed(self, *, wait: bool) -> None:
        progress = self.recorder.progress
        progress.advance(time.monotonic())
        if self.meter:
            progress.tokens = progress.tokens_before + self.meter.count_trained_tokens(wait=wait)

    # ---- seams ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the base class does, then write summary and report."""
        try:
            output = super().train(*args, **kwargs)
        except BaseException as error:
            self.close_records(error)
            raise
        self.close_records(None)
        return output

    def _prepare_for_training(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        with self.setting_up():
            prepared = super()._prepare_for_training(max_steps, *args, **kwargs)
        self.prepare_measuring()
        if self.meter:
            time_step(self, self.meter.timer)
        self.open_records(max_steps, kwargs.get("resume_from_checkpoint") or (args[1] if len(args) > 1 else None))
        return prepared

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """Time the loader as `data_wait`."""
        return super().get_batch_samples(self._timed_batches(epoch_iterator), *args, **kwargs)

    def _timed_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.span(names.DATA_WAIT):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> Any:
        with self.span(names.COMM_EXPOSED) if self.args.world_size > 1 else nullcontext():
            return super()._get_num_items_in_batch(*args, **kwargs)

    @property
    def is_training(self) -> bool:
        """Whether the model is in training mode."""
        return cast(torch.nn.Module, self.model).training

    def _prepare_inputs(self, inputs: Any) -> Any:
        copies = self.args.device.type != "cpu" and self.is_training
        with self.span(names.H2D) if copies else nullcontext():
            return super()._prepare_inputs(inputs)

    def compute_loss_context_manager(self) -> Any:
        """Time the forward pass as `forward`, while training."""
        stack = super().compute_loss_context_manager()
        if self.is_training:
            stack.enter_context(self.span(names.FORWARD))
        return stack

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        with self.span(names.OPTIMIZER):
            return super()._clip_grad_norm(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        with self.span(names.OPTIMIZER):
            return super()._get_grad_norm(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as the base class does, in the phase `eval`."""
        with self.span(names.EVAL):
            return super().evaluate(*args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log as the base class does, and record what was logged."""
        with self.span(names.LOGGING):
            super().log(*args, **kwargs)
            self.recorder.add_logs(self.state.log_history[-1])

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.end_measured_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.write_record()

    def end_measured_step(self) -> None:
        """Close the step for the meter, once, and put what it measured into the record where one is due."""
        step = self.state.global_step
        if self.meter is None or step <= self.last_measured_step:
            return
        is_due = self.is_record_due()
        # Reading memory takes as long as all spans of a step: for the mean of an epoch its records and end will do.
        is_read = is_due or self.control.should_epoch_stop or self.control.should_training_stop
        self.meter.end_step(measure_allocated_bytes(self.args.device) if is_read else None)
        self.last_measured_step = step
        if is_due:
            with self.span(names.LOGGING):
                self.add_to_record({**self.meter.window(), **measure_memory(self.args.device)})

    def write_record(self) -> None:
        """Hand the record of this step to the sinks, if it has anything. Collective: all ranks have one or none."""
        if self.recorder.has_record:
            with self.span(names.LOGGING):
                self.recorder.write(self.describe_position())

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.span(names.CHECKPOINT):
            super()._save_checkpoint(*args, **kwargs)
            if self._own_run is None:
                return
            self._update_elapsed(wait=True)
            if self.args.should_save:
                save_state(Path(self._own_run.path), self.state.global_step, self.recorder, self.callback_handler)


class ProfiledTrainer(Profiled, Trainer):
    """`transformers.Trainer` that measures itself. Takes exactly what `transformers.Trainer` takes."""
