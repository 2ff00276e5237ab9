"""One configuration: what `training.plan` says of it, and what its real run took.

The run is the real one, built by `training.run.build` and trained by `ProfiledTrainer` on prepared data; only `final/`
and the report are left out. Everything here runs in processes of its own (`isolation.run_fresh`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import yaml

from training.benchmark.memory.grid import FAMILIES, MEASURED_STEP, PRETRAINED, Case, GridInputs

REDUCE_BUCKET = 2_000_000  # elements
Instrument = Literal["allocator", "resident"]


@dataclass(frozen=True)
class MeasuredCase:
    """Bytes on the device."""

    name: str
    predicted: int
    measured: int
    seconds: float
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def error_pct(self) -> float:
        """Of the measured peak; above 0 the prediction was too high."""
        return 100 * (self.predicted - self.measured) / self.measured


def write_inputs(inputs: GridInputs, families: tuple[str, ...] = PRETRAINED) -> None:
    """Text, its tokenizer, and the models that adapters stand on."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from data_prep.prepare import prepare
    from training.config import load_config
    from training.config.deepspeed_json import DEEPSPEED_DIR
    from training.models.scratch import TokenizerFacts, scratch_config

    _quieten()
    words = random.Random(0).choices([f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "eil", "or", "un")], k=400_000)
    documents = [" ".join(words[at : at + 60]) for at in range(0, len(words), 60)]
    inputs.documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    inputs.one_document.write_text(json.dumps({"text": " ".join(words)}) + "\n")
    recipe = inputs.work_dir / "tokenizer.yaml"
    data = {"sources": [{"path": str(inputs.documents)}], "store_dir": str(inputs.stores), "num_proc": 1}
    recipe.write_text(yaml.safe_dump({"tokenizer": {"vocab_size": 400}, "data": data}))
    config = load_config(["--config", str(recipe)]).config
    AutoTokenizer.from_pretrained(prepare(config.data, config.tokenizer).tokenizer_dir).save_pretrained(
        inputs.tokenizer
    )
    for stage in (1, 2, 3):
        deepspeed = json.loads((DEEPSPEED_DIR / f"zero{stage}_bf16.json").read_text())
        deepspeed["zero_optimization"]["reduce_bucket_size"] = REDUCE_BUCKET
        inputs.deepspeed_json(stage).write_text(json.dumps(deepspeed))
    for family in families:
        section = config.model.model_copy(update={"kind": None, "config": FAMILIES[family]})
        shape = scratch_config(section, TokenizerFacts(vocab_size=1))
        # In a type that no run computes in: weights that need no cast stay mapped from their file, and no allocator
        # counts them.
        AutoModelForCausalLM.from_config(shape, dtype=torch.float16).save_pretrained(inputs.base_model(family))


def find_gpus() -> list[str]:
    """Names as the driver reports them; empty without CUDA."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def measure_case(
    case: Case, inputs: GridInputs, instrument: Instrument = "allocator", rank: int = 0, port: int = 0
) -> MeasuredCase:
    """Run it, then plan it. Of several ranks one; all meet at `port`."""
    from training.config import load_config
    from training.launch import leave_out, read_world, set_environment

    started = time.perf_counter()
    if case.ranks > 1:
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({key: str(value) for key, value in {**here, "WORLD_SIZE": case.ranks}.items()})
    _quieten()
    leave_out("datasets")
    if case.method != "4-bit":
        leave_out("bitsandbytes")
    recipe = inputs.work_dir / f"{os.getpid()}.yaml"
    recipe.write_text(yaml.safe_dump(case.recipe(inputs)))
    loaded = load_config(["--config", str(recipe)])
    set_environment(read_world(), 1 if inputs.use_cpu else "auto")  # each thread of a CPU has workspaces of its own
    measured = _measure_run(loaded, instrument)
    estimate = _estimate(loaded, case, inputs)
    parts = {f"{part.name} ({part.at})": part.bytes for part in estimate.parts if part.place == "device"}
    return MeasuredCase(case.name, estimate.tensor_peak, measured, time.perf_counter() - started, parts)


def _measure_run(loaded: Any, instrument: Instrument) -> int:
    from data_prep.prepare import prepare
    from training.benchmark.memory.tracking import AllocatorEvents, CudaAllocator, PeakResident, StepMarks
    from training.launch import join_world, leave_world, read_world
    from training.run.build import build_trainer, build_training_arguments, find_run_path
    from training.run_dir import RunDir

    config, world = loaded.config, read_world()
    device = join_world(world, timeout_seconds=120, use_cpu=config.training["use_cpu"], deepspeed=loaded.deepspeed)
    run_dir = RunDir(find_run_path(config, loaded.recipe))
    prepared = prepare(config.data, config.tokenizer)
    args = build_training_arguments(loaded, run_dir, device, world)
    kind = CudaAllocator if device.type == "cuda" else AllocatorEvents if instrument == "allocator" else PeakResident
    try:
        with kind() as tracked:
            trainer = build_trainer(loaded, prepared, run_dir, args, world)
            trainer.start_data(None)
            shutil.rmtree(run_dir.path, ignore_errors=True)
            run_dir.path.mkdir(parents=True)
            trainer.add_callback(StepMarks(tracked, MEASURED_STEP))
            trainer.train()
            trainer.close()
        return tracked.peak_bytes
    finally:
        leave_world()


def _estimate(loaded: Any, case: Case, inputs: GridInputs) -> Any:
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from training.memory.run_plan import Planner
    from training.models.planned import build_planned_model

    unset_hf_deepspeed_config()  # or, under ZeRO-3, the planned model would be partitioned
    build = partial(build_planned_model, loaded.config)
    masked = case.attention != "causal"
    return Planner(loaded, build, case.ranks, on_gpu=not inputs.use_cpu, masked=masked).estimate(case.rows)


def _quieten() -> None:
    logging.getLogger("redline").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
