"""In which unit losses are compared: nats per token, or bits per byte where the tokens are not the same.

A loss in nats per token is that of the tokens of one tokenizer. Runs whose tokenizers cut text otherwise are compared
in bits per byte of the text alone (`training/data/token_bytes.py`), and not at all where a run has no count of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.comparing.settings import load_settings
from training.comparing.sides import Side
from training.metrics import names
from training.reporting.run_reader import Run

AXES = {"tokens": "equal tokens", "text_bytes": "equal text", "time_s": "equal training time"}


@dataclass(frozen=True)
class LossUnit:
    """`axes`: along what training losses are compared."""

    name: str
    train_key: str
    eval_key: str
    axes: tuple[str, ...]


NATS = LossUnit("nats per token", names.TRAIN_LOSS, names.EVAL_LOSS, ("tokens", "time_s"))
# Of the same tokens: the same losses in another unit.
ALSO_BITS = LossUnit("bits per byte", names.TRAIN_BITS_PER_BYTE, names.EVAL_BITS_PER_BYTE, ("tokens",))
BITS = LossUnit("bits per byte", names.TRAIN_BITS_PER_BYTE, names.EVAL_BITS_PER_BYTE, ("text_bytes", "time_s"))


def choose_units(sides: Sequence[Side]) -> tuple[LossUnit, ...]:
    """The first is the one to judge by; none where losses cannot be compared, as `explain_units` says."""
    counted = not _without_bytes(sides)
    if have_same_tokenizer(sides):
        return (NATS, ALSO_BITS) if counted else (NATS,)
    return (BITS,) if counted else ()


def explain_units(sides: Sequence[Side]) -> str | None:
    """One sentence on losses of other tokenizers; None where the tokenizer is the same."""
    if have_same_tokenizer(sides):
        return None
    named = " and ".join(side.name for side in sides)
    if missing := _without_bytes(sides):
        return (
            f"The tokenizers of {named} differ, so losses in nats per token cannot be compared. Without a byte count "
            f"in {', '.join(missing)} (from an older version?), they cannot be compared in bits per byte either."
        )
    return (
        f"The tokenizers of {named} differ, so losses are compared only in bits per byte. Tokens/s cannot be compared: "
        "they count different tokens."
    )


def have_same_tokenizer(sides: Sequence[Side]) -> bool:
    """By what the runs recorded of their tokenizers; where one did not, by their settings."""
    runs = [run for side in sides for run in side.runs]
    recorded = [run.recorded("tokenizer_cuts") for run in runs]
    found = recorded if all(recorded) else [_find_tokenizer(run) for run in runs]
    known = [one for one in found if one]
    return all(one == known[0] for one in known)


def _find_tokenizer(run: Run) -> dict[str, Any]:
    """The settings that choose a tokenizer; empty where the run does not say. One that is trained is that of its
    text."""
    settings = {key: setting.value for key, setting in load_settings(run).items()}

    def is_given(key: str) -> bool:
        return settings.get(key, "None") != "None"

    if is_given("tokenizer.path"):
        chosen = ("tokenizer.path",)
    elif is_given("model.path"):
        chosen = ("model.path",)
    else:
        chosen = ("tokenizer.", "data.sources")
    return {key: value for key, value in settings.items() if key.startswith(chosen)} if run.config_text else {}


def _without_bytes(sides: Sequence[Side]) -> list[str]:
    """Sides of which a run has losses and no bits per byte."""
    return [side.name for side in sides if any(not _has_bits(run) for run in side.runs)]


def _has_bits(run: Run) -> bool:
    pairs = ((names.TRAIN_LOSS, names.TRAIN_BITS_PER_BYTE), (names.EVAL_LOSS, names.EVAL_BITS_PER_BYTE))
    measured = [bits for loss, bits in pairs if len(run.series(loss).finite())]
    return all(len(run.series(bits).finite()) for bits in measured)
