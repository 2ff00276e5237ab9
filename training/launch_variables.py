"""Environment variables that launchers, shells and schedulers leave behind, read strictly and before torch loads.

What is wrong there comes otherwise as a traceback, as a wait of half an hour for ranks that nobody started, or not at
all. An empty variable is one that is not set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from data_prep.errors import UserError
from training.precision import find_precision

LAST_PORT = 65535
_START = (
    "start ranks with torchrun --nproc_per_node=N training/train.py … or deepspeed --num_gpus N training/train.py …"
)


def read_number(environ: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """A whole number from `least` on. Raises UserError that names the variable."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise UserError(
            f"environment: {name} = {text!r}: must be a whole number of at least {least}: unset or correct it"
        )
    return number


def read_threads(environ: Mapping[str, str]) -> int | None:
    """`OMP_NUM_THREADS`; of a list, which OpenMP takes for nested regions, the outermost."""
    first = environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return read_number({"OMP_NUM_THREADS": first}, "OMP_NUM_THREADS", 0, least=1) or None


def drop_empty(environ: MutableMapping[str, str]) -> None:
    """Empty variables of a launch are removed: transformers and torch take them for numbers."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name, "0").strip():
            del environ[name]


def check_ranks(rank: int, size: int, environ: Mapping[str, str]) -> None:
    """Raises UserError when these cannot be the variables of one launch: the other ranks would be waited for."""
    if rank >= size:
        raise UserError(f"environment: RANK = {rank} with WORLD_SIZE = {size}: ranks count from 0: {_START}")
    if not 1 <= read_number(environ, "MASTER_PORT", 1) <= LAST_PORT:
        raise UserError(f"environment: MASTER_PORT = {environ['MASTER_PORT']!r}: must be from 1 to {LAST_PORT}")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environ.get(name, "").strip()]
    if size > 1 and missing:
        raise UserError(
            f"environment: WORLD_SIZE = {size}, and {missing[0]} is not set: {_START}; for one process unset WORLD_SIZE"
        )


def check_accelerate(
    arguments: Mapping[str, Any], has_deepspeed: bool, environ: Mapping[str, str] = os.environ
) -> None:
    """What `accelerate launch` asks for by its options must be what the recipe says: accelerate would go by its own.

    arguments: fields of TrainingArguments. Raises UserError.
    """
    if environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and not has_deepspeed:
        raise UserError("environment: ACCELERATE_USE_DEEPSPEED = 'true': name the JSON with --deepspeed instead")
    if environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not arguments.get("fsdp"):
        raise UserError("environment: ACCELERATE_USE_FSDP = 'true': set training.fsdp instead")
    asked = environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    trained = find_precision(arguments).short_name
    if asked not in ("no", "", trained):
        raise UserError(
            f"environment: ACCELERATE_MIXED_PRECISION = {asked!r}, but training.bf16 and fp16 say {trained!r}: "
            "set them instead of accelerate's --mixed_precision"
        )
