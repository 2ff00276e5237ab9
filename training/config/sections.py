"""The sections of a recipe that `training` owns, and `Config`, the whole of it once checked.

`data` and `tokenizer` belong to `data_prep.options`; `training` is made from the installed transformers in
`training_fields.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from data_prep.options import DataSection, Section, TokenizerSection
from training.config.training_fields import hf_defaults

Mapping = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
Steps = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class MiniGPTFields(Section):
    """What `model.config` takes with `kind: minigpt`; a field left out has MiniGPTConfig's default."""

    vocab_size: Positive | None = Field(default=None, description="left out: the tokenizer's")
    hidden_size: Positive | None = None
    intermediate_size: Positive | None = None
    num_hidden_layers: Positive | None = None
    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: Literal["swiglu", "gelu", "relu2", "mish", "xielu"] | None = None
    max_position_embeddings: Positive | None = None
    rope_theta: float | None = None
    rms_norm_eps: float | None = None
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    tie_word_embeddings: bool | None = None
    initializer_range: float | None = None


class ModelSection(Section):
    """One of `path` (pretrained), `config` with a model_type (any HF architecture, from scratch), `kind: minigpt`."""

    path: str | None = Field(default=None, description="directory or hub name of a causal LM")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    kind: Literal["minigpt"] | None = Field(
        default=None, description="a model of this repo; the default when nothing is set"
    )
    config: Mapping = Field(
        default_factory=dict, description="fields of the architecture; model_type names any other than minigpt"
    )
    attn_implementation: str = Field(
        default="auto", description="auto: the fastest that is installed; or a name HF knows"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype in which parameters are held"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that a hub model brings along")


class AdapterSection(Section):
    """LoRA over a pretrained model, whose weights may be held in 4 bits."""

    method: Literal["none", "lora"] = Field("none", description="none: all weights train; lora: low-rank adapters do")
    r: Positive = Field(default=16, description="rank of the two factors")
    alpha: Positive = Field(default=32, description="the update is scaled by alpha/r (rslora: alpha/sqrt(r))")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's inputs that is dropped in training")
    target_modules: list[str] | str = Field(
        default="all-linear", description="names of the modules that get an adapter"
    )
    dora: bool = Field(default=False, description="train magnitude and direction apart")
    rslora: bool = Field(default=False, description="scale by alpha/sqrt(r)")
    load_in_4bit: bool = Field(default=False, description="hold the frozen weights in NF4")
    double_quant: bool = Field(
        default=True, description="with load_in_4bit: quantise the quantisation constants as well"
    )


class PerfSection(Section):
    """What is measured of a step, and what is done for speed and memory outside `TrainingArguments`."""

    enabled: bool = Field(default=True, description="time the phases and count FLOPs")
    log_every: Positive = Field(default=10, description="optimizer steps between two lines of perf/ metrics")
    empty_cache_every: Steps = Field(default=0, description="optimizer steps between two cache clearings; 0: never")
    flops_profile_every: Steps = Field(
        default=0, description="optimizer steps between two counts by FlopCounterMode; 0: never"
    )
    profile_steps: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="[first, last] step that torch.profiler traces"
    )
    num_threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto", description="CPU threads of each rank"
    )
    micro_batch_size: Literal["recipe", "auto"] = Field(
        default="recipe",
        description="auto: as many rows at once as fit the device; per_device_train_batch_size x "
        "gradient_accumulation_steps, the rows of a step, stay the recipe's",
    )

    @model_validator(mode="after")
    def _check_window(self) -> "PerfSection":
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps = {self.profile_steps}: the first step comes after the last")
        return self


class MonitorSection(Section):
    """How often the run says how it goes."""

    train_every: Positive = Field(
        default=10, description="optimizer steps between two lines of loss, gradient norm and rate"
    )
    gpu_every: Steps = Field(
        default=50, description="optimizer steps between two readings of GPU utilisation and memory"
    )
    plot_every: Steps = Field(
        default=200,
        description="optimizer steps between two loss-curve PNGs (after the first, 0.05 % of the time at most); "
        "checkpoints get theirs besides; 0: only at the end",
    )
    wandb_entity: str | None = Field(default=None, description="user or team; absent: WANDB_ENTITY, else your default")
    wandb_group: str | None = Field(default=None, description="runs that W&B shows together; absent: WANDB_RUN_GROUP")
    wandb_mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None, description="offline: kept in the run directory for `wandb sync`; absent: WANDB_MODE"
    )
    sample_prompt: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="what the trained model continues at the end"
    )


class CheckpointSection(Section):
    """What is checked of a checkpoint; when one is written is `training.save_steps`."""

    verify_final: bool = Field(default=True, description="reload final/ and compare one forward pass")
    verify_on_resume: bool = Field(default=True, description="compare a checkpoint with its manifest before reading it")


class Config(Section):
    """A checked recipe. `training` holds what the recipe or our defaults set; TrainingArguments knows the rest."""

    model: ModelSection
    adapter: AdapterSection
    tokenizer: TokenizerSection
    data: DataSection
    training: dict[str, Any]
    perf: PerfSection
    monitor: MonitorSection
    checkpoint: CheckpointSection

    def argument(self, name: str) -> Any:
        """The value TrainingArguments will have for a field: the recipe's, ours, or HF's literal default."""
        return self.arguments().get(name)

    def arguments(self) -> dict[str, Any]:
        """All fields of TrainingArguments with a known value. Build the arguments from `training`, not from this."""
        return {**hf_defaults(), **self.training}
