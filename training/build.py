"""From a configuration to the objects that train: arguments, model, datasets, meter, callbacks, trainer.

Nothing here decides anything about training beyond what the recipe says; what DESIGN forces (no NaN filter, our own
trackers, our own logging cadence) is set in one place, `FORCED_ARGUMENTS`.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from data_prep.errors import UserError
from data_prep.prepare import Prepared
from data_prep.store import Store
from training.callbacks.cache_clearing import CacheClearing
from training.callbacks.gpu_monitor import GpuMonitor
from training.callbacks.plotting import Plotting
from training.callbacks.profiler_window import ProfilerWindow
from training.callbacks.run_events import RunEvents
from training.callbacks.sinks import build_sinks
from training.config import Config, LoadedConfig
from training.data.collator import Collator
from training.data.dataset import build_datasets
from training.data.order import RowSampler
from training.launch import World
from training.metrics.flops import ModelFlops
from training.metrics.peaks import Peak, find_peak, measure_matmul_peak
from training.metrics.phase_timer import build_phase_timer
from training.metrics.throughput import Meter
from training.models.build import build_model
from training.run_dir import RunDir
from training.trainers.profiled_trainer import ProfiledTrainer, sum_over_ranks

logger = logging.getLogger("redline.build")

# What a recipe cannot change, with the reason.
FORCED_ARGUMENTS: dict[str, Any] = {
    "logging_nan_inf_filter": False,  # it hides a NaN loss behind the mean of the others, and syncs each micro-step
    "remove_unused_columns": False,  # the collator's batch information is no model input
    "report_to": [],  # the stock trackers rename perf/ keys; ours are training/callbacks/sinks.py
    "logging_strategy": "steps",
    "disable_tqdm": True,
    "label_names": ["labels"],
    "prediction_loss_only": True,
}


def build_training_arguments(loaded: LoadedConfig, run_dir: RunDir, device: torch.device) -> TrainingArguments:
    """`training:` as `TrainingArguments`, with what other sections own and what is forced."""
    config = loaded.config
    given = {key: value for key, value in config.training.items() if key != "report_to"}
    given |= FORCED_ARGUMENTS | {
        "output_dir": str(run_dir.path),
        "logging_steps": config.monitor.train_every,
        "logging_first_step": True,
        "use_cpu": device.type == "cpu",
        "deepspeed": loaded.deepspeed,
    }
    if device.type == "cpu":
        given["dataloader_pin_memory"] = False  # there is nothing to copy to
    try:
        return TrainingArguments(**given)
    except (ValueError, TypeError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error


def build_trainer(
    loaded: LoadedConfig, prepared: Prepared, run_dir: RunDir, args: TrainingArguments, world: World
) -> ProfiledTrainer:
    """Everything a run needs, wired. Collective: the ceiling is measured on all ranks at once."""
    config = loaded.config
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_dir)
    store = Store.open(prepared.store_dir)
    train_dataset, eval_dataset = build_datasets(store, config.data)
    model = build_run_model(config, tokenizer, args)
    meter = build_meter(config, model, args) if config.perf.enabled else None
    trainer = ProfiledTrainer(
        model=model,
        args=args,
        data_collator=Collator(
            pad_token_id=_pad_id(tokenizer),
            seq_len=config.data.seq_len,
            pad_to_multiple_of=config.data.pad_to_multiple_of,
            packing=config.data.packing,
        ),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        run_dir=run_dir,
        train_sampler=RowSampler(len(train_dataset), config.data.seed),
        meter=meter,
        log_every=config.perf.log_every,
        flops_profile_every=config.perf.flops_profile_every,
    )
    if trainer.is_deepspeed_enabled != (loaded.deepspeed is not None):
        raise RuntimeError("accelerate did not take the DeepSpeed set-up: training would go on without ZeRO")
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    for callback in build_callbacks(config, trainer, run_dir, args, store):
        trainer.add_callback(callback)
    if world.is_main:
        trainer.on_start(
            lambda max_steps: build_sinks(
                find_trackers(config), run_dir, max_steps=max_steps, config=config.model_dump()
            )
        )
    return trainer


def build_run_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> PreTrainedModel | PeftModel:
    """The model of a run, the same on every rank: weights are drawn under `training.seed`."""
    from transformers import set_seed

    set_seed(args.seed)
    return build_model(
        config.model,
        config.adapter,
        vocab_size=len(tokenizer),
        pad_token_id=_pad_id(tokenizer),
        bos_token_id=_token_id(tokenizer, "bos"),
        eos_token_id=_token_id(tokenizer, "eos"),
        device_type=args.device.type,
        dtype=compute_dtype(args),
        packed=config.data.packing != "none",
        gradient_checkpointing=bool(args.gradient_checkpointing),
    )


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """The type matmuls run in."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def build_meter(config: Config, model: torch.nn.Module, args: TrainingArguments) -> Meter:
    """Clock, FLOPs of this model, and the ceiling they are held against."""
    sum_ranks = partial(sum_over_ranks, device=args.device)
    peak = find_or_measure_peak(args)
    spread = "" if peak.spread_pct is None else f", spread {peak.spread_pct:.0f} %"
    logger.info(
        "MFU is against %.2f TFLOP/s per device: %s (%s, %s%s)",
        peak.tflops,
        peak.source,
        peak.device,
        peak.dtype,
        spread,
    )
    return Meter(
        build_phase_timer(args.device.type),
        world_size=args.world_size,
        sum_over_ranks=sum_ranks,
        model_flops=ModelFlops.from_model(model),
        checkpointing=bool(args.gradient_checkpointing),
        peak=peak,
    )


def find_or_measure_peak(args: TrainingArguments) -> Peak:
    """The vendor's dense peak of this device, or a measured one where no table has it (every CPU)."""
    dtype = compute_dtype(args)
    if args.device.type == "cuda":
        found = find_peak(torch.cuda.get_device_name(args.device), str(dtype).removeprefix("torch."))
        if found is not None:
            return found
    return measure_matmul_peak(dtype, args.device)


def build_callbacks(
    config: Config, trainer: ProfiledTrainer, run_dir: RunDir, args: TrainingArguments, store: Store
) -> list[TrainerCallback]:
    """One callback for each thing that was asked for."""
    callbacks: list[TrainerCallback] = []
    if config.perf.empty_cache_every:
        callbacks.append(CacheClearing(trainer, config.perf.empty_cache_every))
    if config.perf.profile_steps:
        first, last = config.perf.profile_steps
        callbacks.append(ProfilerWindow(trainer, run_dir, args.process_index, first, last))
    if config.monitor.gpu_every and args.device.type == "cuda":
        callbacks.append(GpuMonitor(trainer, args.device, config.monitor.gpu_every))
    if args.process_index == 0:
        entropy = store.manifest.unigram_entropy_nats
        callbacks.append(RunEvents(trainer, run_dir, entropy))
        callbacks.append(Plotting(trainer, run_dir, config.monitor.plot_every, entropy))
    return callbacks


def find_trackers(config: Config) -> list[str]:
    """`training.report_to` as a list: a name, several, or none."""
    asked = config.training.get("report_to") or "none"
    return [name for name in ([asked] if isinstance(asked, str) else asked) if name != "none"]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id; a tokenizer without one pads with its end-of-text token (padding carries no loss)."""
    for kind in ("pad", "eos"):
        if (token_id := _token_id(tokenizer, kind)) is not None:
            return token_id
    raise UserError("tokenizer: it has neither a pad nor an eos token; set one in tokenizer_config.json")


def _token_id(tokenizer: PreTrainedTokenizerBase, kind: str) -> int | None:
    token_id: Any = getattr(tokenizer, f"{kind}_token_id")
    return None if token_id is None else int(token_id)


def find_run_path(config: Config, recipe: str | None) -> Path:
    """`training.output_dir`, default `runs/NAME`."""
    return Path(config.training.get("output_dir") or Path("runs") / (recipe or "default"))
