"""Descriptions of the keys of `training:` for `--help` and the schema.

transformers has a help text for each field. Some of these texts are about other programs, or name defaults that do not
hold here; these say what a key does in Redline. A field that is not listed keeps the text of transformers.
"""

from training.optim.choose import describe_offer

_CHECKPOINTING = (
    "Whether to recompute activations in the backward pass, which needs less memory and more compute. true means full "
    "in perf.activation_checkpointing, which has more modes."
)
_CHECKPOINTING_OPTIONS = (
    "Options of torch.utils.checkpoint: use_reentrant (must be false), preserve_rng_state, determinism_check, debug, "
    "early_stop."
)
_LOG_LEVEL = "debug, info, warning, error, critical, or passive, which leaves the level as it is."

DESCRIPTIONS: dict[str, str] = {
    "output_dir": "Run directory: logs, metrics, checkpoints and the final model. RECIPE is the name of the recipe "
    "file, or default without one.",
    "per_device_train_batch_size": "Micro-batch size of training: the number of rows that a device processes at once.",
    "num_train_epochs": "Number of passes over the training data. If you set it, the default of max_steps does "
    "not apply.",
    "max_steps": "Number of optimizer steps. Use either this key or num_train_epochs; -1 leaves the number to "
    "num_train_epochs.",
    "learning_rate": "Peak learning rate.",
    "lr_scheduler_type": "Learning rate schedule.",
    "lr_scheduler_kwargs": "Parameters of the learning rate schedule, such as {min_lr: 1e-5} for cosine_with_min_lr.",
    "warmup_steps": "Length of the linear warmup of the learning rate: a number of steps, or, below 1, a fraction of "
    "all steps.",
    "optim": f"Optimizer. {describe_offer()}",
    "optim_args": "Parameters of the optimizer, as KEY=VALUE pairs separated by commas.",
    "optim_target_modules": "Modules whose gradients GaLore or APOLLO projects: module names, a regular expression, or "
    "all-linear.",
    "weight_decay": "Weight decay coefficient. Biases and norm layers have no weight decay.",
    "adam_beta1": "Decay rate of the first moment (momentum) in Adam optimizers.",
    "adam_beta2": "Decay rate of the second moment in Adam optimizers.",
    "adam_epsilon": "Epsilon in the denominator of Adam optimizers.",
    "gradient_accumulation_steps": "Number of micro-batches in an optimizer step. A step has "
    "per_device_train_batch_size x gradient_accumulation_steps x ranks rows.",
    "average_tokens_across_devices": "Whether the loss of a step is the mean over the tokens of all ranks. false "
    "averages the means of the ranks.",
    "max_grad_norm": "Largest norm of the gradient; a larger gradient is scaled down to it. 0 disables clipping.",
    "label_smoothing_factor": "Label smoothing, from 0 (none) to below 1.",
    "bf16": "Whether to compute in bfloat16 (mixed precision).",
    "fp16": "Whether to compute in float16 (mixed precision with loss scaling), for GPUs without bfloat16.",
    "tf32": "Whether float32 matrix products use TF32 on NVIDIA GPUs from Ampere on. By default, PyTorch's setting.",
    "activation_checkpointing": f"{_CHECKPOINTING} The new name of gradient_checkpointing in transformers.",
    "activation_checkpointing_kwargs": _CHECKPOINTING_OPTIONS,
    "gradient_checkpointing": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING_OPTIONS,
    "torch_compile": "Whether to compile the model with torch.compile.",
    "torch_compile_backend": "Backend of torch.compile. Setting it enables torch_compile.",
    "torch_compile_mode": "Mode of torch.compile. Setting it enables torch_compile.",
    "use_liger_kernel": "Whether to replace layers of a Hugging Face model by Liger kernels. Needs the package "
    "liger-kernel.",
    "liger_kernel_config": "Selection of Liger kernels, as name: true or false. By default, Liger's own selection.",
    "use_cache": "Whether the model keeps a key-value cache during training. Only some PEFT methods need it.",
    "neftune_noise_alpha": "Scale of the noise that NEFTune adds to embeddings during training; 5 to 15 is usual. By "
    "default, no noise is added.",
    "log_on_each_node": "Whether the first rank of every node writes log messages. false leaves that to the "
    "first node.",
    "log_level": f"Log level of transformers on the main rank: {_LOG_LEVEL}",
    "log_level_replica": f"Log level of transformers on all other ranks: {_LOG_LEVEL}",
    "report_to": "Experiment trackers to use. metrics.jsonl is always written as well.",
    "run_name": "Name of the run in experiment trackers.",
    "project": "Project in Weights & Biases. By default, the environment variable WANDB_PROJECT, else redline.",
    "eval_strategy": "When to evaluate: never, every eval_steps, or after each epoch.",
    "eval_steps": "Interval between two evaluations with eval_strategy: steps: a number of steps, or, below 1, a "
    "fraction of all steps.",
    "eval_delay": "Time before the first evaluation: a number of steps or of epochs, as in eval_strategy.",
    "per_device_eval_batch_size": "Micro-batch size of evaluation: the number of rows that a device processes at once.",
    "eval_on_start": "Whether to evaluate before the first step.",
    "save_only_model": "Whether checkpoints hold only the weights. A run cannot be resumed from such a checkpoint.",
    "save_strategy": "When to save a checkpoint: never, every save_steps, after each epoch, or at each new lowest "
    "evaluation loss (best).",
    "save_steps": "Interval between two checkpoints with save_strategy: steps: a number of steps, or, below 1, a "
    "fraction of all steps.",
    "save_on_each_node": "Whether every node saves checkpoints. Set it if the nodes share no file system.",
    "save_total_limit": "Largest number of checkpoints to keep. The oldest ones are deleted; with "
    "load_best_model_at_end, the best one is kept. null keeps all.",
    "load_best_model_at_end": "Whether the final model is the checkpoint with the lowest evaluation loss. Needs the "
    "same eval_strategy and save_strategy.",
    "metric_for_best_model": "Metric that selects the best checkpoint. Only the loss is available.",
    "greater_is_better": "Whether a higher metric is better. Leave it out: the metric is the loss.",
    "full_determinism": "Whether to use only deterministic algorithms. They are slower.",
    "seed": "Random seed of weight initialization and dropout. The order of the data depends on data.seed.",
    "use_cpu": "Whether to train on the CPU. By default, a GPU is used if there is one.",
    "dataloader_drop_last": "Whether rows that fill no whole step at the end of a run are left out.",
    "dataloader_num_workers": "Number of processes of each rank that load batches: another name for data.num_workers, "
    "which is used by default.",
    "dataloader_pin_memory": "Whether batches are loaded into pinned memory, for faster copies to a GPU.",
    "dataloader_persistent_workers": "Whether worker processes are kept between epochs.",
    "dataloader_prefetch_factor": "Number of batches that each worker process loads in advance.",
    "dataloader_multiprocessing_context": "Start method of worker processes: fork, spawn or forkserver. By default, "
    "the one that PyTorch selects.",
    "remove_unused_columns": "Must be false: the collator needs every column.",
    "ddp_find_unused_parameters": "Whether DistributedDataParallel looks for parameters without a gradient in each "
    "step.",
    "ddp_bucket_cap_mb": "Size of DistributedDataParallel's gradient buckets, in MiB. By default, PyTorch's.",
    "ddp_broadcast_buffers": "Whether DistributedDataParallel sends buffers from rank 0 to all ranks in each step.",
    "ddp_static_graph": "Whether DistributedDataParallel assumes the same computation graph in each step.",
    "ddp_timeout": "Time that a rank waits for the others in a collective operation, in seconds.",
    "fsdp": "Set it to true to shard the model with PyTorch's Fully Sharded Data Parallel (FSDP). Off by default.",
    "fsdp_config": "Options of FSDP: a mapping, or the path of a JSON file.",
    "debug": "Debugging aids. underflow_overflow detects overflow in the inputs and outputs of layers.",
}
# Key of `training:` -> its default where it is not the one of TrainingArguments.
DEFAULTS_HERE = {
    "project": "redline",
    "remove_unused_columns": False,
    "dataloader_num_workers": None,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 4,
    "output_dir": "runs/RECIPE",
}
