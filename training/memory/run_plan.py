"""A configuration to a `RunPlan`: builds the model without weights, estimates its memory, counts its work.

Everything uncertain is in `notes`: what is assumed about the data, the attention kernel, the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from training.activations.modes import AUTO, FULL, MODES, OFF, Checkpointing
from training.attention import cpu
from training.attention.choose import find_model_class, find_named, find_usable
from training.attention.kernels import AttentionKernel, Compute
from training.memory.available import measure_host_share
from training.memory.devices import find_device_bytes
from training.memory.estimate import (
    Estimate,
    Evaluation,
    estimate_evaluation,
    estimate_rank,
    find_largest_micro_batch,
)
from training.memory.states import (
    MemoryPart,
    ZeroSetup,
    count_parameters,
    list_plain_parts,
    list_step_temporaries,
    list_zero_parts,
    plain_state_bytes,
    read_zero_setup,
)
from training.memory.trace import Reduction, StepShape, StepTracer
from training.metrics.flops import ModelFlops
from training.metrics.peaks import find_peak
from training.optim.choose import choose_optimizer
from training.precision import Precision, find_precision

if TYPE_CHECKING:
    from training.config import Config, LoadedConfig

ASSUMED_MFU_PCT = 40.0

BuildModel = Callable[[torch.dtype, bool, bool], Any]
"""(compute dtype, with 4-bit layers, with layers that may be fused) -> the recipe's model on the meta device."""


@dataclass(frozen=True)
class PlannedMode:
    """A mode of activation checkpointing in a plan. recomputed_pct: of the FLOPs of the forward pass."""

    name: str
    peak_bytes: int
    recomputed_pct: float


@dataclass(frozen=True)
class RunPlan:
    """All of a plan; sizes in bytes of one rank, work of all ranks. None: cannot be known from the recipe."""

    recipe: str
    setup: str
    world_size: int
    device: str | None
    parameters: int
    trained_parameters: int
    micro_batch_size: int
    seq_len: int
    checkpointing: str
    """The mode that was planned with."""
    checkpointing_modes: list[PlannedMode]
    """What `auto` chose it from; empty where the recipe names it."""
    parts: list[MemoryPart]
    device_peak_bytes: int
    host_bytes: int
    evaluation_rows: int | None
    evaluation_peak_bytes: int | None
    """None: the recipe does not evaluate."""
    capacity_bytes: int | None
    largest_micro_batch_size: int | None
    tokens_per_step: int
    step_flops: int
    steps: int | None
    total_tokens: int | None
    total_flops: int | None
    seconds: float | None
    step_seconds: float | None
    rate: str | None
    """At which `seconds` are predicted: training steps alone, without evaluation and checkpoints."""
    disk_bytes: dict[str, int]
    notes: list[str] = field(default_factory=list)


def plan_run(
    loaded: LoadedConfig,
    build: BuildModel,
    *,
    world_size: int,
    device: str | None,
    rate: tuple[float, str] | None = None,
) -> RunPlan:
    """Plan a loaded recipe. `build` makes its model on the meta device, with 4-bit layers or without.

    rate: model TFLOP/s of a device and the run that reached it; None: `ASSUMED_MFU_PCT` of the datasheet's peak.

    Raises UserError for an unknown device, and whatever `build` raises.
    """
    config = loaded.config
    capacity = find_device_bytes(device) if device else None
    planner = Planner(loaded, build, world_size, on_gpu=device is not None)
    micro_batch_size = int(config.argument("per_device_train_batch_size"))
    modes = plan_modes(planner, micro_batch_size) if config.perf.activation_checkpointing == AUTO else []
    if modes:
        config = config.with_checkpointing(find_first_fitting(modes, capacity or measure_host_share(world_size)).name)
    predict = partial(planner.estimate, checkpointing=config.find_checkpointing())
    estimate = predict(micro_batch_size)
    evaluation = planner.estimate_evaluation()
    largest = find_largest_micro_batch(predict, estimate, capacity) if capacity else None
    accumulation = int(config.argument("gradient_accumulation_steps") or 1)
    rows_per_step = micro_batch_size * accumulation * world_size
    flops = ModelFlops.from_model(planner.model).count([config.data.seq_len], config.data.seq_len, config.data.seq_len)
    steps = _planned_steps(config)
    step_flops = flops.model * rows_per_step
    tokens_per_step = rows_per_step * config.data.seq_len
    tflops, how = _find_rate(device, planner.precision, rate, tf32=bool(config.argument("tf32")))
    return RunPlan(
        recipe=loaded.recipe,
        setup=planner.describe(),
        world_size=world_size,
        device=device,
        parameters=planner.counts.total,
        trained_parameters=planner.counts.trained,
        micro_batch_size=micro_batch_size,
        seq_len=config.data.seq_len,
        checkpointing=config.perf.activation_checkpointing,
        checkpointing_modes=modes,
        parts=estimate.parts,
        device_peak_bytes=estimate.device_peak,
        host_bytes=estimate.host,
        evaluation_rows=evaluation.rows if evaluation else None,
        evaluation_peak_bytes=evaluation.device_peak if evaluation else None,
        capacity_bytes=capacity,
        largest_micro_batch_size=largest.micro_batch_size if largest else None,
        tokens_per_step=tokens_per_step,
        step_flops=step_flops,
        steps=steps,
        total_tokens=steps * tokens_per_step if steps else None,
        total_flops=steps * step_flops if steps else None,
        seconds=steps * step_flops / world_size / (tflops * 1e12) if steps and tflops else None,
        step_seconds=step_flops / world_size / (tflops * 1e12) if tflops else None,
        rate=how,
        disk_bytes=_disk_bytes(planner),
        notes=_notes(config, planner, device, steps, has_rate=tflops is not None),
    )


def plan_modes(planner: Planner, micro_batch_size: int) -> list[PlannedMode]:
    """Every mode that `auto` chooses from, in its order."""
    rows, seq_len = [planner.config.data.seq_len], planner.config.data.seq_len
    OFF.apply(planner.model)
    needed = ModelFlops.from_model(planner.model).count(rows, seq_len, seq_len)
    FULL.apply(planner.model)
    again = ModelFlops.from_model(planner.model).count(rows, seq_len, seq_len).hardware - needed.hardware
    num_layers = planner.model.config.get_text_config().num_hidden_layers
    return [
        PlannedMode(
            mode.name,
            planner.predict_peak(micro_batch_size, checkpointing=mode),
            100 * mode.share_products(num_layers) * again / needed.forward,
        )
        for mode in MODES
    ]


def find_first_fitting(modes: Sequence[PlannedMode], budget: int) -> PlannedMode:
    """The first whose peak is within `budget` bytes, else the last."""
    return next((mode for mode in modes if mode.peak_bytes <= budget), modes[-1])


class Planner:
    """Model, states and tracer of one recipe; `estimate` puts them together for a micro-batch size.

    Building it builds the model on the meta device, twice; an estimate traces one step. masked: False where it is known
    that each row will be one whole document.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        build: BuildModel,
        world_size: int,
        *,
        on_gpu: bool,
        masked: bool = True,
    ) -> None:
        self.config = loaded.config
        self.world_size = world_size
        self.on_gpu = on_gpu
        self.precision = find_precision(loaded.config.arguments())
        self.dtype = self.precision.dtype
        self.model = build(self.dtype, loaded.config.adapter.load_in_4bit, False)
        kernel, note = _find_kernel(loaded.config, Compute("cpu", self.dtype, packed=True), self.model)
        self.attention = kernel.stand_in(masked=masked)
        notes = [note, "packed and padded rows get a mask of seq_len x seq_len" * self.attention.has_mask]
        self.attention_note = "; ".join(filter(None, notes))
        self.counts = count_parameters(self.model, double_quant=loaded.config.adapter.double_quant)
        hidden_size: int = self.model.config.get_text_config().hidden_size
        self.zero = (
            read_zero_setup(loaded.deepspeed, world_size, hidden_size, self.dtype.itemsize)
            if loaded.deepspeed
            else None
        )
        self.optimizer = choose_optimizer(loaded.config.arguments(), loaded.deepspeed)
        self.tracer = self._build_tracer(build, kernel)
        self.states = self._list_states()

    def estimate(
        self, micro_batch_size: int, *, accumulates: bool | None = None, checkpointing: Checkpointing | None = None
    ) -> Estimate:
        """accumulates: whether a step has several micro-batches; None of both: as in the recipe."""
        if accumulates is None:
            accumulates = int(self.config.argument("gradient_accumulation_steps") or 1) > 1
        shape = self._find_shape(micro_batch_size, accumulates=accumulates, checkpointing=checkpointing)
        return estimate_rank(
            self.states,
            self.tracer,
            shape,
            gradient_bytes=self._gradient_bytes() if shape.keeps_gradients else 0,
            on_gpu=self.on_gpu,
            world_size=self.world_size,
        )

    def predict_peak(self, micro_batch_size: int, **changes: Any) -> int:
        """Bytes of a rank that must fit where it computes; on a CPU what is offloaded is there, too. changes: as of
        `estimate`."""
        estimate = self.estimate(micro_batch_size, **changes)
        return estimate.device_peak if self.on_gpu else estimate.device_peak + estimate.host

    def estimate_evaluation(self) -> Evaluation | None:
        """None when the recipe does not evaluate."""
        if self.config.argument("eval_strategy") == "no":
            return None
        rows = int(self.config.argument("per_device_eval_batch_size"))
        shape = self._find_shape(
            rows, accumulates=False, checkpointing=OFF
        )  # nothing is kept, so nothing is done again
        return estimate_evaluation(self.states, self.tracer, shape, on_gpu=self.on_gpu, world_size=self.world_size)

    def _find_shape(self, rows: int, *, accumulates: bool, checkpointing: Checkpointing | None) -> StepShape:
        return StepShape(
            micro_batch_size=rows,
            seq_len=self.config.data.seq_len,
            attention=self.attention,
            autocast=self.dtype if self.zero is None and self.dtype != torch.float32 else None,
            checkpointing=checkpointing or self.config.find_checkpointing(),
            accumulates=accumulates,
            keeps_gradients=self.zero is None or self.zero.stage < 2,
            reduction=self._find_reduction(self._gradient_bytes()),
        )

    def describe(self) -> str:
        """The set-up in one line."""
        dtype = self.precision.name
        if self.zero is None:
            return f"{dtype} autocast, no DeepSpeed" if self.dtype != torch.float32 else "float32, no DeepSpeed"
        offload = [name for name, on in _offloads(self.zero).items() if on]
        return f"{dtype}, ZeRO-{self.zero.stage}" + (f", {' and '.join(offload)} on the host" if offload else "")

    def _build_tracer(self, build: BuildModel, kernel: AttentionKernel) -> StepTracer:
        """The same model unquantised, with the layers of the run; DeepSpeed casts all of it to the 2-byte dtype."""
        partitioned = (self.zero is not None and self.zero.stage == 3) or bool(self.config.argument("fsdp"))
        fuses = not self.on_gpu and kernel.name == cpu.NAME and not partitioned
        model = build(self.dtype, False, fuses)
        if self.zero is not None:
            model = model.to(self.dtype)
        return StepTracer(model, on_gpu=self.on_gpu)

    def _list_states(self) -> list[MemoryPart]:
        optimizer = self.optimizer
        trained, largest = self.counts.trained, self.counts.largest_trained
        if self.zero is None:
            parts = list_plain_parts(self.counts, optimizer, self.world_size)
        else:
            parts = list_zero_parts(self.counts, self.zero, optimizer)
            trained = largest = -(-trained // (self.world_size if self.zero.stage else 1))  # one flat tensor
        if self.zero is None or not self.zero.offload_optimizer:
            parts += list_step_temporaries(optimizer, largest, trained, on_gpu=self.on_gpu)
        if self.counts.in_4bit:
            size = 2 * self.counts.largest_linear
            parts.append(
                MemoryPart("4-bit weight as 2 bytes", size, at="passes", note="converted one at a time; the largest")
            )
        return parts

    def _find_reduction(self, gradient_bytes: int) -> Reduction | None:
        """ZeRO-1/2 copy this rank's share of the gradients into a buffer of its own; ZeRO-3 has one all the time."""
        if self.zero is None or self.zero.reduction is None:
            return None
        on_device = self.zero.stage < 3 and not self.zero.offload_optimizer
        return replace(self.zero.reduction, partition=on_device * -(-gradient_bytes // self.world_size))

    def _gradient_bytes(self) -> int:
        return self.counts.trained_bytes if self.zero is None else self.zero.value_bytes * self.counts.trained


def _find_kernel(config: Config, compute: Compute, model: Any) -> tuple[AttentionKernel, str]:
    """The kernel to plan with, and a note. `auto` is what it takes where no package is installed: on a CPU."""
    asked, model_class = config.model.attn_implementation, find_model_class(model.config)
    if asked != "auto":
        return find_named(asked, model_class), ""
    kernel = find_usable(compute, model_class)[0]
    return kernel, f"auto is planned as {kernel.name} (FlashAttention, if installed, needs less memory)"


def _offloads(zero: ZeroSetup) -> dict[str, bool]:
    return {"optimizer": zero.offload_optimizer, "parameters": zero.offload_param}


def _planned_steps(config: Config) -> int | None:
    """`max_steps`; epochs have no length before the data is read."""
    steps = int(config.argument("max_steps") or 0)
    return steps if steps > 0 else None


def _find_rate(
    device: str | None, precision: Precision, reached: tuple[float, str] | None, *, tf32: bool
) -> tuple[float | None, str | None]:
    """Model TFLOP/s of a device to predict with, and where they come from."""
    if reached:
        tflops, run = reached
        return tflops, f"{tflops:.3g} TFLOP/s per device, as {run} reached"
    peak = find_peak(device, precision.peak_format(tf32=tf32)) if device else None
    if peak is None:
        return None, None
    return peak.tflops * ASSUMED_MFU_PCT / 100, f"an assumed MFU of {ASSUMED_MFU_PCT:.0f} %"


def _disk_bytes(planner: Planner) -> dict[str, int]:
    """`final/`: trained weights only under LoRA, else all. A checkpoint adds master weights and optimizer states."""
    counts, zero, optimizer = planner.counts, planner.zero, planner.optimizer
    lora = planner.config.adapter.method == "lora"
    if zero is None:
        final = counts.trained_bytes if lora else counts.bytes
        return {"final": final, "one checkpoint": final + plain_state_bytes(counts, optimizer)}
    saved = counts.trained if lora else counts.total
    final = zero.value_bytes * saved
    states = optimizer.flat_bytes
    return {"final": final, "one checkpoint": 2 * final + round((4 + states) * counts.trained)}


def _notes(config: Config, planner: Planner, device: str | None, steps: int | None, *, has_rate: bool) -> list[str]:
    notes = ["perf.micro_batch_size: auto chooses the size when training starts; the plan uses the size in the recipe"]
    notes = notes if config.perf.micro_batch_size == "auto" else []
    notes += ["activations and peak are traced on fake tensors and are estimates; see docs/memory.md"]
    if planner.attention_note:
        notes.append(f"attention: {planner.attention_note}")
    if planner.optimizer.facts.states is None:
        name = planner.optimizer.label
        notes.append(f"optimizer {name}: its states are not known; the plan assumes Adam's 8 bytes per parameter")
    if steps is None:
        notes.append(
            "training.max_steps is not set: steps, tokens and time depend on the data, which a plan does not read"
        )
    if device and planner.dtype == torch.bfloat16 and _lacks_bfloat16(device):
        notes.append(
            f"{device} has no bfloat16 in its tensor cores, so there is no datasheet peak to predict a time with: "
            "set training.fp16=true and training.bf16=false"
        )
    elif not has_rate:
        where = f"{device!r} in {planner.dtype}" if device else "a CPU"
        notes.append(f"no datasheet peak for {where}, so no time is predicted; --like RUN takes the rate of a run")
    if config.tokenizer.path is None:
        notes.append(f"vocabulary: tokenizer.vocab_size = {config.tokenizer.vocab_size}, the size that will be trained")
    return notes


def _lacks_bfloat16(device: str) -> bool:
    """True of a V100 or T4; False of a device that has it, and of one that is not in the table."""
    return find_peak(device, "float16") is not None and find_peak(device, "bfloat16") is None
