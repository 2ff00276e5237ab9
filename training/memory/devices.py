"""Memory of named devices, by the exact names that drivers report, for `python -m training.plan --device NAME`."""

from __future__ import annotations

import re

from data_prep.errors import UserError
from data_prep.recipe.spelling import find_near
from training.metrics.peaks import known_devices

GIB = 2**30

# GiB that PyTorch reports as total capacity (the nominal size less driver and ECC). Drivers differ by about 1 %.
# An AMD Instinct MI300A has none, deliberately: it shares its memory with its CPU cores.
_CAPACITY_GIB: dict[str, float] = {
    "Tesla T4": 14.6, "Tesla V100-SXM2-16GB": 15.8, "Tesla V100-PCIE-16GB": 15.8, "Tesla V100-SXM2-32GB": 31.7,
    "Tesla V100-PCIE-32GB": 31.7, "Tesla V100S-PCIE-32GB": 31.7,
    "NVIDIA A2": 14.6, "NVIDIA A10": 22.0, "NVIDIA A10G": 22.0, "NVIDIA A30": 23.5, "NVIDIA A40": 44.3,
    "NVIDIA RTX A6000": 47.4, "NVIDIA RTX A5000": 23.6, "NVIDIA RTX A4500": 19.6, "NVIDIA RTX A4000": 15.7,
    "NVIDIA A100-SXM4-40GB": 39.4, "NVIDIA A100-PCIE-40GB": 39.4, "NVIDIA A100-SXM4-80GB": 79.1,
    "NVIDIA A100-PCIE-80GB": 79.1, "NVIDIA A100 80GB PCIe": 79.1,
    "A100-SXM4-40GB": 39.4, "A100-SXM4-80GB": 79.1, "A100-PCIE-40GB": 39.4,  # as older drivers have it
    "NVIDIA L4": 22.0, "NVIDIA L40": 44.4, "NVIDIA L40S": 44.4, "NVIDIA RTX 6000 Ada Generation": 47.4,
    "NVIDIA RTX 5000 Ada Generation": 31.5, "NVIDIA RTX 4500 Ada Generation": 23.6,
    "NVIDIA RTX 4000 Ada Generation": 19.6, "NVIDIA RTX 2000 Ada Generation": 15.6,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 94.9,
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 94.9,
    "NVIDIA GeForce RTX 3090 Ti": 23.6, "NVIDIA GeForce RTX 3090": 23.6, "NVIDIA GeForce RTX 3070": 7.7,
    "NVIDIA GeForce RTX 4090": 23.6, "NVIDIA GeForce RTX 4080": 15.7, "NVIDIA GeForce RTX 4070 Ti": 11.7,
    "NVIDIA GeForce RTX 5090": 31.3, "NVIDIA GeForce RTX 5080": 15.4, "NVIDIA GeForce RTX 5070 Ti": 15.4,
    "NVIDIA GeForce RTX 5070": 11.5,
    "NVIDIA H100 80GB HBM3": 79.1, "NVIDIA H100 PCIe": 79.1, "NVIDIA H100 NVL": 93.0,
    "NVIDIA H200": 139.8, "NVIDIA H200 NVL": 139.8, "NVIDIA B200": 178.3, "NVIDIA GB200": 184.0,
    "NVIDIA GH200 480GB": 94.5, "NVIDIA GH200 120GB": 94.5,  # the names have the size of the CPU's memory
    "NVIDIA B300 SXM6 AC": 267.6, "NVIDIA GB300": 276.5,
    "AMD Instinct MI210": 63.9, "AMD Instinct MI250X": 63.9,  # of one of its two dies, which is a device
    "AMD Instinct MI300X": 191.9, "AMD Instinct MI300X OAM": 191.9, "AMD Instinct MI325X": 255.9,
    "AMD Instinct MI350X": 287.9, "AMD Instinct MI355X": 287.9,
}  # fmt: skip


def find_device_bytes(name: str) -> int:
    """Usable bytes of a device named exactly, or of a size such as `24GiB`, `80GB`. UserError for anything else."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GiB|GB)", name)
    if size and float(size[1]) > 0:
        return int(float(size[1]) * (GIB if size[2] == "GiB" else 1e9))
    if name in _CAPACITY_GIB:
        return int(_CAPACITY_GIB[name] * GIB)
    if name in known_devices():
        raise UserError(f"--device {name!r}: the size of its memory is not known; give a size instead, such as 128GiB")
    similar = " or ".join(map(repr, _find_similar(name)))
    hint = f"did you mean {similar}? " if similar else ""
    raise UserError(f"--device {name!r}: unknown device; {hint}give an exact name, or a size such as 24GiB")


def _find_similar(name: str) -> list[str]:
    """At most four names that have all words of `name`, those with whole words first; else those with its model (the
    words with digits, such as T4); else one that is misspelt.

    Words before letters, since letters alone take an RTX 4090 for an RTX A4500.
    """
    asked = _words(name)
    found = [known for known in _CAPACITY_GIB if all(any(a in word for word in _words(known)) for a in asked)]
    found.sort(key=lambda known: not asked <= _words(known))
    model = {word for word in asked if re.search(r"\d", word) and not re.fullmatch(r"\d+gi?b", word)}
    found = found or [known for known in _CAPACITY_GIB if model and model <= _words(known)]
    return found[:4] or list(filter(None, [find_near(name, _CAPACITY_GIB)]))


def _words(name: str) -> set[str]:
    return set(re.split(r"[\s-]+", name.strip().lower()))
