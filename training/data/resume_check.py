"""What a position in the data is a position of: a checkpoint keeps it, and a resume compares it with the data at hand.

A position counts rows of one order. Among other rows, or in another order, the same number would leave out some and
repeat others without a word, so a difference is an error. World size, micro-batch and workers are not in the order.
"""

import json
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.options import DataSection
from data_prep.store.store import Store
from data_prep.stream.stream import StreamPlan

STREAMING = "data.streaming"
NAMED = {"seq_len", "packing", "long_documents", "seed", "group_by_length", "max_tokens_per_batch"}


def describe_order(source: StreamPlan | Store, data: DataSection) -> dict[str, Any]:
    """All that the order of the training rows is a function of, by the names that a user knows it under (JSON)."""
    if isinstance(source, StreamPlan):
        return {STREAMING: True, **source.order}
    named = NAMED | ({"pad_to_multiple_of"} if data.max_tokens_per_batch else set())
    return {
        STREAMING: False,
        "token store of data.sources": source.manifest.fingerprint,
        "data.sources.*.weight": [item.weight for item in data.sources],
        **{f"data.{key}": value for key, value in data.model_dump(mode="json", include=named).items()},
    }


def check_same_order(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError naming what has changed since the checkpoint was written."""
    keys = [STREAMING] if before.get(STREAMING) != now[STREAMING] else list(before | now)
    changed = [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{checkpoint}: the order of its data is not the order here, so nobody knows which rows are left: "
            f"{'; '.join(changed)}: resume with the data as it was, or start from scratch with --resume never"
        )
