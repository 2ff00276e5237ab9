"""`summary.json`: the facts of a run, written when it ends and read by the reports (formulas: docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Summary:
    """One field for each key; None where it was not measured or does not apply.

    A file of an older version may lack keys and have others: what is missing is None, what is not known is dropped.
    """

    name: str | None = None
    """Of the run directory."""
    status: str | None = None
    """`finished`, `stopped` (by a signal) or `failed`."""
    steps: float | None = None
    """Optimizer steps done."""
    epochs: float | None = None
    """Passes over the data."""
    tokens: float | None = None
    """Trained on, without padding, over all ranks and launches."""
    train_seconds: float | None = None
    """Of training, over all launches."""
    loss_first: float | None = None
    """First logged training loss, nats per token."""
    loss_last: float | None = None
    """Last logged training loss, nats per token."""
    eval_loss_first: float | None = None
    """First validation loss, nats per token."""
    eval_loss_last: float | None = None
    """Last validation loss, nats per token."""
    bits_per_byte_last: float | None = None
    """Last training loss in bits per byte of text."""
    eval_bits_per_byte_last: float | None = None
    """Last validation loss in bits per byte of text."""
    text_bytes: float | None = None
    """UTF-8 bytes that the trained tokens spell."""
    tokenizer_cuts: Any = None
    """Fingerprint of how the tokenizer cuts text."""
    store: str | None = None
    """Directory of the token store."""
    streamed: bool | None = None
    """Whether the data was streamed, without a store."""
    unigram_entropy_nats: float | None = None
    """Of the validation tokens, nats per token."""
    bad_records: float | None = None
    """Records that could not be used."""
    left_out: dict[str, Any] | None = None
    """Documents that were excluded, by reason."""
    packed: dict[str, Any] | None = None
    """Of a stream: pieces that were split, truncated or without loss."""
    tokens_per_second: float | None = None
    """Useful tokens of all ranks per wall second."""
    mfu_pct: float | None = None
    """Model FLOPs as a share of the peak, in percent."""
    mfu_palm_pct: float | None = None
    """The same with attention not halved for causality."""
    hfu_pct: float | None = None
    """Executed FLOPs as a share of the peak, in percent."""
    peak: dict[str, Any] | None = None
    """What MFU is against (`metrics.peaks.Peak`)."""
    ceiling: dict[str, Any] | None = None
    """What the model's matmuls reach alone."""
    roofline: dict[str, Any] | None = None
    """Memory bandwidth, and the phases against the machine's ceilings."""
    phases_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds per step by phase."""
    phases_pct: dict[str, float] = field(default_factory=dict)
    """Share of the step by phase, in percent."""
    step_ms: float | None = None
    """Milliseconds per step."""
    peak_memory_gib: float | None = None
    """Highest memory of a rank, GiB."""
    memory_plan: dict[str, Any] | None = None
    """Predicted and measured peak."""
    parameters: float | None = None
    """Of the model."""
    trainable_parameters: float | None = None
    """Of the model, those that train."""
    attn_implementation: str | None = None
    """Attention kernel."""
    recipe: str | None = None
    """Name of the recipe."""
    sample: dict[str, Any] | None = None
    """What the trained model wrote."""
    report: str | None = None
    """File of the report, in the run directory."""
    error: str | None = None
    """What ended a run that is not finished."""
    step_not_finite: int | None = None
    """The step whose loss or gradient was not finite."""
    last_finite_checkpoint: str | None = None
    """The last checkpoint with finite weights."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """From the content of the file; unknown keys are dropped, and so is a value that should be an object and is
        none."""
        known = {one.name for one in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known and value is not None}
        wrong = {key for key in _OBJECTS & kept.keys() if not isinstance(kept[key], Mapping)}
        return cls(**{key: value for key, value in kept.items() if key not in wrong})

    def as_json(self) -> dict[str, Any]:
        """The content of the file. A run that is not finished has the keys that are known of it."""
        values = asdict(self)
        if self.status in ("failed", "stopped"):
            return {key: value for key, value in values.items() if value not in (None, {})}
        return {key: value for key, value in values.items() if key not in _OF_FAILURE}


_OBJECTS = {
    "left_out", "packed", "peak", "ceiling", "roofline", "phases_ms", "phases_pct", "memory_plan", "sample",
}  # fmt: skip
_OF_FAILURE = {"error", "step_not_finite", "last_finite_checkpoint"}
