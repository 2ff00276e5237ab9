"""The levers: what of a configuration may be turned for speed or memory, and to which values.

A lever looks at the configuration and at what its first run showed (ranks, device, threads) and lists variants, or
says why there is nothing to turn. Nothing here is advice: every variant is run before anything is reported about it. A
variant that trains something else by design says so (`changes_training`): its gain is no free gain.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training import allocator, precision
from training.activations.modes import AUTO, MODES
from training.config import LoadedConfig
from training.launch import count_cores
from training.optim import optimizers
from training.optim.choose import find_optimizer

DEEPSPEED_BUCKET = 500_000_000  # reduce_bucket_size where the JSON has none (DeepSpeed's default, in elements)
DDP_BUCKET_MB = 25  # torch's default
DEEPSPEED = "--deepspeed"  # the key of `Variant.recipe` that stands for the option


@dataclass(frozen=True)
class Baseline:
    """The configuration as it is, and what its first run showed. device: cpu or cuda. allocator: as in `env.json`."""

    loaded: LoadedConfig
    world_size: int
    device: str
    num_threads: int
    allocator: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, name: str) -> Any:
        """A field of TrainingArguments as the recipe has it."""
        return self.loaded.config.argument(name)


@dataclass(frozen=True)
class Variant:
    """One lever at one value. recipe: dotted key -> value; json: dotted key of the DeepSpeed JSON -> value.

    changes_training: why losses are others by design; empty: the same training up to rounding.
    """

    lever: str
    label: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] = field(default_factory=dict)
    changes_training: str = ""

    @property
    def drops_deepspeed(self) -> bool:
        """Whether the variant trains without DeepSpeed."""
        return self.recipe.get(DEEPSPEED) == "none"


class NothingToTurnError(Exception):
    """The reason why a lever has no variants here."""


def list_variants(base: Baseline, levers: Sequence[str]) -> tuple[list[Variant], dict[str, str]]:
    """Variants of `levers`, and for each lever without any the reason."""
    variants: list[Variant] = []
    reasons: dict[str, str] = {}
    for name in levers:
        try:
            variants += LEVERS[name](base)
        except NothingToTurnError as nothing:
            reasons[name] = str(nothing)
    return variants, reasons


def _micro_batch(base: Baseline) -> list[Variant]:
    if base.loaded.config.perf.micro_batch_size == "auto":
        raise NothingToTurnError("perf.micro_batch_size: auto already chooses the size")
    if base.loaded.config.data.max_tokens_per_batch:
        raise NothingToTurnError("data.max_tokens_per_batch sets the size of a micro-batch")
    micro = int(base.argument("per_device_train_batch_size"))
    rows = micro * int(base.argument("gradient_accumulation_steps") or 1)
    sizes = [size for size in (2 * micro, micro // 2) if size and rows % size == 0]
    variants = [
        Variant(
            "micro-batch",
            f"{size} x {rows // size} accumulated",
            {"training.per_device_train_batch_size": size, "training.gradient_accumulation_steps": rows // size},
        )
        for size in sizes
    ]
    if rows == micro:  # nothing is accumulated: only a larger step can have more rows at once
        twice = {"training.per_device_train_batch_size": 2 * micro}
        variants.append(Variant("micro-batch", f"{2 * micro}", twice, changes_training="twice the rows of a step"))
    return variants


def _packing(base: Baseline) -> list[Variant]:
    data = base.loaded.config.data
    packed = {"data.group_by_length": False, "data.max_tokens_per_batch": None}
    choices: dict[str, dict[str, Any]] = {
        "best_fit": {"data.packing": "best_fit", **packed},
        "wrapped": {"data.packing": "wrapped", **packed},
        "none": {"data.packing": "none"},
    }
    if not data.streaming:
        choices["none, grouped by length"] = {"data.packing": "none", "data.group_by_length": True}
    now = data.packing + ", grouped by length" * bool(data.group_by_length)
    return [
        Variant("packing", label, changes, changes_training="other tokens in a step")
        for label, changes in choices.items()
        if label != now
    ]


def _attention(base: Baseline) -> list[Variant]:
    from training.attention.choose import find_model_class, find_usable  # torch and peft: not for `--help`
    from training.attention.kernels import Compute
    from training.models.build import load_shape

    config = base.loaded.config
    dtype = precision.find_precision(config.arguments()).dtype
    compute = Compute(base.device, dtype, packed=config.data.packing != "none")
    model_class = find_model_class(load_shape(config.model, planning=True))
    usable = [kernel.name for kernel in find_usable(compute, model_class)]
    asked = config.model.attn_implementation
    taken = usable[0] if asked == "auto" else asked
    others = [name for name in usable if name != taken]
    return [Variant("attention", name, {"model.attn_implementation": name}) for name in others]


def _loss_kernel(base: Baseline) -> list[Variant]:
    from training.loss.choose import find_usable
    from training.loss.terms import find_terms

    config = base.loaded.config
    if config.training.get("use_liger_kernel"):
        raise NothingToTurnError("training.use_liger_kernel brings a loss of its own")
    terms = find_terms(config.argument("label_smoothing_factor"), config.model.z_loss)
    usable = [kernel.name for kernel in find_usable(terms, base.device)]
    asked = config.perf.loss_kernel
    taken = usable[0] if asked == "auto" else asked
    return [Variant("loss kernel", name, {"perf.loss_kernel": name}) for name in usable if name != taken]


def _fused_layers(base: Baseline) -> list[Variant]:
    if base.device != "cpu" and importlib.util.find_spec("liger_kernel") is None:
        raise NothingToTurnError("on CUDA layers are fused by Liger, which is not installed")
    other = "auto" if base.loaded.config.perf.fused_layers == "off" else "off"
    return [Variant("fused layers", other, {"perf.fused_layers": other})]


def _compile(base: Baseline) -> list[Variant]:
    from training.compiling.install import find_obstacle
    from training.compiling.modes import MODES, OFF, find_mode

    config = base.loaded.config
    hf_on = bool(config.training.get("torch_compile"))
    now = None if hf_on else find_mode(config.perf.compile)
    free = {"training.torch_compile": False} if hf_on else {}
    obstacles = {mode: find_obstacle(mode, base.device, base.loaded.deepspeed) for mode in MODES if mode is not OFF}
    if now is OFF and all(obstacles.values()):
        raise NothingToTurnError(str(next(iter(obstacles.values()))))
    return [
        Variant("compile", mode.name, {**free, "perf.compile": mode.name})
        for mode in MODES
        if mode is not now and not obstacles.get(mode)
    ]


def _checkpointing(base: Baseline) -> list[Variant]:
    now = base.loaded.config.perf.activation_checkpointing
    if now == AUTO:
        raise NothingToTurnError("perf.activation_checkpointing: auto already chooses the mode")
    return [
        Variant("checkpointing", mode.name, {"perf.activation_checkpointing": mode.name})
        for mode in MODES
        if mode.name != now
    ]


def _precision(base: Baseline) -> list[Variant]:
    now = precision.find_precision(base.loaded.config.arguments())
    variants = []
    for other in precision.PRECISIONS:
        if other is now or other.obstacle(base.device):
            continue
        switches = other.switches()
        recipe = {f"training.{switch}": on for switch, on in switches.items()}
        json = {f"{switch}.enabled": on for switch, on in switches.items()} if base.loaded.deepspeed else {}
        variants.append(Variant("precision", other.name, recipe, json, "another precision"))
    return variants


def _workers(base: Baseline) -> list[Variant]:
    from training.data.loader import choose_num_workers

    config = base.loaded.config
    asked = config.training.get("dataloader_num_workers")
    now = choose_num_workers(
        config.data.num_workers if asked is None else asked,
        device_type=base.device,
        cores=count_cores(),
        local_ranks=base.world_size,
    )
    numbers = sorted({0, max(now // 2, 1), min(2 * max(now, 1), 16)} - {now})
    return [Variant("workers", f"{number} a rank", {"data.num_workers": number}) for number in numbers]


def _pinned_memory(base: Baseline) -> list[Variant]:
    if base.device != "cuda":
        raise NothingToTurnError("on a CPU batches are not copied")
    pinned = bool(base.loaded.config.training.get("dataloader_pin_memory", True))
    return [Variant("pinned memory", "off" if pinned else "on", {"training.dataloader_pin_memory": not pinned})]


def _optimizer(base: Baseline) -> list[Variant]:
    if "optimizer" in (base.loaded.deepspeed or {}):
        raise NothingToTurnError("the DeepSpeed JSON names the optimizer")
    now = find_optimizer(str(base.argument("optim")))
    return [
        Variant(
            "optimizer", other.name, {"training.optim": other.name},
            changes_training="" if other.same_training and other.same_training == now.same_training
            else "another optimizer",
        )
        for other in optimizers.OPTIMIZERS if base.device in other.advised_on and other is not now
    ]  # fmt: skip


def _zero_stage(base: Baseline) -> list[Variant]:
    deepspeed = base.loaded.deepspeed
    if deepspeed is None:
        if base.world_size == 1:
            raise NothingToTurnError("one rank has nothing to shard")
        if not base.argument("bf16"):
            raise NothingToTurnError("the DeepSpeed set-ups to try compute in bf16, and this recipe does not")
        return [
            Variant("ZeRO stage", name, {DEEPSPEED: name}, changes_training="weights in bf16 with float32 masters")
            for name in ("zero1_bf16", "zero2_bf16")
        ]
    zero = deepspeed.get("zero_optimization") or {}
    now = int(zero.get("stage") or 0)
    variants = []
    if base.world_size > 1 and not (zero.get("offload_param") or zero.get("offload_optimizer")):
        variants = [
            Variant("ZeRO stage", f"stage {stage}", json={"zero_optimization.stage": stage})
            for stage in (1, 2, 3) if stage != now
        ]  # fmt: skip
    if "optimizer" not in deepspeed and "scheduler" not in deepspeed:
        kept = ("bf16", "fp16", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps")
        stated = {f"training.{name}": base.argument(name) for name in kept if base.argument(name) is not None}
        variants.append(
            Variant("ZeRO stage", "without DeepSpeed", {DEEPSPEED: "none", **stated},
                    changes_training="weights in float32 under autocast")
        )  # fmt: skip
    if not variants:
        raise NothingToTurnError(
            "with an optimizer or scheduler in the JSON, and one rank or offload, no other stage can be tried"
        )
    return variants


def _bucket_size(base: Baseline) -> list[Variant]:
    if base.world_size == 1:
        raise NothingToTurnError("one rank has no gradients to reduce")
    if base.loaded.deepspeed is None:
        now = int(base.argument("ddp_bucket_cap_mb") or DDP_BUCKET_MB)
        return [
            Variant("bucket size", f"DDP {size} MB", {"training.ddp_bucket_cap_mb": size})
            for size in (4 * now, max(now // 4, 1)) if size != now
        ]  # fmt: skip
    now = (base.loaded.deepspeed.get("zero_optimization") or {}).get("reduce_bucket_size", DEEPSPEED_BUCKET)
    if not isinstance(now, int | float):
        raise NothingToTurnError(f"reduce_bucket_size: {now!r} in the DeepSpeed JSON leaves it to Hugging Face")
    return [
        Variant("bucket size", f"{size / 1e6:,.0f} M elements", json={"zero_optimization.reduce_bucket_size": size})
        for size in (int(4 * now), int(now // 4))
    ]


def _threads(base: Baseline) -> list[Variant]:
    if base.device != "cpu":
        raise NothingToTurnError("threads matter only for training on a CPU")
    now, cores = base.num_threads, count_cores()
    numbers = [number for number in (now // 2, 2 * now) if 1 <= number <= cores]
    if not numbers:
        raise NothingToTurnError(f"{now} thread on {cores} core{'s' * (cores > 1)}")
    return [Variant("threads", f"{number} a rank", {"perf.num_threads": number}) for number in numbers]


def _allocator(base: Baseline) -> list[Variant]:
    if base.device != "cpu":
        raise NothingToTurnError("tensors on a GPU are not allocated by malloc")
    name, set_by = base.allocator.get("name"), base.allocator.get("set_by", "unchanged")
    if set_by == "LD_PRELOAD":
        raise NothingToTurnError(f"{base.allocator.get('library')} is already loaded when a process starts")
    now = "off" if set_by == "unchanged" else name
    names = [*(one.name for one in allocator.find_usable()), "off"]
    return [Variant("allocator", one, {"perf.allocator": one}) for one in names if one != now]


LEVERS: dict[str, Callable[[Baseline], list[Variant]]] = {
    "micro-batch": _micro_batch,
    "packing": _packing,
    "attention": _attention,
    "loss-kernel": _loss_kernel,
    "fused-layers": _fused_layers,
    "compile": _compile,
    "precision": _precision,
    "checkpointing": _checkpointing,
    "workers": _workers,
    "pinned-memory": _pinned_memory,
    "optimizer": _optimizer,
    "zero-stage": _zero_stage,
    "bucket-size": _bucket_size,
    "threads": _threads,
    "allocator": _allocator,
}


def combine(variants: Sequence[Variant]) -> Variant:
    """All of `variants` at once. Without DeepSpeed nothing of its JSON is turned."""
    dropped = any(variant.drops_deepspeed for variant in variants)
    kept = [variant for variant in variants if not (dropped and variant.json)]
    recipe = {key: value for variant in kept for key, value in variant.recipe.items()}
    json = {key: value for variant in kept for key, value in variant.json.items()}
    label = ", ".join(f"{variant.lever} {variant.label}" for variant in kept)
    return Variant("together", label, recipe, json)
