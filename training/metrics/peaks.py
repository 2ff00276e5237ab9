"""The matmul rate that MFU is a share of: from a vendor's table by exact device name, else measured here.

- `find_peak`: dense (never the doubled "with sparsity" figure), by the exact name that the driver reports. A name that
  is not in the table has no peak: an L40S is not an L4, and an unknown GPU is not an A100.
- `measure_bandwidth`: bytes a second of copying in the device's memory, measured everywhere.
- `measure_matmul_peak`: what this machine's own matmul reaches, with the process's threads, in about half a second.
  On CPUs it is the only ceiling: the bf16 rate depends on AMX or avx512_bf16, the clock under load and the threads of
  this rank, and no vendor states it. The best of several shapes and layouts counts, so that a training step, which
  runs the same kernels with more around them, does not come out above 100 %.

Rows are given only where the vendor publishes the figure and PyTorch gives the device a name; `document` says where.
fp16 and bf16 are with fp32 accumulation, which is what training uses. AMD's GPUs come by the same `torch.cuda` call.
Without a row, deliberately: a name that stands for two rates ("AMD Instinct MI250X/MI250" is either card, a GeForce RTX
3080 has one of two numbers of cores, a 2080 Ti one of two clocks); Apple, Intel, Gaudi and TPU, whose names or dense
rates are not documented to the device, or where this project does not run.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Shape = tuple[int, int, int]
"""(m, k, n): (m, k) times (k, n), `2 * m * k * n` FLOPs."""

CPU_SHAPES: tuple[Shape, ...] = ((1024, 1024, 1024), (2048, 512, 2048), (4096, 1024, 512))
CUDA_SHAPES: tuple[Shape, ...] = ((8192, 8192, 8192), (16384, 4096, 4096), (4096, 4096, 16384))
COPIED_BYTES = 256 * 2**20  # beyond the last cache of most processors
DEVICE_DTYPES = ("float32", "tfloat32", "bfloat16", "float16", "float8")


@dataclass(frozen=True)
class Peak:
    """`tflops` in 1e12 FLOP/s for dense matmuls of `dtype`. Measured: the spread over repeats, and the best shape."""

    tflops: float
    source: Literal["datasheet", "measured"]
    device: str
    dtype: str
    spread_pct: float | None = None
    """Interquartile range of the repeats over their median."""
    shape: Shape | None = None
    document: str | None = None
    """The vendor's document of a datasheet figure."""


@dataclass(frozen=True)
class Bandwidth:
    """Bytes read and written in a second by copying, of one device; spread as that of a measured peak."""

    gigabytes_per_second: float
    device: str
    spread_pct: float


@dataclass(frozen=True)
class _Row:
    """Dense TFLOP/s of one kind of device under all names that drivers give it; None: not supported or not stated."""

    names: tuple[str, ...]
    document: str
    float32: float | None = None
    tfloat32: float | None = None
    bfloat16: float | None = None
    float16: float | None = None
    float8: float | None = None


def _tensor(rate: float, *, tfloat32: float, float32: float, float8: float | None = None) -> dict[str, float | None]:
    """One tensor-core rate for both 16-bit types, as every GPU since Ampere has."""
    return {"bfloat16": rate, "float16": rate, "tfloat32": tfloat32, "float32": float32, "float8": float8}


_V100_SXM = ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB")
_V100_PCIE = ("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB")
_A100 = (
    "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100-PCIE-80GB",
    "NVIDIA A100 80GB PCIe", "A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB",
)  # fmt: skip
_MI300X = ("AMD Instinct MI300X", "AMD Instinct MI300X OAM")  # the second as some drivers have it
_GH200 = ("NVIDIA GH200 480GB", "NVIDIA GH200 120GB")

_GA102 = "NVIDIA Ampere GA102 architecture whitepaper (2021), tables 2 to 9"
_ADA = "NVIDIA Ada GPU architecture whitepaper (2023), appendices A to C"
_RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper (2025), appendices"
_RTX_PRO_BLACKWELL = "NVIDIA RTX Blackwell PRO GPU architecture whitepaper (2025)"
_CDNA2 = "AMD CDNA 2 architecture whitepaper and MI200 datasheets (2021, 2022)"

# Where a datasheet prints only the figure with 2:4 sparsity, the dense one is half of it (NVIDIA's own footnote).
_ROWS = (
    _Row(_V100_SXM, "NVIDIA V100 datasheet (2020)", float32=15.7, float16=125.0),
    _Row(_V100_PCIE, "NVIDIA V100 datasheet (2020)", float32=14.0, float16=112.0),
    _Row(("Tesla V100S-PCIE-32GB",), "NVIDIA V100 datasheet (2020)", float32=16.4, float16=130.0),
    _Row(("Tesla T4",), "NVIDIA T4 datasheet (2019)", float32=8.1, float16=65.0),
    _Row(_A100, "NVIDIA A100 datasheet (2021)", **_tensor(312.0, tfloat32=156.0, float32=19.5)),
    _Row(("NVIDIA A10",), "NVIDIA A10 datasheet (2021)", **_tensor(125.0, tfloat32=62.5, float32=31.2)),
    _Row(("NVIDIA A30",), "NVIDIA A30 datasheet (2021)", **_tensor(165.0, tfloat32=82.0, float32=10.3)),
    _Row(("NVIDIA A40",), "NVIDIA A40 datasheet (2021)", **_tensor(149.7, tfloat32=74.8, float32=37.4)),
    _Row(("NVIDIA A2",), "NVIDIA A2 datasheet (2021)", **_tensor(18.0, tfloat32=9.0, float32=4.5)),
    _Row(("NVIDIA RTX A6000",), _GA102, **_tensor(154.8, tfloat32=77.4, float32=38.7)),
    _Row(("NVIDIA RTX A5000",), "NVIDIA RTX A5000 datasheet (2021)", **_tensor(111.1, tfloat32=55.6, float32=27.8)),
    _Row(("NVIDIA RTX A4500",), "NVIDIA RTX A4500 datasheet (2021)", **_tensor(94.6, tfloat32=47.3, float32=23.7)),
    _Row(("NVIDIA RTX A4000",), "NVIDIA RTX A4000 datasheet (2021)", **_tensor(76.7, tfloat32=38.3, float32=19.2)),
    _Row(("NVIDIA GeForce RTX 3090 Ti",), _ADA, **_tensor(80.0, tfloat32=40.0, float32=40.0)),
    _Row(("NVIDIA GeForce RTX 3090",), _GA102, **_tensor(71.0, tfloat32=35.6, float32=35.6)),
    _Row(("NVIDIA GeForce RTX 3070",), _GA102, **_tensor(40.6, tfloat32=20.3, float32=20.3)),
    _Row(
        ("NVIDIA L4",), "NVIDIA L4 datasheet (2023)", **_tensor(121.0, tfloat32=60.0, float32=30.3, float8=242.5)
    ),
    _Row(
        ("NVIDIA L40",), "NVIDIA L40 datasheet (2023)", **_tensor(181.05, tfloat32=90.5, float32=90.5, float8=362.0)
    ),
    _Row(
        ("NVIDIA L40S",), "NVIDIA L40S datasheet (2023)", **_tensor(362.05, tfloat32=183.0, float32=91.6, float8=733.0)
    ),
    _Row(
        ("NVIDIA RTX 6000 Ada Generation",),
        "NVIDIA Ada professional GPU architecture whitepaper (2023), appendix",
        **_tensor(364.2, tfloat32=182.1, float32=91.1, float8=728.5),
    ),
    _Row(
        ("NVIDIA RTX 5000 Ada Generation",),
        "NVIDIA RTX 5000 Ada datasheet (2023), parts of its fp8 figure with sparsity",
        **_tensor(261.1, tfloat32=130.6, float32=65.3, float8=522.2),
    ),
    _Row(
        ("NVIDIA RTX 4500 Ada Generation",),
        "NVIDIA RTX 4500 Ada datasheet (2023), parts of its fp8 figure with sparsity",
        **_tensor(158.5, tfloat32=79.2, float32=39.6, float8=317.0),
    ),
    _Row(
        ("NVIDIA RTX 4000 Ada Generation",),
        "NVIDIA RTX 4000 Ada datasheet (2023), parts of its fp8 figure with sparsity",
        **_tensor(106.9, tfloat32=53.5, float32=26.7, float8=213.8),
    ),
    _Row(
        ("NVIDIA RTX 2000 Ada Generation",),
        "NVIDIA RTX 2000 Ada datasheet (2024), parts of its fp8 figure with sparsity",
        **_tensor(48.0, tfloat32=24.0, float32=12.0, float8=95.9),
    ),
    _Row(("NVIDIA GeForce RTX 4090",), _ADA, **_tensor(165.2, tfloat32=82.6, float32=82.6, float8=330.3)),
    _Row(("NVIDIA GeForce RTX 4080",), _ADA, **_tensor(97.5, tfloat32=48.7, float32=48.7, float8=194.9)),
    _Row(("NVIDIA GeForce RTX 4070 Ti",), _ADA, **_tensor(80.2, tfloat32=40.1, float32=40.1, float8=160.4)),
    _Row(("NVIDIA GeForce RTX 5090",), _RTX_BLACKWELL, **_tensor(209.5, tfloat32=104.8, float32=104.8, float8=419.0)),
    _Row(("NVIDIA GeForce RTX 5080",), _RTX_BLACKWELL, **_tensor(112.6, tfloat32=56.3, float32=56.3, float8=225.1)),
    _Row(("NVIDIA GeForce RTX 5070 Ti",), _RTX_BLACKWELL, **_tensor(87.9, tfloat32=43.9, float32=43.9, float8=175.8)),
    _Row(("NVIDIA GeForce RTX 5070",), _RTX_BLACKWELL, **_tensor(61.7, tfloat32=30.9, float32=30.9, float8=123.5)),
    _Row(
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition",),
        _RTX_PRO_BLACKWELL,
        **_tensor(503.8, tfloat32=251.9, float32=126.0, float8=1007.6),
    ),
    _Row(
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",),
        _RTX_PRO_BLACKWELL,
        **_tensor(438.9, tfloat32=219.5, float32=109.7, float8=877.9),
    ),
    _Row(
        ("NVIDIA H100 80GB HBM3",),
        "NVIDIA H100 datasheet (2023), SXM",
        **_tensor(989.4, tfloat32=494.7, float32=67.0, float8=1978.9),
    ),
    _Row(
        ("NVIDIA H100 PCIe",),
        "NVIDIA H100 datasheet (2022), PCIe",
        **_tensor(756.5, tfloat32=378.0, float32=51.0, float8=1513.0),
    ),
    _Row(
        ("NVIDIA H100 NVL",),
        "NVIDIA H100 datasheet (2024), NVL, half of the figures with sparsity",
        **_tensor(835.5, tfloat32=417.5, float32=60.0, float8=1670.5),
    ),
    _Row(
        ("NVIDIA H200",),
        "NVIDIA H200 datasheet (2024), SXM, half of the figures with sparsity",
        **_tensor(989.5, tfloat32=494.5, float32=67.0, float8=1979.0),
    ),
    _Row(
        ("NVIDIA H200 NVL",),
        "NVIDIA H200 datasheet (2024), NVL, half of the figures with sparsity",
        **_tensor(835.5, tfloat32=417.5, float32=60.0, float8=1670.5),
    ),
    _Row(_GH200, "NVIDIA GH200 datasheet (2024)", **_tensor(990.0, tfloat32=494.0, float32=67.0, float8=1979.0)),
    _Row(
        ("NVIDIA B200",),
        "NVIDIA Blackwell architecture technical brief (2024), HGX B200",
        **_tensor(2250.0, tfloat32=1125.0, float32=75.0, float8=4500.0),
    ),
    _Row(
        ("NVIDIA GB200",),
        "NVIDIA Blackwell architecture technical brief (2024), GB200",
        **_tensor(2500.0, tfloat32=1250.0, float32=80.0, float8=5000.0),
    ),
    _Row(
        ("NVIDIA B300 SXM6 AC",),
        "NVIDIA HGX B300 specifications (2025), half of the figures with sparsity",
        **_tensor(2250.0, tfloat32=1125.0, float32=75.0, float8=4500.0),
    ),
    _Row(
        ("NVIDIA GB300",),
        "NVIDIA GB300 NVL72 specifications (2025), half of the figures with sparsity",
        **_tensor(2500.0, tfloat32=1250.0, float32=80.0, float8=5000.0),
    ),
    _Row(("AMD Instinct MI210",), _CDNA2, float32=45.3, float16=181.0, bfloat16=181.0),
    # half of the card: a device is one of its two dies
    _Row(("AMD Instinct MI250X",), _CDNA2, float32=47.85, float16=191.5, bfloat16=191.5),
    _Row(
        ("AMD Instinct MI300A",),
        "AMD Instinct MI300A datasheet (2023)",
        **_tensor(980.6, tfloat32=490.3, float32=122.6, float8=1961.2),
    ),
    _Row(
        _MI300X,
        "AMD Instinct MI300X datasheet (2023)",
        **_tensor(1307.4, tfloat32=653.7, float32=163.4, float8=2614.9),
    ),
    _Row(
        ("AMD Instinct MI325X",),
        "AMD Instinct MI325X datasheet (2024)",
        **_tensor(1307.4, tfloat32=653.7, float32=163.4, float8=2614.9),
    ),
    _Row(
        ("AMD Instinct MI350X",),
        "AMD Instinct MI350X datasheet (2025)",
        float32=144.2, float16=2306.9, bfloat16=2306.9, float8=4613.7,
    ),
    _Row(
        ("AMD Instinct MI355X",),
        "AMD Instinct MI355X datasheet (2025)",
        float32=157.3, float16=2516.6, bfloat16=2516.6, float8=5033.2,
    ),
)  # fmt: skip
_BY_NAME = {name: row for row in _ROWS for name in row.names}


def known_devices() -> list[str]:
    """The exact names that `find_peak` knows."""
    return sorted(_BY_NAME)


def find_peak(device_name: str, dtype: str) -> Peak | None:
    """The vendor's dense rate, or None when the device is unknown or has no such rate (bfloat16 on V100 and T4).

    `device_name` as `torch.cuda.get_device_name()` gives it, matched exactly; `dtype` one of float32, tfloat32,
    bfloat16, float16, float8 (ValueError otherwise).
    """
    if dtype not in DEVICE_DTYPES:
        raise ValueError(f"find_peak: dtype {dtype!r} is not one of {', '.join(DEVICE_DTYPES)}")
    row = _BY_NAME.get(device_name)
    tflops: float | None = getattr(row, dtype) if row else None
    return Peak(tflops, "datasheet", device_name, dtype, document=row.document) if row and tflops else None


def measure_matmul_peak(
    dtype: torch.dtype,
    device: torch.device,
    *,
    seconds: float = 0.5,
    shapes: Sequence[Shape] | None = None,
) -> Peak:
    """Time matmuls of several shapes and layouts; the best upper decile is the peak. Takes `seconds` and a screening.

    The upper decile, not the median: whatever else a machine does can only slow a matmul, and a ceiling is asked for.
    Every candidate is tried twice; the two fastest then share `seconds`. `shapes`: pass those of the model, large ones,
    to have the ceiling of its own layers; default: shapes at which devices run near their best. Float32 follows
    `torch.get_float32_matmul_precision()`, as training does.
    """
    if shapes is None:
        shapes = CUDA_SHAPES if device.type == "cuda" else CPU_SHAPES
    operands = [_operands(shape, layout, dtype, device) for shape in shapes for layout in ("nn", "nt")]
    if not operands:
        raise ValueError("measure_matmul_peak: shapes is empty")
    screened = sorted(operands, key=lambda ops: max(_measure_rates(*ops, min_repeats=2)), reverse=True)
    best: Peak | None = None
    for a, b in screened[:2]:
        rates = _measure_rates(a, b, seconds=seconds / 2)
        ceiling = upper_decile(rates)
        if best is None or ceiling > best.tflops:
            low, median, high = statistics.quantiles(rates, n=4)
            spread, shape = 100.0 * (high - low) / median, (a.shape[0], a.shape[1], b.shape[1])
            best = Peak(ceiling, "measured", device_label(device), str(dtype).removeprefix("torch."), spread, shape)
    assert best is not None
    return best


def measure_bandwidth(device: torch.device, *, seconds: float = 0.3) -> Bandwidth:
    """Copy a large buffer again and again; the upper decile, as of matmuls. Takes twice `COPIED_BYTES` of memory."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = _timed_on_cuda if device.type == "cuda" else _timed_on_cpu
    timed(lambda: target.copy_(source))
    rates: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(rates) < 5 or time.perf_counter() < deadline:
        rates.append(2 * COPIED_BYTES / timed(lambda: target.copy_(source)) / 1e9)
    low, median, high = statistics.quantiles(rates, n=4)
    return Bandwidth(upper_decile(rates), device_label(device), 100.0 * (high - low) / median)


def measure_rates(
    shape: Shape, layout: str, dtype: torch.dtype, device: torch.device, *, seconds: float
) -> list[float]:
    """TFLOP/s of single products of one shape, after a warm-up. Layout nn, or nt: the second factor transposed."""
    return _measure_rates(*_operands(shape, layout, dtype, device), seconds=seconds)


def upper_decile(rates: Sequence[float]) -> float:
    """The rate that a tenth of the samples exceed."""
    return statistics.quantiles(rates, n=10)[-1]


def device_label(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the threads this process uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _operands(shape: Shape, layout: str, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of one product; layout nt has the second one transposed in memory, as a linear layer's weight is."""
    m, k, n = shape
    a = torch.randn(m, k, device=device).to(dtype)
    b = torch.randn(*((k, n) if layout == "nn" else (n, k)), device=device).to(dtype)
    return a, b if layout == "nn" else b.t()


def _measure_rates(a: torch.Tensor, b: torch.Tensor, seconds: float = 0.0, min_repeats: int = 5) -> list[float]:
    """TFLOP/s of single products, after a warm-up, until `seconds` are over and `min_repeats` are done."""
    timed = _timed_on_cuda if a.device.type == "cuda" else _timed_on_cpu
    flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    out = torch.mm(a, b)
    rates: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(rates) < min_repeats or time.perf_counter() < deadline:
        rates.append(flops / timed(lambda: torch.mm(a, b, out=out)) / 1e12)
    return rates


def _timed_on_cpu(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _timed_on_cuda(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
