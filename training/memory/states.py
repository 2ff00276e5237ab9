"""What a rank holds of the model itself: parameters, gradients, master weights, optimizer states, DeepSpeed's buffers.

Bytes per parameter (P all, T trained, N ranks; 2-byte training dtype under DeepSpeed; ZeRO paper, arXiv:1910.02054,
section 3.1, with DeepSpeed's own buffers added):

                      parameters   gradients         fp32 master   Adam
    plain, DDP        4 P          4 T (+4 T DDP)    none          8 T
    DeepSpeed 0       2 P          2 T + 4 T         4 T           8 T
    ZeRO-1            2 P          2 T               4 T / N       8 T / N
    ZeRO-2            2 P          2 T / N           4 T / N       8 T / N
    ZeRO-3            2 P / N      2 T / N           4 T / N       8 T / N

At the step ZeRO turns its partition of the gradients to fp32 (4 T / N, for a moment). Offloading moves master weights,
Adam and fp32 gradients to the host, or the parameters as well. Frozen parameters have the first column only; 4-bit
ones take half a byte and their scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from training.memory.trace import Reduction
from training.optim.facts import MIN_8BIT_ELEMENTS, ChosenOptimizer

Place = Literal["device", "host"]


@dataclass(frozen=True)
class Parameters:
    """Element counts of a model. `largest_linear` and `largest_layer` are in elements, for buffers of that size."""

    total: int
    trained: int
    in_4bit: int
    bytes: int
    """As held without DeepSpeed."""
    trained_bytes: int
    largest_linear: int
    largest_layer: int
    largest_outside_layers: int
    largest_trained: int = 0
    bytes_in_4bit: int = 0
    """Of the 4-bit weights with their scales; part of `bytes`."""
    outside_8bit: int = 0
    """Trained elements whose states 8-bit optimizers keep in fp32: embeddings (tied heads too) and small tensors."""


@dataclass(frozen=True)
class ZeroSetup:
    """What of a DeepSpeed JSON decides memory. Bucket sizes and live parameters are in elements."""

    stage: int
    world_size: int
    value_bytes: int = 2
    """Of a parameter in bf16 or fp16; 4 in float32."""
    offload_optimizer: bool = False
    offload_param: bool = False
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlap_comm: bool = False

    @property
    def reduction(self) -> Reduction | None:
        """What happens to gradients in backward; `partition` is left at 0, as it depends on the model."""
        if self.stage == 0:
            return None
        num_buckets = 0 if self.stage == 3 else 2 if self.overlap_comm else 1
        return Reduction(self.value_bytes * self.reduce_bucket, num_buckets, partition=0)


@dataclass(frozen=True)
class MemoryPart:
    """One line of the plan. `at`: always there, only while the passes run, or only during the optimizer step."""

    name: str
    bytes: int
    place: Place = "device"
    at: Literal["always", "passes", "step"] = "always"
    note: str = ""


def count_parameters(model: nn.Module, *, double_quant: bool = True) -> Parameters:
    """Tied weights once, 4-bit weights by the elements they stand for. A model on the meta device will do."""
    four_bit = {id(m.weight) for m in model.modules() if type(m).__name__ == "Linear4bit"}
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    packed = sum(p.numel() for p in parameters if id(p) in four_bit)
    plain_bytes = sum(p.numel() * p.element_size() for p in parameters if id(p) not in four_bit)
    layer_lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = list(max(layer_lists, key=len)) if layer_lists else []
    in_layers = {id(p) for layer in layers for p in layer.parameters()}
    bytes_in_4bit = round(packed * bytes_per_4bit_weight(double_quant))
    # transformers' Trainer.create_optimizer asks bitsandbytes for 32 bits for the weight of every nn.Embedding
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return Parameters(
        total=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        in_4bit=packed,
        bytes=plain_bytes + bytes_in_4bit,
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        largest_linear=max((p.numel() for p in parameters if id(p) in four_bit), default=0),
        largest_layer=max((_elements(layer.parameters()) for layer in layers), default=0),
        largest_outside_layers=max((p.numel() for p in parameters if id(p) not in in_layers), default=0),
        largest_trained=max((p.numel() for p in trained), default=0),
        bytes_in_4bit=bytes_in_4bit,
        outside_8bit=_elements(p for p in trained if id(p) in embeddings or p.numel() < MIN_8BIT_ELEMENTS),
    )


def bytes_per_4bit_weight(double_quant: bool) -> float:
    """NF4 (arXiv:2305.14314, section 3): half a byte, and per 64 values a scale: fp32, or 8 bits and fp32 per 256."""
    return 0.5 + (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64)


def read_zero_setup(deepspeed: dict[str, Any], world_size: int, hidden_size: int, value_bytes: int = 2) -> ZeroSetup:
    """From a DeepSpeed JSON as written; `auto` sizes as transformers fills them in (hidden^2, 0.9 hidden^2)."""
    zero: dict[str, Any] = deepspeed.get("zero_optimization") or {}
    stage = int(zero.get("stage", 0))

    def size(key: str, auto: int, default: int) -> int:
        value = zero.get(key, default)
        return auto if value == "auto" else int(value)

    def offloads(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    return ZeroSetup(
        stage=stage,
        world_size=world_size,
        value_bytes=value_bytes,
        offload_optimizer=offloads("offload_optimizer"),
        offload_param=stage == 3 and offloads("offload_param"),
        reduce_bucket=size("reduce_bucket_size", hidden_size**2, 500_000_000),
        prefetch_bucket=size("stage3_prefetch_bucket_size", int(0.9 * hidden_size**2), 50_000_000),
        max_live_parameters=size("stage3_max_live_parameters", 1_000_000_000, 1_000_000_000),
        sub_group=size("sub_group_size", 1_000_000_000, 1_000_000_000),
        max_reuse_distance=size("stage3_max_reuse_distance", 1_000_000_000, 1_000_000_000),
        overlap_comm=bool(zero.get("overlap_comm") or (stage == 3 and zero.get("overlap_comm") is None)),
    )


def list_plain_parts(counts: Parameters, optimizer: ChosenOptimizer, world_size: int) -> list[MemoryPart]:
    """Without DeepSpeed. Gradients are not listed: the traced step makes them."""
    in_fp32 = counts.outside_8bit / 1e6 if optimizer.facts.in_8bit else 0
    note = optimizer.label + (f", {in_fp32:,.1f} M in fp32: embeddings and small tensors" if in_fp32 else "")
    parts = [
        MemoryPart("parameters", counts.bytes, note=_parameter_note(counts)),
        MemoryPart("optimizer states", plain_state_bytes(counts, optimizer), note=note),
    ]
    if world_size > 1:
        parts.append(MemoryPart("DDP buckets", counts.trained_bytes, note="a second copy of the gradients"))
    return parts


def plain_state_bytes(counts: Parameters, optimizer: ChosenOptimizer) -> int:
    """Bytes of optimizer states without DeepSpeed, whose flat partitions have no embeddings to keep in fp32."""
    return optimizer.count_state_bytes(counts.trained_bytes / 4, counts.outside_8bit)


def list_step_temporaries(optimizer: ChosenOptimizer, largest: int, trained: int, *, on_gpu: bool) -> list[MemoryPart]:
    """What the optimizer makes for a moment; largest, trained: elements of one tensor and of all that it sees."""
    made = optimizer.facts.find_temporaries(largest, trained, on_gpu=on_gpu)
    return [MemoryPart("optimizer temporaries", made.bytes, at="step", note=made.note)] if made else []


def list_zero_parts(counts: Parameters, setup: ZeroSetup, optimizer: ChosenOptimizer) -> list[MemoryPart]:
    """Under DeepSpeed. Gradients and buckets that come and go in backward are not listed: the traced step has them."""
    shard = setup.world_size if setup.stage >= 1 else 1
    trained = -(-counts.trained // shard)
    states_at: Place = "host" if setup.offload_optimizer else "device"
    return [
        _zero_parameters(counts, setup),
        MemoryPart("fp32 master weights", 4 * trained, states_at, note=f"1/{shard} of the trained ones"),
        MemoryPart("optimizer states", round(optimizer.flat_bytes * trained), states_at, note=optimizer.label),
        *_zero_gradients(trained, setup, states_at),
        *_zero3_buffers(counts, setup),
    ]


def _zero_gradients(trained: int, setup: ZeroSetup, place: Place) -> list[MemoryPart]:
    """What a rank has of gradients outside the backward pass. `trained`: its share of the elements."""
    share = setup.value_bytes * trained
    if setup.stage == 0 or setup.offload_optimizer:
        parts = [MemoryPart("fp32 gradients", 4 * trained, place, note="made for the optimizer step")]
        return [*parts, MemoryPart("gradients", share, place)] if setup.stage == 3 else parts
    if setup.stage == 3:
        step = 4 * min(trained, setup.sub_group)
        return [
            MemoryPart("gradients", share, note=f"1/{setup.world_size}, a buffer kept all the time"),
            MemoryPart("fp32 gradients", step, at="step", note="made for the optimizer step"),
        ]
    note = f"1/{setup.world_size}: as reduced, flattened and in fp32"
    return [MemoryPart("gradients at the step", 2 * share + 4 * trained, at="step", note=note)]


def _zero_parameters(counts: Parameters, setup: ZeroSetup) -> MemoryPart:
    other = counts.total - counts.in_4bit
    shard = setup.world_size if setup.stage == 3 else 1
    place: Place = "host" if setup.offload_param else "device"
    size = setup.value_bytes * other + counts.bytes_in_4bit
    return MemoryPart("parameters", -(-size // shard), place, note=_parameter_note(counts))


def _zero3_buffers(counts: Parameters, setup: ZeroSetup) -> list[MemoryPart]:
    """The bucket, which ZeRO-3 makes once, and what it has gathered at the end of the forward pass.

    A module's parameters stay gathered when they are used again within `stage3_max_reuse_distance` elements. Forward
    and backward both pass over what lies behind a module, so the last half of that distance is there at the loss. A
    single rank computes with its partition itself.
    """
    if setup.stage < 3:
        return []
    bucket = MemoryPart("reduce bucket", setup.value_bytes * setup.reduce_bucket)
    if setup.world_size == 1 and not setup.offload_param:
        return [bucket]
    at_once = max(2 * counts.largest_layer, counts.largest_outside_layers) + setup.prefetch_bucket
    gathered = min(max(at_once, setup.max_reuse_distance // 2), setup.max_live_parameters, counts.total)
    note = "reused within stage3_max_reuse_distance; at least two layers or the head, and the prefetch"
    return [bucket, MemoryPart("gathered parameters", setup.value_bytes * gathered, at="passes", note=note)]


def _parameter_note(counts: Parameters) -> str:
    note = f"{counts.total / 1e6:,.1f} M, {counts.trained / 1e6:,.1f} M trained"
    return note + (f", {counts.in_4bit / 1e6:,.1f} M in 4 bits" if counts.in_4bit else "")


def _elements(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
