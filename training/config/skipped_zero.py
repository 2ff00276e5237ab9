"""`perf.skip_zero_at_world_1`: a run of one rank does without the ZeRO of its DeepSpeed JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config.sections import Config

OF_ITS_OWN = ("optimizer", "scheduler")  # blocks that only DeepSpeed runs


def describe_skipping(values: Mapping[str, Any], config: Config, ranks: int, resume: str) -> tuple[bool, str]:
    """Whether ZeRO is left out, and a line on it; "" where nobody asked.

    values: the JSON, filled in. resume: as of `LoadedConfig`.
    """
    if not config.perf.skip_zero_at_world_1:
        return False, ""
    if reason := _find_obstacle(values, config, ranks, resume):
        return False, f"perf.skip_zero_at_world_1: ZeRO stays: {reason}"
    stage = _find_stage(values)
    return True, (
        f"perf.skip_zero_at_world_1: one rank, so ZeRO-{stage} is left out: float32 weights under bfloat16 autocast in "
        "place of bfloat16 weights with float32 masters"
    )


def _find_obstacle(values: Mapping[str, Any], config: Config, ranks: int, resume: str) -> str | None:
    if ranks != 1:
        return f"{ranks} ranks share it"
    zero = values.get("zero_optimization") or {}
    if (stage := _find_stage(values)) > 2:
        return f"stage {stage} holds parameters in another way"
    if any(
        str((zero.get(part) or {}).get("device", "none")) != "none" for part in ("offload_optimizer", "offload_param")
    ):
        return "it offloads"
    if not config.argument("bf16"):
        return "it is equal in bfloat16 only"
    if blocks := [name for name in OF_ITS_OWN if values.get(name)]:
        return f"the JSON has a block {blocks[0]} of its own"
    if checkpoint := _find_zero_checkpoint(config, resume):
        return f"{checkpoint} was written with it"
    return None


def _find_stage(values: Mapping[str, Any]) -> int:
    return int((values.get("zero_optimization") or {}).get("stage", 0))


def _find_zero_checkpoint(config: Config, resume: str) -> Path | None:
    """A checkpoint to resume from that holds the shards of ZeRO."""
    if resume == "never":
        return None
    run = Path(config.training["output_dir"])
    checkpoints = sorted(run.glob("checkpoint-*")) if resume == "auto" else [Path(resume)]
    return next((one for one in checkpoints if any(one.glob("global_step*"))), None)
