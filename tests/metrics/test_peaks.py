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
