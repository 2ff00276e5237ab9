"""Print the page of what a recipe can choose from, as the code has it: precisions, kernels, optimizers, allocators.

    python -m training.choices > docs/choices.md

A test fails when that page is not what this prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from data_prep.command import run_command
from training import allocator, precision
from training.activations import modes
from training.attention import kernels
from training.attention.pairs import Attended
from training.compiling.modes import AUTO, MODES
from training.loss import kernels as loss_kernels
from training.optim import optimizers
from training.optim.facts import ChosenOptimizer, Optimizer

INTRODUCTION = """\
# Precisions, kernels, compilation, checkpointing, optimizers and memory allocators

This page is generated: `python -m training.choices > docs/choices.md`. Each row is one object in the code. To add a
choice, add an object to `PRECISIONS` (`training/precision.py`), `KERNELS` (`training/attention/kernels.py`,
`training/loss/kernels.py`), `MODES` (`training/compiling/modes.py`, `training/activations/modes.py`), `OPTIMIZERS`
(`training/optim/optimizers.py`) or `LIBRARIES` (`training/allocator.py`), and its test.
"""
PRECISION_TEXT = """\
## Precisions

TF32 is the peak of float32 where `training.tf32` is on. Rounding is the relative error of a matmul's inputs.
"""
KERNEL_TEXT = """\
## Attention kernels

`model.attn_implementation: auto` takes the first one that runs on the machine and in the model. The pairs are those
computed for a row of 8 tokens with two documents of 4, of which causal attention within documents needs 20. What is
kept for the backward pass comes on top of queries, keys, values and output.
"""
LOSS_TEXT = """\
## Loss kernels

`perf.loss_kernel: auto` takes the first one that runs on the machine and in the model.
"""
COMPILE_TEXT = """\
## Compilation

`perf.compile` says what torch.compile compiles, in place: checkpoints have the same names. On an AMD EPYC with 2 cores
(AVX512-BF16, no AMX) `blocks` trained 30.8 M parameters at 2.20k to 2.28k tokens/s, uncompiled 2.19k; the first step
took 15 s, and 2.5 s with compiled code in `perf.compile_cache_dir`. On a GPU it is not measured, so `auto` is off.

- All batches of a training share the graphs of its first step: lengths of padded rows are dynamic, and under SDPA every
  batch has a mask. A compilation after the second step is logged with its reason, as an event `recompile`.
- Passes without gradients (evaluation, samples) and batches of another shape run uncompiled. With
  `data.max_tokens_per_batch` these are batches of one row.
- It works with DDP, ZeRO-2, LoRA and activation checkpointing; ZeRO-1 is not tried. ZeRO-3, FSDP and
  `training.torch_compile` are refused.
"""
CHECKPOINTING_TEXT = """\
## Activation checkpointing

`perf.activation_checkpointing: auto` takes the first mode whose planned peak fits in memory. `every_N` takes any N from
2 on. Done again is the share of the layers whose matrix products and attention the backward pass computes once more.
"""
OPTIMIZER_TEXT = """\
## Optimizers

Bytes of state are for each trained parameter, in fp32 unless the optimizer holds them in 8 bits. Under DeepSpeed they
are for each element of its flat partitions. "assumed" means that the states are not known and are taken for Adam's.
"""
ALLOCATOR_TEXT = """\
## Memory allocators

`perf.allocator: auto` keeps one that is preloaded. Otherwise, on a CPU, it takes the first one of the table that the
machine has, and on a GPU none. `off` changes nothing. The log and `env.json` of a run name the allocator.

`LD_PRELOAD` acts only when a process starts, so `train.py` replaces itself once by the same command, on each rank,
before torch is imported. Process ID, environment and output stay the same. Programs that the run starts (git,
nvidia-smi) do not load the library, and neither do data loader workers that are spawned; forked ones have it. A
program that calls Redline's functions, such as a script of yours, is never restarted, and `auto` changes nothing in
it. `auto` also keeps your own settings of glibc (`MALLOC_TRIM_THRESHOLD_` and the like, `GLIBC_TUNABLES`). An
allocator that is named and cannot be used is an error.
"""
PACKED_ROW = Attended(pairs=20, documents=2, rows=1, seq_len=8, window=None)


def main() -> int:
    """Print the page; the exit code."""
    print(build_page(), end="")
    return 0


def build_page() -> str:
    """The page in Markdown."""
    sections = [
        (PRECISION_TEXT, list_precisions()),
        (KERNEL_TEXT, list_kernels()),
        (LOSS_TEXT, list_losses()),
        (COMPILE_TEXT, list_compile_modes()),
        (CHECKPOINTING_TEXT, list_checkpointing()),
        (OPTIMIZER_TEXT, list_optimizers()),
        ("## Not offered\n", list_refused()),
        (ALLOCATOR_TEXT, list_allocators()),
    ]
    return "\n".join([INTRODUCTION, *(f"{text}\n{_format_table(rows)}" for text, rows in sections)])


def list_precisions() -> list[list[str]]:
    """Header and one row for each precision."""
    rows = [["precision", "turned on by", "trains on", "loss", "peak rate of", "with TF32", "rounding"]]
    for one in precision.PRECISIONS:
        switch = f"`training.{one.switch}`" if one.switch else "neither of the others"
        loss = "scaled" if one.scales_loss else "as it is"
        peaks = [one.peak_format(tf32=on) for on in (False, True)]
        rows.append([one.name, switch, ", ".join(one.device_types), loss, *peaks, f"{one.rounding:.1e}"])
    return rows


def list_kernels() -> list[list[str]]:
    """Header and one row for each kernel, in the order of `auto`."""
    rows = [["kernel", "`auto`", "finds documents by", "pairs", "keeps, packed or padded rows", "keeps, whole rows"]]
    for kernel in kernels.KERNELS:
        documents = "`cu_seq_lens_q`" if kernel.needs_cu_seqlens else "a mask made from `position_ids`"
        kept = [kernel.stand_in(masked=masked).kept for masked in (True, False)]
        pairs = str(kernel.executed_pairs(PACKED_ROW))
        rows.append([f"`{kernel.name}`", "yes" if kernel.automatic else "no", documents, pairs, *kept])
    return rows


def list_losses() -> list[list[str]]:
    """Header and one row for each loss kernel, in the order of `auto`."""
    rows = [["kernel", "`auto`", "holds at its peak", "leaves out positions without loss", "computes logits"]]
    for kernel in loss_kernels.KERNELS:
        devices = [device for device in ("cpu", "cuda") if kernel.skips_unlabelled(device)]
        times = "twice" if kernel.computes_logits_twice else "once"
        automatic = "yes" if kernel.automatic else "no"
        rows.append([f"`{kernel.name}`", automatic, kernel.holds, f"on {', '.join(devices)}" * bool(devices), times])
    return rows


def list_compile_modes() -> list[list[str]]:
    """Header and one row for each value of `perf.compile` but `auto`."""
    rows = [["mode", "`auto`", "compiles", "graphs of a training step"]]
    rows += [[f"`{mode.name}`", "yes" if mode is AUTO else "no", mode.compiles, mode.graphs] for mode in MODES]
    return rows


def list_checkpointing() -> list[list[str]]:
    """Header and one row for each mode of activation checkpointing, in the order of `auto`."""
    rows = [["mode", "keeps", "done again"]]
    return rows + [[f"`{mode.name}`", mode.keeps, f"{100 * mode.share_products(100):.0f} %"] for mode in modes.MODES]


def list_optimizers() -> list[list[str]]:
    """Header and one row for each optimizer that can be had."""
    rows = [["optimizer", "named in", "bytes of state", "under DeepSpeed", "package", "`training.optim_args`"]]
    for one in optimizers.OPTIMIZERS:
        if one.refusal:
            continue
        packages = ", ".join(package.requirement for package in one.packages)
        rows.append([f"`{one.name}`", _name_places(one), *_describe_states(one), packages, ", ".join(one.arguments)])
    return rows


def list_allocators() -> list[list[str]]:
    """Header and one row for each memory allocator, in the order of `auto`."""
    rows = [["allocator", "installed by", "freed memory", "comes from"]]
    return rows + [[f"`{one.name}`", one.set_by, one.keeps, one.install] for one in allocator.ALLOCATORS]


def list_refused() -> list[list[str]]:
    """Header and one row for each optimizer that is refused."""
    refused = [[f"`{one.name}`", one.refusal] for one in optimizers.OPTIMIZERS if one.refusal]
    return [["optimizer", "why"], *refused]


def _name_places(optimizer: Optimizer) -> str:
    in_json = f"the JSON ({'its own' if optimizer.in_json == 'deepspeed' else 'of torch'})" if optimizer.in_json else ""
    return " and ".join(filter(None, ["`training.optim`" * optimizer.in_recipe, in_json]))


def _describe_states(optimizer: Optimizer) -> list[str]:
    chosen = ChosenOptimizer(optimizer)
    plain = f"{chosen.count_state_bytes(10**6, 0) / 10**6:.4g}"
    added = "".join(f", 4 more with {name}" for name in optimizer.adds_state)
    assumed = " (assumed)" if optimizer.states is None else ""
    return [plain + added + assumed, f"{chosen.flat_bytes:.4g}{added}{assumed}"]


def _format_table(rows: Iterable[list[str]]) -> str:
    header, *body = ("| " + " | ".join(cells) + " |" for cells in rows)
    return "\n".join([header, "|---" * (header.count(" | ") + 1) + "|", *body, ""])


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
