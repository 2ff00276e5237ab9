"""Where a logged step goes: `metrics.jsonl`, the console, W&B, TensorBoard. One record, the same keys everywhere.

The Hugging Face callbacks for W&B and TensorBoard rewrite `perf/x` to `train/perf/x`; these write names as they are.
Only rank 0 has sinks. A record holds `step`, `epoch`, `time_s`, `tokens` and metric keys (`training/metrics/names.py`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import Any, Protocol, cast

from data_prep.errors import UserError
from training.config.trackers import find_project, find_wandb_mode
from training.metrics import names
from training.run_dir import RunDir, write_text_atomic

logger = logging.getLogger("redline.train")

Record = Mapping[str, Any]


class Sink(Protocol):
    """Receives the records of a run."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class MetricsFile:
    """`metrics.jsonl` of the run directory: always on, and what every reader reads."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def write(self, record: Record) -> None:
        """Append one line."""
        self._run_dir.append_metrics(record)

    def close(self) -> None:
        """Nothing is kept open."""


class Console:
    """One line a logged step, with the time that is left at the mean speed of this session so far."""

    def __init__(self, max_steps: int) -> None:
        self._max_steps = max_steps
        self._first: tuple[int, float] | None = None

    def write(self, record: Record) -> None:
        """Log one line, if the record has anything for the screen."""
        parts = [f"step {record['step']:>{len(str(self._max_steps))}}/{self._max_steps}"]
        for key, form in (
            (names.TRAIN_LOSS, "loss {:.4f}"),
            (names.EVAL_LOSS, "eval loss {:.4f}"),
            (names.TRAIN_LEARNING_RATE, "lr {:.2e}"),
            (names.TRAIN_GRAD_NORM, "grad norm {:.2f}"),
            (names.PERF_STEP_MS, "{:,.0f} ms/step"),
            (names.PERF_TOKENS_PER_SECOND, "{:,.0f} tok/s"),
            (names.PERF_MFU_PCT, "MFU {:.1f} %"),
        ):
            if isinstance(record.get(key), float | int):
                parts.append(form.format(record[key]))
        if len(parts) == 1:  # the sums of an epoch: not for the screen
            return
        left = self._seconds_left(record["step"], record["time_s"])
        if left is not None:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        logger.info("%s", "  ".join(parts))

    def _seconds_left(self, step: int, seconds: float) -> float | None:
        if self._first is None:
            self._first = (step, seconds)
        steps = step - self._first[0]
        return (self._max_steps - step) * (seconds - self._first[1]) / steps if steps else None

    def close(self) -> None:
        """Nothing is kept open."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run_dir: RunDir) -> None:
        from tensorboard.compat.proto import summary_pb2
        from torch.utils.tensorboard import FileWriter

        self._writer = FileWriter(str(run_dir.path / "tensorboard"))
        self._proto: Any = summary_pb2

    def write(self, record: Record) -> None:
        """Write all values as one event."""
        # One event for all values: one for each, as `SummaryWriter.add_scalar` has it, takes four times as long.
        values = {key: float(value) for key, value in record.items() if "/" in key and isinstance(value, float | int)}
        summary = self._proto.Summary(value=[{"tag": key, "simple_value": value} for key, value in values.items()])
        self._writer.add_summary(summary, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb:
    """A W&B run; a resumed training continues under the id kept in `RUN/wandb_id`.

    The project is `training.project`, the name `training.run_name`; mode (`WANDB_MODE=offline`), entity, group and so
    on come from W&B's own environment variables, and `monitor.wandb_*` sets those (`training/launch.py`). Raises
    UserError when the server takes no such run.
    """

    def __init__(self, run_dir: RunDir, config: Mapping[str, Any]) -> None:
        import wandb
        from wandb.errors import Error as WandbError

        id_file = run_dir.path / "wandb_id"
        run_id = id_file.read_text().strip() if id_file.exists() else secrets.token_hex(4)
        write_text_atomic(id_file, run_id + "\n")
        training = config.get("training", {})
        try:
            self._run = wandb.init(
                project=find_project(training),
                name=training.get("run_name") or run_dir.name,
                id=run_id,
                resume="allow",
                dir=str(run_dir.path),
                mode=cast(Any, find_wandb_mode()),
                config=dict(config),
            )
        except WandbError as error:
            raise UserError(
                f"training.report_to: wandb: {' '.join(str(error).split())}: fix it, or set WANDB_MODE=offline"
            ) from error

    def write(self, record: Record) -> None:
        """Log all values under the step."""
        self._run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()


def build_sinks(report_to: list[str], run_dir: RunDir, *, max_steps: int, config: Mapping[str, Any]) -> list[Sink]:
    """The file and the console always, trackers as asked for in `training.report_to`."""
    sinks: list[Sink] = [MetricsFile(run_dir), Console(max_steps)]
    if "tensorboard" in report_to:
        sinks.append(TensorBoard(run_dir))
    if "wandb" in report_to:
        sinks.append(Wandb(run_dir, config))
    return sinks
