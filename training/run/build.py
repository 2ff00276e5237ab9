"""From a configuration to the objects that train: arguments, model, datasets, meter, callbacks, trainer.

Nothing here decides anything about training beyond what the recipe says; what DESIGN forces (no NaN filter, our own
trackers, our own logging cadence) is set in one place, `FORCED_ARGUMENTS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Subset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from data_prep.errors import UserError
from data_prep.options import DataSection
from data_prep.prepare import Prepared
from data_prep.progress import progress
from data_prep.store.document_table import DocumentTable
from data_prep.store.store import Store
from data_prep.stream.stream import StreamPlan
from training.attention.choose import needs_cu_seqlens
from training.attention.kernels import Compute
from training.callbacks.cache_clearing import CacheClearing
from training.callbacks.first_step import FirstStep
from training.callbacks.garbage import GarbageCollection
from training.callbacks.gpu_monitor import GpuMonitor
from training.callbacks.plotting import Plotting
from training.callbacks.profiler_window import ProfilerWindow
from training.callbacks.run_events import RunEvents
from training.callbacks.sinks import build_sinks
from training.callbacks.weight_casts import WeightCasts
from training.checkpoints.store import StoreOptions
from training.compiling.compiled import BatchShapes
from training.compiling.install import install_compile
from training.compiling.modes import OFF, find_mode
from training.config import Config, LoadedConfig
from training.config.sections import CHECKPOINTING
from training.config.trackers import find_trackers
from training.data.collator import Collator
from training.data.dataset import RowDataset, build_datasets
from training.data.held_out import warn_of_few_rows
from training.data.loader import LoaderOptions, StoreBatches, TrainBatches, build_batching, choose_num_workers
from training.data.resume_check import describe_order
from training.data.streaming import StreamBatches, read_first_rows, read_validation_rows
from training.data.token_bytes import count_token_bytes
from training.launch import World, count_cores
from training.loss.choose import install_loss
from training.loss.terms import find_terms
from training.models.build import build_model
from training.models.fused import find_casts, fuse_layers
from training.models.saved_files import make_savable
from training.models.scratch import TokenizerFacts
from training.models.stop_tokens import Chats, prepare_chats
from training.optim.choose import is_of_deepspeed
from training.precision import find_precision
from training.ranks import sum_over_ranks
from training.run_dir import RunDir
from training.trainers.meter import build_meter
from training.trainers.recipe_trainer import RecipeParts, RecipeTrainer
from training.trainers.setup_errors import explain_setup_errors

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

# What the recipe sets and something else than TrainingArguments carries out: our trackers, and the model's builder.
OWN_ARGUMENTS = ("report_to", *CHECKPOINTING, *(f"{name}_kwargs" for name in CHECKPOINTING))
PREFETCH_FACTOR = 4  # batches that each worker prepares ahead


def build_training_arguments(
    loaded: LoadedConfig, run_dir: RunDir, device: torch.device, world: World
) -> TrainingArguments:
    """`training:` as `TrainingArguments`, with what other sections own and what is forced."""
    config = loaded.config
    precision = find_precision(config.arguments())
    if obstacle := precision.obstacle(device.type):
        raise UserError(f"training.{precision.switch}: {obstacle}: use training.bf16")
    given = {key: value for key, value in config.training.items() if key not in OWN_ARGUMENTS}
    given |= FORCED_ARGUMENTS | {
        "output_dir": str(run_dir.path),
        "logging_steps": config.monitor.train_every,
        "logging_first_step": True,
        "use_cpu": device.type == "cpu",
        "deepspeed": loaded.deepspeed,
    }
    given |= find_loader_arguments(config, device, world)
    if given.get("save_strategy") == "best":
        given.setdefault("metric_for_best_model", "loss")  # Hugging Face sets it for load_best_model_at_end alone
    try:
        args = TrainingArguments(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    if "scheduler" not in (loaded.deepspeed or {}):
        check_schedule(args)
    check_json_optimizer(loaded.deepspeed or {})
    return args


def check_schedule(args: TrainingArguments) -> None:
    """Build the learning-rate schedule once for nothing: the Trainer would do so when model and data are loaded.

    Raises UserError when the schedule does not take `lr_scheduler_kwargs`, or needs more than they say.
    """
    steps = max(args.max_steps, 1)
    given: Any = args.lr_scheduler_kwargs or {}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, given)
    except (ValueError, TypeError, KeyError) as error:
        name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        reason = " ".join(str(error).split())
        raise UserError(f"training.lr_scheduler_kwargs: {given} does not suit {name}: {reason}") from error


def check_json_optimizer(deepspeed: Mapping[str, Any]) -> None:
    """Build an optimizer of torch that a DeepSpeed JSON names once for nothing, as `check_schedule`.

    Raises UserError when it does not take its `params`, or needs more than those say.
    """
    block = deepspeed.get("optimizer") or {}
    if not block or is_of_deepspeed(block["type"]):
        return
    params = {key: value for key, value in block["params"].items() if value != "auto"}
    try:
        getattr(torch.optim, block["type"])([torch.nn.Parameter(torch.zeros(1))], **params)
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer.params: {block['type']}: {' '.join(str(error).split())}") from error


def find_loader_arguments(config: Config, device: torch.device, world: World) -> dict[str, Any]:
    """`dataloader_*` by the machine, where the recipe leaves them open: the number of workers, kept and reading ahead.

    Raises UserError for arguments that only workers can have, where there are none.
    """
    given = config.training
    asked = given.get("dataloader_num_workers")
    if asked is None:
        asked = config.data.num_workers
    cores = count_cores()
    workers = choose_num_workers(asked, device_type=device.type, cores=cores, local_ranks=world.local_size)
    pinned = device.type == "cuda" and given.get("dataloader_pin_memory", True)  # on a CPU there is no copy
    found = {"dataloader_num_workers": workers, "dataloader_pin_memory": pinned}
    if workers:
        found["dataloader_persistent_workers"] = given.get("dataloader_persistent_workers", True)
        found["dataloader_prefetch_factor"] = given.get("dataloader_prefetch_factor", PREFETCH_FACTOR)
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        if given.get(name) and not workers:
            raise UserError(f"training.{name}: needs workers, and data.num_workers: auto is 0 on a CPU: set a number")
    ahead = f", {found['dataloader_prefetch_factor']} batches ahead each" if workers else ""
    why = (
        "asked for"
        if asked != "auto"
        else f"{device.type}, {cores} cores for {world.local_size} rank{'s' * (world.local_size > 1)}"
    )
    logger.info("loader: %d workers a rank%s%s (%s)", workers, ahead, ", pinned memory" * pinned, why)
    return found


def build_trainer(
    loaded: LoadedConfig, prepared: Prepared, run_dir: RunDir, args: TrainingArguments, world: World
) -> RecipeTrainer:
    """Everything a run needs, wired. Collective: the ceiling is measured on all ranks at once."""
    config = loaded.config
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_dir)
    store = Store.open(prepared.store_dir) if prepared.store_dir else None
    source = prepared.stream or store
    assert source is not None
    train_dataset, eval_dataset = find_datasets(source, config)
    under_zero = explain_setup_errors("deepspeed: the model cannot be built") if args.deepspeed else nullcontext()
    with progress("loading the model" if config.model.path else "building the model"), under_zero:
        model = build_run_model(config, tokenizer, args)
    prepare_chats(Chats.of(source), find_table(train_dataset or eval_dataset), tokenizer, model)
    meter = build_meter(model, args, config.data.seq_len) if config.perf.enabled else None
    collator = Collator(
        pad_token_id=_pad_id(tokenizer),
        seq_len=config.data.seq_len,
        pad_to_multiple_of=config.data.pad_to_multiple_of,
        packing=config.data.packing,
        varlen=needs_cu_seqlens(model),
        token_bytes=count_token_bytes(tokenizer),
    )
    parts = RecipeParts(
        run_dir=run_dir,
        train_batches=build_train_batches(prepared.stream or train_dataset, config.data, args, collator, run_dir),
        order=describe_order(source, config.data),
        verify_packing=config.data.verify_packing and config.data.packing != "none",
        meter=meter,
        log_every=config.perf.log_every,
        flops_profile_every=config.perf.flops_profile_every,
        terms=find_terms(config.argument("label_smoothing_factor"), config.model.z_loss),
        store=StoreOptions(
            keep_every=config.checkpoint.keep_every,
            on_disk_full=config.checkpoint.on_disk_full,
            in_background=config.checkpoint.in_background,
        ),
    )
    with explain_setup_errors("training"):
        trainer = RecipeTrainer(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            parts=parts,
        )
    if trainer.is_deepspeed_enabled != (loaded.deepspeed is not None):
        raise RuntimeError("accelerate did not take the DeepSpeed set-up: training would continue without ZeRO")
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    entropy = store.manifest.unigram_entropy_nats if store else None
    for callback in build_callbacks(config, trainer, run_dir, args, entropy):
        trainer.add_callback(callback)
    if world.is_main:
        trainer.on_start(
            lambda max_steps: build_sinks(
                find_trackers(config.training.get("report_to")),
                run_dir,
                max_steps=max_steps,
                config=config.model_dump(),
            )
        )
    return trainer


def find_datasets(source: StreamPlan | Store, config: Config) -> tuple[Any, Any]:
    """Rows to train on and to evaluate on, the latter None where no document is held out.

    Of a stream the former are only something to look at, where there is nothing to evaluate on. Raises UserError when
    a stream is to be evaluated on and no document of its beginning is held out.
    """
    if isinstance(source, Store):
        return build_datasets(source, config.data)
    validation = read_validation_rows(source, config.data)
    if validation is None and config.argument("eval_strategy") != "no":
        raise UserError(
            "data.validation_share: no document is held out in the beginning of data.sources: raise it, or set "
            "training.eval_strategy: no"
        )
    return (read_first_rows(source, config.data) if validation is None else None), validation


def find_table(rows: Any) -> DocumentTable:
    """The documents that rows, or a choice of them, were made of."""
    made: Any = rows.dataset if isinstance(rows, Subset) else rows
    return made.table


def build_train_batches(
    source: StreamPlan | RowDataset, data: DataSection, args: TrainingArguments, collator: Collator, run_dir: RunDir
) -> TrainBatches:
    """This rank's share of the training rows, in the order and the batches that the recipe asks for."""
    workers: Any = args.dataloader_num_workers
    options = LoaderOptions(
        workers,
        args.dataloader_prefetch_factor,
        args.dataloader_persistent_workers,
        args.dataloader_pin_memory,
        args.dataloader_multiprocessing_context,
    )
    if isinstance(source, StreamPlan):
        return StreamBatches(
            source,
            data,
            collator,
            options,
            args.train_batch_size,
            run_dir.path,
            rank=args.process_index,
            world_size=args.world_size,
            device=args.device,
            sum_over_ranks=partial(sum_over_ranks, device=args.device),
        )
    rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    warn_of_few_rows(len(source.row_lengths), rows_per_step)
    return StoreBatches(
        source,
        build_batching(source.row_lengths, data, args.train_batch_size),
        collator,
        options,
        rank=args.process_index,
        world_size=args.world_size,
        device=args.device,
        drop_last=args.dataloader_drop_last,
    )


def build_run_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> PreTrainedModel | PeftModel:
    """The model of a run, the same on every rank: weights are drawn under `training.seed`."""
    from transformers import set_seed

    set_seed(args.seed)
    model = build_model(
        config.model,
        config.adapter,
        TokenizerFacts(len(tokenizer), _pad_id(tokenizer), _token_id(tokenizer, "bos"), _token_id(tokenizer, "eos")),
        Compute(args.device.type, find_precision(vars(args)).dtype, packed=config.data.packing != "none"),
        checkpointing=config.find_checkpointing(),
    )
    make_savable(model)
    fuse_layers(
        model,
        # Liger's patches, which the Trainer applies later, are those of the layers too.
        "off" if args.use_liger_kernel else config.perf.fused_layers,
        device_type=args.device.type,
        partitioned=is_deepspeed_zero3_enabled() or bool(args.fsdp),
        is_compiled=args.torch_compile or find_mode(config.perf.compile) is not OFF,
    )
    # They compute the loss themselves.
    requested = "plain" if args.use_liger_kernel else config.perf.loss_kernel
    install_loss(
        model,
        requested,
        find_terms(config.argument("label_smoothing_factor"), config.model.z_loss),
        device_type=args.device.type,
    )
    shapes = BatchShapes(
        args.train_batch_size,
        config.data.seq_len,
        varies_length=config.data.packing == "none",
        varies_rows=config.data.max_tokens_per_batch is not None,
    )
    install_compile(model, config.perf.compile, shapes, device_type=args.device.type)
    return model


def build_callbacks(
    config: Config, trainer: RecipeTrainer, run_dir: RunDir, args: TrainingArguments, entropy: float | None
) -> list[TrainerCallback]:
    """One callback for each thing that was asked for."""
    compiles = find_mode(config.perf.compile) is not OFF
    callbacks: list[TrainerCallback] = [FirstStep()] if args.torch_compile or compiles else []
    if compiles:
        from training.callbacks.compile_watch import CompileWatch  # loads torch's compiler: seconds of a start

        callbacks.append(CompileWatch(run_dir, writes=args.process_index == 0))
    model: Any = trainer.model
    if (casts := find_casts(model)) is not None:
        callbacks.append(WeightCasts(trainer, casts))
    if config.perf.collect_garbage_every:
        callbacks.append(GarbageCollection(trainer, config.perf.collect_garbage_every))
    if config.perf.empty_cache_every:
        callbacks.append(CacheClearing(trainer, config.perf.empty_cache_every))
    if config.perf.profile_steps:
        first, last = config.perf.profile_steps
        callbacks.append(ProfilerWindow(trainer, run_dir, args.process_index, first, last))
    if config.monitor.gpu_every and args.device.type == "cuda":
        callbacks.append(GpuMonitor(trainer, args.device, config.monitor.gpu_every))
    if args.process_index == 0:
        callbacks.append(RunEvents(trainer, run_dir, entropy))
        if config.monitor.plot_every:
            callbacks.append(Plotting(trainer, run_dir, config.monitor.plot_every, entropy))
    return callbacks


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
