"""The sections of a recipe that `training` owns, and `Config`, the checked recipe.

`data` and `tokenizer` belong to `data_prep.options`; `training` is made from the installed transformers in
`training_fields.py`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from data_prep.options import DataSection, Section, TokenizerSection
from training.activations.modes import Checkpointing, check_name, find_checkpointing
from training.config.training_fields import hf_defaults

Mapping = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
# Fields of TrainingArguments that turn activation checkpointing on, two names of one.
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")


def _read_off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads `off` as false


class MiniGPTFields(Section):
    """Keys of `model.config` with `kind: minigpt`. A key that is left out has the default of MiniGPTConfig."""

    vocab_size: Positive | None = Field(
        default=None, description="Vocabulary size. By default, the size of the tokenizer's vocabulary."
    )
    hidden_size: Positive | None = Field(default=None, description="Width of the residual stream.")
    intermediate_size: Positive | None = Field(default=None, description="Width of the MLP's hidden layer.")
    num_hidden_layers: Positive | None = Field(default=None, description="Number of decoder layers.")
    num_attention_heads: Positive | None = Field(default=None, description="Number of query heads in each layer.")
    num_key_value_heads: Positive | None = Field(
        default=None, description="Number of key and value heads in each layer (grouped-query attention)."
    )
    head_dim: Positive | None = Field(default=None, description="Width of one attention head.")
    hidden_act: Literal["swiglu", "gelu", "relu2", "mish", "xielu"] | None = Field(
        default=None, description="Activation function of the MLP."
    )
    max_position_embeddings: Positive | None = Field(
        default=None, description="Largest number of tokens in a row that the model takes."
    )
    rope_theta: float | None = Field(default=None, description="Base of the rotary position embeddings.")
    rms_norm_eps: float | None = Field(default=None, description="Epsilon of the RMSNorm layers.")
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Dropout probability of the attention weights."
    )
    tie_word_embeddings: bool | None = Field(
        default=None, description="Whether the output layer shares the weights of the token embedding."
    )
    initializer_range: float | None = Field(
        default=None, description="Standard deviation of the normal distribution that weights are initialized from."
    )


class ModelSection(Section):
    """The model: pretrained weights (`path`), any Hugging Face architecture from scratch (`config` with a model_type)
    or MiniGPT from scratch (`kind: minigpt`, the default)."""

    path: str | None = Field(
        default=None,
        description="Pretrained causal language model: a directory or a name on the Hugging Face Hub. By default, "
        "the model is initialized from scratch.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of a model on the Hub. By default, its main branch."
    )
    kind: Literal["minigpt"] | None = Field(
        default=None,
        description="Built-in architecture, trained from scratch. By default, minigpt if neither path nor "
        "config.model_type is set.",
    )
    config: Mapping = Field(
        default_factory=dict,
        description="Architecture parameters of a model from scratch. model_type selects a Hugging Face architecture; "
        "without it, the parameters are those of MiniGPT.",
    )
    attn_implementation: str = Field(
        default="auto",
        description="Attention kernel, by its Hugging Face name. auto selects the fastest one that runs on this "
        "machine with this model.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type that parameters are stored in. auto selects float32 for weights that are trained, and "
        "the compute type for the frozen weights under an adapter.",
    )
    z_loss: float = Field(
        default=0.0,
        ge=0,
        description="Coefficient of the squared log-sum-exp of the logits, added to the training loss (PaLM: 1e-4). It "
        "keeps logits from drifting.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether to run Python code that comes with a model from the Hub."
    )


class AdapterSection(Section):
    """LoRA adapters on a pretrained model, whose frozen weights can be quantized to 4 bits."""

    method: Literal["none", "lora"] = Field(
        default="none", description="What is trained. none trains all weights; lora trains only low-rank adapters."
    )
    r: Positive = Field(default=16, description="Rank of the adapters.")
    alpha: Positive = Field(
        default=32,
        description="Scale of the adapters: an update is multiplied by alpha/r (with rslora, by alpha/sqrt(r)).",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout probability of an adapter's inputs, during training only. Above 0, PEFT's code computes "
        "adapters instead of ours, which takes longer.",
    )
    target_modules: list[str] | str = Field(
        default="all-linear",
        description="Modules that get an adapter: a list of module names, or a regular expression that matches full "
        "names. all-linear selects every linear layer except the output layer.",
    )
    dora: bool = Field(default=False, description="Whether to train magnitude and direction separately (DoRA).")
    rslora: bool = Field(default=False, description="Whether to scale updates by alpha/sqrt(r) instead of alpha/r.")
    load_in_4bit: bool = Field(
        default=False, description="Whether to store the frozen weights in 4 bits (NF4), as QLoRA does."
    )
    double_quant: bool = Field(
        default=True, description="Whether load_in_4bit also quantizes the quantization constants."
    )


class PerfSection(Section):
    """Performance measurement, and settings for speed and memory that `TrainingArguments` lacks."""

    enabled: bool = Field(default=True, description="Whether to time the phases of a step and count FLOPs.")
    log_every: Positive = Field(default=10, description="Interval between two records of perf/ metrics, in steps.")
    empty_cache_every: Steps = Field(
        default=0,
        description="Interval between two clearings of the GPU memory cache, in steps. 0 never clears it.",
    )
    flops_profile_every: Steps = Field(
        default=0,
        description="Interval between two FLOP counts with PyTorch's FlopCounterMode, in steps. 0 disables them.",
    )
    profile_steps: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="First and last step that torch.profiler traces, both included, as [FIRST, LAST]. By "
        "default, none is traced.",
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto",
        description="Number of CPU threads of each rank. auto uses OMP_NUM_THREADS if you set it, else divides the "
        "CPU cores among the ranks of the machine.",
    )
    allocator: Annotated[
        Literal["auto", "tcmalloc", "jemalloc", "glibc", "off"],
        BeforeValidator(_read_off),
    ] = Field(
        default="auto",
        description="Memory allocator of the process. auto, on a CPU, keeps a preloaded tcmalloc or jemalloc, else "
        "restarts the process once with an installed one, else (glibc) sets the thresholds of the C library so that "
        "freed memory is kept; on a GPU it changes nothing. off never changes anything.",
    )
    loss_kernel: str = Field(
        default="auto",
        description="How the training and evaluation loss is computed: auto, chunked (without holding all logits), "
        "liger, cce, or plain (the model's own). auto takes the first that runs here and in the model.",
    )
    float32_products: Literal["auto", "torch"] = Field(
        default="auto",
        description="How float32 products are computed on a CPU. auto has oneDNN compute them where a check at the "
        "start finds them exact, which is faster on AMD; torch leaves them as torch has them.",
    )
    collect_garbage_every: int = Field(
        default=100,
        ge=0,
        description="Optimizer steps between two collections of Python's garbage, which wait for no allocation in the "
        "middle of a step. 0 leaves it to Python.",
    )
    fused_layers: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether decoder layers compute their pieces together. On a CPU: those of Llama, Mistral, Qwen 2 "
        "and 3 and MiniGPT (norm with residual, QKV, gate and up, SwiGLU), where the CPU kernels can be built and "
        "attention is theirs. On CUDA: RMSNorm, RoPE and SwiGLU by Liger, where it is installed and knows the model.",
    )
    skip_zero_at_world_1: bool = Field(
        default=False,
        description="Whether a run of one rank in bfloat16 leaves out ZeRO-1 or 2 of its DeepSpeed JSON, which has "
        "nothing to share there. Losses differ by rounding; a checkpoint that ZeRO wrote is resumed with ZeRO.",
    )
    activation_checkpointing: Annotated[str, BeforeValidator(_read_off), AfterValidator(check_name)] = Field(
        default="off",
        description="What the backward pass computes again, to need less memory: off (nothing), selective (all but "
        "matrix products and attention, whose outputs are kept), every_N (one layer in N, such as every_4), "
        "full (every layer). auto takes the first of off, selective, every_4, every_2 and full whose planned peak fits "
        "in memory, for per_device_train_batch_size rows; micro_batch_size: auto chooses the rows after that.",
    )
    compile: Literal["auto", "off", "blocks", "model"] = Field(
        default="auto",
        description="What torch.compile compiles: blocks (each decoder layer; one compilation serves all that are "
        "alike), model (all layers at once, without the head), or off. auto is off: no measurement shows a gain yet.",
    )
    compile_cache_dir: str | None = Field(
        default=None,
        description="Directory that compiled code is kept in, for the next start. By default, redline/compiled in your "
        "cache directory. TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR, where you set them, come first.",
    )
    micro_batch_size: Literal["recipe", "auto"] = Field(
        default="recipe",
        description="How the micro-batch size is chosen. recipe uses per_device_train_batch_size. auto selects the "
        "largest size that fits in device memory; per_device_train_batch_size x gradient_accumulation_steps, the "
        "number of rows in a step, stays the same.",
    )

    @model_validator(mode="after")
    def _check_window(self) -> "PerfSection":
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps = {self.profile_steps}: the first step comes after the last: swap them")
        return self


class MonitorSection(Section):
    """Logging, plots and trackers of a run."""

    train_every: Positive = Field(
        default=10,
        description="Interval between two records of loss, gradient norm and learning rate, in steps.",
    )
    gpu_every: Steps = Field(
        default=50,
        description="Interval between two readings of GPU utilization and memory, in steps. 0 disables them.",
    )
    plot_every: Steps = Field(
        default=200,
        description="Interval between two plots of the loss curves, in steps. Plots after the first are delayed "
        "so that they take at most 0.05 % of the time. Each checkpoint and the end of the run get a plot as "
        "well. 0 plots only at the end.",
    )
    on_stall: Annotated[
        Literal["warn", "stop", "off"],
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads `off` as false
    ] = Field(
        default="warn",
        description="What happens when a rank makes no progress. warn writes the stacks of all threads of all ranks to "
        "stalls/ in the run directory, and an event; stop also ends the ranks with exit code 124, for a supervisor to "
        "start them again.",
    )
    stall_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Seconds without progress after which a rank counts as stalled, if 20 times its longest recent "
        "step is less. Set-up, the first step and a save have 6 times as long.",
    )
    wandb_entity: str | None = Field(
        default=None,
        description="User or team in Weights & Biases. By default, the environment variable WANDB_ENTITY, else your "
        "default entity.",
    )
    wandb_group: str | None = Field(
        default=None,
        description="Group of runs in Weights & Biases. By default, the environment variable WANDB_RUN_GROUP.",
    )
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None,
        description="Mode of Weights & Biases. offline stores the run in the run directory, for a later `wandb sync`. "
        "By default, the environment variable WANDB_MODE.",
    )
    sample_prompt: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Text that the trained model continues at the end of the run; for a chat model, the user's "
        "message. By default, the beginning of an evaluation document. With checkpoint.verify_final: false, no text is "
        "generated.",
    )


class CheckpointFields(Section):
    """How checkpoints are kept and checked. `training.save_steps` sets when one is saved, `training.save_total_limit`
    how many of the last are kept."""

    verify_final: bool = Field(
        default=True,
        description="Whether to reload the final model from final/ and compare its weights and outputs with those of "
        "the trained model.",
    )
    verify_on_resume: bool = Field(
        default=True, description="Whether to compare a checkpoint with its manifest before the run resumes from it."
    )
    keep_every: Steps = Field(
        default=0,
        description="A checkpoint whose step is a multiple of this number is never deleted, beside the last "
        "training.save_total_limit and the best one. 0 keeps none beside these.",
    )
    stop_exit_code: Annotated[int, Field(ge=0, le=255)] | None = Field(
        default=None,
        description="Exit code of a run that a signal has stopped. By default, 128 + the number of the signal: 143 "
        "after SIGTERM, 130 after SIGINT (Ctrl-C), 129 after SIGHUP.",
    )
    on_disk_full: Literal["continue", "stop"] = Field(
        default="continue",
        description="What a full disk does to a run that saves. continue trains on without this checkpoint and warns; "
        "stop ends the run (exit code 2). Older checkpoints stay whole.",
    )

    @property
    def in_background(self) -> bool:
        """`async`, which is a word of Python's."""
        return getattr(self, "async")


if TYPE_CHECKING:
    CheckpointSection = CheckpointFields
else:
    CheckpointSection = create_model(
        "CheckpointSection",
        __base__=CheckpointFields,
        __doc__=CheckpointFields.__doc__,
        **{
            "async": (
                bool,
                Field(
                    default=False,
                    description="Whether checkpoints are written in the background: the step waits only for a copy of "
                    "the state in host memory. One save at a time; ZeRO-3 and FSDP save synchronously.",
                ),
            )
        },
    )


class Config(Section):
    """A checked recipe. `training` holds what the recipe or our defaults set; TrainingArguments has the rest."""

    model: ModelSection
    adapter: AdapterSection
    tokenizer: TokenizerSection
    data: DataSection
    training: dict[str, Any]
    perf: PerfSection
    monitor: MonitorSection
    checkpoint: CheckpointSection

    def find_checkpointing(self) -> Checkpointing:
        """What the backward pass computes again. Raises ValueError while it is still `auto`."""
        options: dict[str, Any] = next(filter(None, (self.argument(f"{name}_kwargs") for name in CHECKPOINTING)), {})
        options = {key: value for key, value in options.items() if key != "use_reentrant"}
        return find_checkpointing(self.perf.activation_checkpointing, options)

    def with_checkpointing(self, mode: str) -> "Config":
        """The same with this mode of activation checkpointing."""
        perf = self.perf.model_copy(update={"activation_checkpointing": mode})
        return self.model_copy(update={"perf": perf})

    def argument(self, name: str) -> Any:
        """The value TrainingArguments will have for a field: the recipe's, ours, or HF's literal default."""
        return self.arguments().get(name)

    def arguments(self) -> dict[str, Any]:
        """All fields of TrainingArguments with a known value. Build the arguments from `training`, not from this."""
        return {**hf_defaults(), **self.training}
