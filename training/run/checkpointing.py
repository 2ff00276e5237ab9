"""`perf.activation_checkpointing: auto`: the first mode whose planned peak fits. What fits is not computed again.

The modes are tried in the order of what they compute again (`training/activations/modes.py`), for
per_device_train_batch_size rows. The memory of a device is measured as for `perf.micro_batch_size: auto`, which chooses
the rows afterwards, in what the mode leaves. Each rank plans for its own device, and all take the mode of the rank that
needs the most. It costs one trace of the model for each mode that is tried.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_prep.progress import progress
from training.activations.modes import MODES
from training.config import LoadedConfig
from training.launch import World
from training.memory.available import measure_free_bytes
from training.memory.run_plan import Planner
from training.models.planned import build_planned_model
from training.ranks import gather_floats

logger = logging.getLogger("redline.train")

GIB = 2**30


def fit_checkpointing(loaded: LoadedConfig, world: World, device: torch.device) -> LoadedConfig:
    """`loaded` with the first mode that fits, or `full`. Collective.

    Afterwards every TrainingArguments built before is stale.
    """
    unset_hf_deepspeed_config()  # or, under ZeRO-3, the plan's model would be partitioned
    config = loaded.config
    rows = int(config.argument("per_device_train_batch_size"))
    budget = measure_free_bytes(device, world.local_size)
    peaks: list[int] = []
    with progress("activation checkpointing: planning"):
        planner = Planner(loaded, partial(build_planned_model, config), world.size, on_gpu=device.type == "cuda")
        for mode in MODES:
            peaks.append(planner.predict_peak(rows, checkpointing=mode))
            if peaks[-1] <= budget:
                break
    chosen = MODES[int(max(gather_floats(float(len(peaks) - 1), device)))]
    tried = ", ".join(f"{mode.name} {peak / GIB:.2f}" for mode, peak in zip(MODES, peaks, strict=False))
    logger.info(
        "activation checkpointing: %s (auto: planned peaks with %d rows in GiB: %s; %.2f GiB are available)",
        chosen.name, rows, tried, budget / GIB,
    )  # fmt: skip
    if peaks[-1] > budget and config.perf.micro_batch_size != "auto":  # which takes fewer rows
        logger.warning(
            "activation checkpointing: even full is planned to take %.2f of %.2f GiB: lower "
            "training.per_device_train_batch_size or data.seq_len",
            peaks[-1] / GIB, budget / GIB,
        )  # fmt: skip
    return replace(loaded, config=config.with_checkpointing(chosen.name))
