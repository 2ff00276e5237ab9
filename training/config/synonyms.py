"""Names of other training programs, and the keys that they stand for: transformers (including names that it has
removed), TRL, LLaMA-Factory, axolotl, nanoGPT and Lightning.

A synonym stands only for keys of ours. A name is refused, with the reason and the remedy, if Redline does not have what
it names, or if other programs disagree on the meaning of its value. No name is accepted and then ignored.
Names of data, tokenizer and the model's path are in `data_prep.recipe.data_names`.
"""

import re
from typing import Any

from data_prep.recipe import DATA_NAMES, Names, Synonym
from training.activations.modes import check_name

_FP16 = {"training.fp16": True, "training.bf16": False}
_BF16 = {"training.bf16": True, "training.fp16": False}
_FP32 = {"training.fp16": False, "training.bf16": False}
PRECISIONS = {
    "16-mixed": _FP16, "bf16-mixed": _BF16, "32": _FP32, "16": _FP16, "fp16": _FP16, "bf16": _BF16, "fp32": _FP32,
    "32-true": _FP32, "no": _FP32,
}  # fmt: skip
FLASH_ATTENTION = {"auto": "auto", "fa2": "flash_attention_2", "fa3": "flash_attention_3", "sdpa": "sdpa"}
FLASH_ATTENTION |= {"disabled": "eager", "true": "flash_attention_2", "false": "sdpa"}
ADAPTERS = {
    "lora": {"adapter.method": "lora"},
    "qlora": {"adapter.method": "lora", "adapter.load_in_4bit": True},
    "dora": {"adapter.method": "lora", "adapter.dora": True},
    "full": {"adapter.method": "none"},
    "none": {"adapter.method": "none"},
}
LONGEST_WARMUP_RATIO = 1.0
_LISTED_NAMES = re.compile(r"[\w\s.,\[\]-]+")


def _one_of(table: dict[str, Any], text: str) -> Any:
    if text.lower() not in table:
        raise ValueError(f"must be one of {', '.join(table)}")
    return table[text.lower()]


def _precision(text: str) -> dict[str, Any]:
    return _one_of(PRECISIONS, text)


def _flash_attention(text: str) -> dict[str, Any]:
    return {"model.attn_implementation": _one_of(FLASH_ATTENTION, text)}


def _adapter(text: str) -> dict[str, Any]:
    return _one_of(ADAPTERS, text)


def _quantization(text: str) -> dict[str, Any]:
    if text != "4":
        raise ValueError("must be 4 (adapter.load_in_4bit): Redline supports no other width")
    return {"adapter.load_in_4bit": True}


def _names(texts: list[str]) -> list[str]:
    """Words as people list them: `a b`, `a,b`, `[a, b]`."""
    return [name.strip() for text in texts for name in text.strip("[]").split(",") if name.strip()]


def _target_modules(texts: list[str]) -> dict[str, Any]:
    if len(texts) == 1 and not _LISTED_NAMES.fullmatch(texts[0]):  # a regular expression over full names
        return {"adapter.target_modules": texts[0]}
    names = _names(texts)
    return {"adapter.target_modules": "all-linear" if names in (["all"], ["all-linear"]) else names}


def _report_to(texts: list[str]) -> dict[str, Any]:
    names = _names(texts)
    return {"training.report_to": names if len(names) > 1 else "".join(names)}


def _warmup_ratio(text: str) -> dict[str, Any]:
    try:
        ratio = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not 0 <= ratio < LONGEST_WARMUP_RATIO:
        raise ValueError("must be a fraction of all steps, below 1; for a number of steps, use training.warmup_steps")
    return {"training.warmup_steps": ratio}


def _steps(key: str) -> Synonym:
    def expand(text: str) -> dict[str, Any]:
        if not text.isdigit():
            raise ValueError(f"must be a whole number of steps; for a fraction of all steps, use {key}")
        return {key: int(text)}

    return Synonym("one", expand)


def _micro_batch_size(text: str) -> dict[str, Any]:
    if text in ("auto", "recipe"):
        return {"perf.micro_batch_size": text}
    if not text.isdigit():
        raise ValueError("must be a number of rows per device, or auto")
    return {"training.per_device_train_batch_size": int(text)}


def _compile(on: bool) -> dict[str, Any]:
    return {"perf.compile": "blocks" if on else "off"}


def _checkpointing(text: str) -> dict[str, Any]:
    """The argument of transformers takes true and false, ours a mode."""
    if text in ("true", "false"):
        return {"training.activation_checkpointing": text == "true"}
    return {"perf.activation_checkpointing": "off" if text == "none" else check_name(text)}


def _device(text: str) -> dict[str, Any]:
    return {"training.use_cpu": _one_of({"cpu": True, "cuda": False, "gpu": False}, text)}


def _tracker(name: str) -> Synonym:
    return Synonym("switch", lambda on: {"training.report_to": name if on else "none"})


def _whole_data(on: bool) -> dict[str, Any]:
    return {"data.sources.*.max_documents": None, "data.sources.*.max_tokens": None} if on else {}


def _thin_monitoring(on: bool) -> dict[str, Any]:
    if not on:
        return {}
    return {"monitor.train_every": 50, "monitor.gpu_every": 500, "monitor.plot_every": 0, "perf.log_every": 100}


# Key, or several keys that get the same value -> its other names.
_SAME_VALUE: dict[str | tuple[str, ...], str] = {
    ("training.seed", "data.seed"): "seed random_seed seed_everything",
    "training.learning_rate": "lr max_lr base_lr",
    "training.num_train_epochs": "epochs num_epochs max_epochs n_epochs train_epochs num_train_epoch",
    "training.max_steps": "max_iters num_steps total_steps train_steps num_train_steps max_train_steps max_iterations",
    "training.per_device_train_batch_size": "batch_size per_device_batch_size per_gpu_train_batch_size "
    "device_batch_size per_gpu_batch_size bs",
    "training.per_device_eval_batch_size": "eval_batch_size per_gpu_eval_batch_size val_batch_size valid_batch_size",
    "training.gradient_accumulation_steps": "grad_accum_steps grad_accumulation_steps gradient_accumulation "
    "gradient_accumulation_iters accumulate_grad_batches accumulation_steps grad_accum grad_acc gas",
    "training.max_grad_norm": "grad_clip clip_grad clip_grad_norm gradient_clipping gradient_clip_val max_norm",
    "training.weight_decay": "wd",
    "training.adam_beta1": "beta1",
    "training.adam_beta2": "beta2",
    "training.adam_epsilon": "adam_eps eps",
    "training.warmup_steps": "warmup_iters num_warmup_steps",
    "training.lr_scheduler_type": "lr_scheduler scheduler scheduler_type lr_schedule",
    "training.optim": "optimizer optimizer_type",
    "training.eval_strategy": "evaluation_strategy",
    "training.use_cpu": "no_cuda cpu",
    "training.output_dir": "out_dir save_dir output output_path default_root_dir",
    "training.project": "wandb_project",
    "training.run_name": "name wandb_name wandb_run_name exp_name experiment_name",
    "training.save_steps": "save_interval save_every save_freq checkpoint_every",
    "training.gradient_checkpointing": "use_gradient_checkpointing enable_gradient_checkpointing",
    "training.use_liger_kernel": "enable_liger_kernel use_liger liger_kernel liger",
    "training.dataloader_pin_memory": "pin_memory",
    "training.label_smoothing_factor": "label_smoothing",
    "training.neftune_noise_alpha": "neftune_alpha noise_alpha",
    "model.revision": "model_revision",
    "model.dtype": "torch_dtype model_dtype",
    "model.attn_implementation": "attn_impl attention_implementation",
    "model.config.model_type": "model_type",
    "model.config.num_hidden_layers": "n_layer n_layers num_layers num_hidden_layers",
    "model.config.num_attention_heads": "n_head n_heads num_heads num_attention_heads",
    "model.config.hidden_size": "n_embd d_model hidden_size dim",
    "adapter.r": "lora_r lora_rank",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.dora": "use_dora lora_use_dora peft_use_dora",
    "adapter.rslora": "use_rslora lora_use_rslora peft_use_rslora",
    "adapter.double_quant": "use_bnb_nested_quant bnb_4bit_use_double_quant double_quantization",
    "data.num_workers": "dataloader_workers",
    "monitor.wandb_group": "group",
    "monitor.train_every": "logging_steps log_interval log_every_n_steps log_steps",
}

SYNONYMS = {
    **DATA_NAMES.synonyms,
    **{name: keys for keys, names in _SAME_VALUE.items() for name in names.split()},
    "micro_batch_size": Synonym("one", _micro_batch_size),
    "warmup_ratio": Synonym("one", _warmup_ratio),
    "eval_interval": _steps("training.eval_steps"),
    "eval_every": _steps("training.eval_steps"),
    "val_check_interval": _steps("training.eval_steps"),
    **dict.fromkeys(("precision", "mixed_precision"), Synonym("one", _precision)),
    "fp32": Synonym("switch", lambda on: _FP32 if on else {}),
    **dict.fromkeys(
        ("flash_attn", "flash_attention", "use_flash_attention", "use_flash_attention_2", "use_flash_attn"),
        Synonym("word", _flash_attention),
    ),
    **dict.fromkeys(("use_peft", "use_lora", "lora"), Synonym("switch", lambda on: ADAPTERS["lora" if on else "none"])),
    "qlora": Synonym("switch", lambda on: ADAPTERS["qlora" if on else "none"]),
    **dict.fromkeys(("finetuning_type", "adapter", "peft_type", "train_type", "tuner_type"), Synonym("one", _adapter)),
    "quantization_bit": Synonym("one", _quantization),
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), Synonym("many", _target_modules)),
    "report_to": Synonym("many", _report_to),
    "lora_target_linear": Synonym("switch", lambda on: {"adapter.target_modules": "all-linear"} if on else {}),
    **dict.fromkeys(("compile_model", "enable_compile"), Synonym("switch", _compile)),
    **dict.fromkeys(
        ("activation_checkpointing", "activation_checkpoint", "ac_mode", "recompute_granularity"),
        Synonym("word", _checkpointing),
    ),
    "device": Synonym("one", _device),
    **dict.fromkeys(("wandb", "use_wandb", "wandb_log"), _tracker("wandb")),
    **dict.fromkeys(("tensorboard", "use_tensorboard"), _tracker("tensorboard")),
    "disable_metrics_monitoring": Synonym("switch", lambda on: {"perf.enabled": not on}),
    "disable_monitoring": Synonym("switch", lambda on: _thin_monitoring(on) | {"perf.enabled": not on}),
    "fast_detection": Synonym("switch", _thin_monitoring),
    "plot_loss": Synonym("switch", lambda on: {"monitor.plot_every": 200 if on else 0}),
    "use_full_data": Synonym("switch", _whole_data),
}

_NOT_BUILT = "is not supported by Redline"
_LAUNCHER = "the launcher sets the devices: torchrun --nproc_per_node=N training/train.py … or deepspeed --num_gpus N …"
_PER_DEVICE = "set the sizes whose product it is: --per_device_train_batch_size x --gradient_accumulation_steps x ranks"
_GENERATE = "applies to text generation: use python -m training.generate"
_PREFERENCES = f"preference training {_NOT_BUILT}: it trains the chosen answer of a preference pair: leave it out"
_MIN_RATE = "use --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{min_lr: 1e-5}' (or min_lr_rate: 0.1)"
_RESUME = "use --resume auto|PATH|never"
_WHOLE_EVALUATION = "evaluation uses all documents that are held out: set data.validation_share"
_ZERO = "use --deepspeed zero2_bf16, or another configuration from ds_configs/"

# Reason and what to use -> the names that are refused with it.
_REASONS = {
    _LAUNCHER: "devices num_devices gpus num_gpus n_gpu n_gpus nproc_per_node num_processes nnodes num_nodes "
    "device_map world_size ddp",
    f"{_LAUNCHER}; {_ZERO}": "strategy accelerator distributed_type zero_stage",
    "set the environment variable CUDA_VISIBLE_DEVICES": "gpu_ids gpu_id visible_devices",
    _PER_DEVICE: "train_batch_size global_batch_size total_batch_size effective_batch_size",
    "there are two: use adapter.dropout (--lora_dropout) or model.config.attention_dropout": "dropout",
    "disable single optimizations instead: --compile off, --attn_implementation eager, --packing none": (
        "disable_optimizations"
    ),
    "Redline has no limit on CPU use: use --num_threads": "max_cpu",
    "Redline has no limit on memory: use `python -m training.plan` to predict what a run needs": "max_memory",
    "the kind of the records selects the loss (docs/data.md): leave it out": "stage task",
    _PREFERENCES: "rl rlhf_type dpo_beta pref_beta pref_loss ref_model",
    "the schedule always covers all steps: use --max_steps": "lr_decay_iters lr_decay_steps",
    "use --warmup_steps: a number of steps, or, below 1, a fraction of all steps": "warmup warmup_epochs",
    "use --adam_beta1 and --adam_beta2": "betas adam_betas",
    "limit the run with --max_steps or --epochs, or a source with data.sources: [{path: …, max_tokens: N}]": (
        "max_tokens num_tokens total_tokens train_tokens max_train_tokens"
    ),
    "use --gradient_checkpointing_kwargs '{use_reentrant: false}'": "use_reentrant",
    _MIN_RATE: "min_lr min_learning_rate cosine_min_lr_ratio min_lr_ratio decay_lr",
    "to resume a run, use --resume auto|PATH|never; to start from other weights, --model.path": (
        "init_from load_from_checkpoint ckpt_path"
    ),
    _RESUME: "auto_resume_from_checkpoints resume_from",
    "an older run in the directory is moved aside, or continued with --resume auto: leave it out": (
        "overwrite_output_dir"
    ),
    "all files of a run are in its run directory: use training.output_dir": "log_dir tensorboard_dir",
    "use training.fp16 or training.bf16": "fp16_opt_level fp16_backend half_precision_backend amp apex",
    "trained parameters are stored in float32 unless you set model.dtype: bfloat16": "pure_bf16",
    f"{_NOT_BUILT}: use --load_in_4bit with --use_peft": "load_in_8bit",
    "4-bit weights are always NF4 and computed in the type of training.bf16: leave it out": (
        "bnb_4bit_quant_type bnb_4bit_compute_dtype quantization_method quantization_type"
    ),
    f"{_NOT_BUILT}: adapters train only the modules of adapter.target_modules": "modules_to_save lora_modules_to_save "
    "additional_target lora_bias loraplus_lr_ratio lora_task_type freeze_trainable_layers layers_to_transform "
    "freeze_layers",
    f"{_NOT_BUILT}: leave it out": "use_unsloth unsloth use_galore use_badam use_adam_mini early_stopping_patience "
    "early_stopping patience swa ema tensor_parallel_size pipeline_parallel_size context_parallel_size "
    "sequence_parallel_size",
    "for a model from scratch, use model.config; a pretrained model has its own": (
        "config_name config_overrides rope_scaling rope_theta"
    ),
    "set the environment variable HF_TOKEN": "token use_auth_token hf_token",
    "weights are always loaded that way: leave it out": "low_cpu_mem_usage",
    _WHOLE_EVALUATION: "eval_iters limit_val_batches num_sanity_val_steps",
    "use --max_samples or --max_steps": "limit_train_batches overfit_batches",
    "write a recipe that adds the profile debug: `extends: [RECIPE, debug]`": "fast_dev_run",
    "use --eval_strategy epoch": "check_val_every_n_epoch evals_per_epoch",
    "use --save_strategy epoch, or --save_steps": "saves_per_epoch always_save_checkpoint enable_checkpointing",
    "use --save_total_limit N, or --load_best_model_at_end with --metric_for_best_model": "save_top_k keep_best",
    _GENERATE: "predict_with_generate max_new_tokens do_sample temperature top_p top_k prompt",
    "the backend is nccl on GPUs and gloo on a CPU: leave it out": "backend xpu_backend",
    "Redline does not upload weights to trackers: leave it out": "wandb_log_model wandb_watch",
    "set the environment variables WANDB_TAGS and WANDB_NOTES": "wandb_tags wandb_notes tags notes",
    "a resumed run keeps its id: leave it out": "wandb_run_id wandb_id",
    "use --report_to wandb or tensorboard": "logger use_swanlab use_mlflow use_comet tracker",
}
REFUSED_FLAGS = {
    **DATA_NAMES.refused,
    **{name: reason for reason, names in _REASONS.items() for name in names.split()},
}
NAMES = Names(SYNONYMS, REFUSED_FLAGS)
