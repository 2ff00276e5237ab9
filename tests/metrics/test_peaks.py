"""Peaks: exact names only, dense figures only, and a measured one that a matmul does not beat by much."""

import pytest
import torch

from training.metrics.peaks import find_peak, known_devices, measure_matmul_peak


@pytest.mark.parametrize(
    ("device", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),  # the datasheet's 1979 is with sparsity
        ("NVIDIA H100 PCIe", "bfloat16", 756.5),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "tfloat32", 156.0),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA L40", "bfloat16", 181.05),
        ("NVIDIA L40S", "bfloat16", 362.05),
        ("NVIDIA GeForce RTX 4090", "float16", 165.2),  # 330 is with fp16 accumulation
        ("Tesla T4", "float16", 65.0),
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
        ("AMD Instinct MI300X", "bfloat16", 1307.4),  # the datasheet's 2614.9 is with sparsity
        ("AMD Instinct MI300X", "float8", 2614.9),
        ("AMD Instinct MI250X", "bfloat16", 191.5),  # 383 is the card, a device is one of two dies
        ("AMD Instinct MI355X", "bfloat16", 2516.6),
        ("AMD Instinct MI300A", "bfloat16", 980.6),
        ("AMD Instinct MI350X", "float8", 4613.7),
        ("NVIDIA GeForce RTX 5080", "bfloat16", 112.6),  # 225 is with fp16 accumulation
        ("NVIDIA RTX 4000 Ada Generation", "bfloat16", 106.9),  # the datasheet's 427.6 is fp8 with sparsity
        ("NVIDIA B300 SXM6 AC", "bfloat16", 2250.0),
    ],
)
def test_dense_rates(device, dtype, tflops):
    peak = find_peak(device, dtype)
    assert peak is not None
    assert (peak.tflops, peak.source, peak.device, peak.dtype) == (tflops, "datasheet", device, dtype)
    assert peak.document


@pytest.mark.parametrize("device", ["Tesla T4", "Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB"])
def test_no_bfloat16_before_ampere(device):
    assert find_peak(device, "bfloat16") is None


@pytest.mark.parametrize(
    "device", ["NVIDIA L", "NVIDIA L4S", "L40S", "nvidia l40s", "NVIDIA H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""]
)
def test_only_the_exact_name_is_known(device):
    assert find_peak(device, "bfloat16") is None


@pytest.mark.parametrize("device", ["AMD Instinct MI250X/MI250", "NVIDIA GeForce RTX 3080"])
def test_a_name_of_two_cards_has_no_rate(device):
    assert find_peak(device, "float16") is None


# Units (SMs, CUs), GHz of the boost clock that the vendor states, FLOPs of a unit in a cycle: 16-bit factors, fp32 sum.
UNITS = {
    "Tesla V100-SXM2-16GB": (80, 1.530, 1024),
    "Tesla V100-PCIE-16GB": (80, 1.380, 1024),
    "Tesla V100S-PCIE-32GB": (80, 1.597, 1024),
    "Tesla T4": (40, 1.590, 1024),
    "NVIDIA A100-SXM4-80GB": (108, 1.410, 2048),
    "NVIDIA A2": (10, 1.770, 1024),
    "NVIDIA A10": (72, 1.695, 1024),
    "NVIDIA A30": (56, 1.440, 2048),
    "NVIDIA A40": (84, 1.740, 1024),
    "NVIDIA RTX A6000": (84, 1.800, 1024),
    "NVIDIA RTX A5000": (64, 1.695, 1024),
    "NVIDIA RTX A4500": (56, 1.650, 1024),
    "NVIDIA RTX A4000": (48, 1.560, 1024),
    "NVIDIA GeForce RTX 3090 Ti": (84, 1.860, 512),  # GeForce cards sum in fp32 at half the rate
    "NVIDIA GeForce RTX 3090": (82, 1.695, 512),
    "NVIDIA GeForce RTX 3070": (46, 1.725, 512),
    "NVIDIA L4": (58, 2.040, 1024),
    "NVIDIA L40": (142, 2.490, 512),
    "NVIDIA L40S": (142, 2.520, 1024),
    "NVIDIA RTX 6000 Ada Generation": (142, 2.505, 1024),
    "NVIDIA RTX 5000 Ada Generation": (100, 2.550, 1024),
    "NVIDIA RTX 4500 Ada Generation": (60, 2.580, 1024),
    "NVIDIA RTX 4000 Ada Generation": (48, 2.175, 1024),
    "NVIDIA RTX 2000 Ada Generation": (22, 2.130, 1024),
    "NVIDIA GeForce RTX 4090": (128, 2.520, 512),
    "NVIDIA GeForce RTX 4080": (76, 2.505, 512),
    "NVIDIA GeForce RTX 4070 Ti": (60, 2.610, 512),
    "NVIDIA GeForce RTX 5090": (170, 2.407, 512),
    "NVIDIA GeForce RTX 5080": (84, 2.617, 512),
    "NVIDIA GeForce RTX 5070 Ti": (70, 2.452, 512),
    "NVIDIA GeForce RTX 5070": (48, 2.512, 512),
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": (188, 2.617, 1024),
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": (188, 2.280, 1024),
    "NVIDIA H100 80GB HBM3": (132, 1.830, 4096),
    "NVIDIA H100 PCIe": (114, 1.620, 4096),
    "AMD Instinct MI210": (104, 1.700, 1024),
    "AMD Instinct MI250X": (110, 1.700, 1024),
    "AMD Instinct MI300A": (228, 2.100, 2048),
    "AMD Instinct MI300X": (304, 2.100, 2048),
    "AMD Instinct MI325X": (304, 2.100, 2048),
    "AMD Instinct MI350X": (256, 2.200, 4096),
    "AMD Instinct MI355X": (256, 2.400, 4096),
}


@pytest.mark.parametrize("device", UNITS)
def test_rates_are_those_of_the_units_at_their_clock(device):
    """A second source for each figure: half or double of it, with sparsity or another sum, does not pass."""
    units, gigahertz, flops = UNITS[device]
    peak = find_peak(device, "float16")
    assert peak is not None
    assert peak.tflops == pytest.approx(units * gigahertz * flops / 1e3, rel=0.015)


def test_unknown_dtype_is_an_error():
    with pytest.raises(ValueError, match="bf16"):
        find_peak("NVIDIA L4", "bf16")


def test_table_is_plausible():
    """Sparse figures slip in easily: tensor rates are a plain multiple of each other on every device."""
    for device in known_devices():
        half, tf32 = find_peak(device, "float16"), find_peak(device, "tfloat32")
        assert half is not None
        if tf32 is not None:
            assert half.tflops / tf32.tflops == pytest.approx(2.0, rel=0.03), device
        fp8 = find_peak(device, "float8")
        if fp8 is not None:
            assert fp8.tflops / half.tflops == pytest.approx(2.0, rel=0.03), device


def test_measured_peak_names_what_it_measured():
    shapes = [(64, 64, 64), (256, 256, 256)]
    peak = measure_matmul_peak(torch.float32, torch.device("cpu"), seconds=0.05, shapes=shapes)
    assert peak.source == "measured"
    assert peak.dtype == "float32"
    assert peak.shape in shapes
    assert peak.tflops > 0
    assert peak.spread_pct is not None
    assert peak.spread_pct >= 0
    assert f"{torch.get_num_threads()} thread" in peak.device


def test_no_shapes_is_an_error():
    with pytest.raises(ValueError, match="shapes"):
        measure_matmul_peak(torch.float32, torch.device("cpu"), shapes=())
