import pytest

from data_prep.errors import UserError
from training.memory.devices import _CAPACITY_GIB, GIB, find_device_bytes
from training.metrics.peaks import known_devices


def test_names_and_sizes():
    assert find_device_bytes("NVIDIA A100-SXM4-80GB") == int(79.1 * GIB)
    assert find_device_bytes("24GiB") == 24 * GIB
    assert find_device_bytes("80 GB") == 80_000_000_000


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("L40S", "'NVIDIA L40S'"),
        ("RTX 4090", "'NVIDIA GeForce RTX 4090'"),
        ("rtx-6000 ada", "'NVIDIA RTX 6000 Ada Generation'"),
        ("A100 PCIE 40GB", "'NVIDIA A100-PCIE-40GB' or 'A100-PCIE-40GB'"),
        ("A10", "'NVIDIA A10' or 'NVIDIA A10G' or 'NVIDIA A100-SXM4-40GB' or 'NVIDIA A100-PCIE-40GB'"),
        ("H200", "'NVIDIA H200' or 'NVIDIA H200 NVL' or 'NVIDIA GH200 480GB' or 'NVIDIA GH200 120GB'"),
        ("NVIDA L4", "'NVIDIA L4'"),
        ("NVIDIA T4", "'Tesla T4'"),
        ("NVIDIA T4 16GB", "'Tesla T4'"),
        ("NVIDIA L44", "'NVIDIA L4'"),
    ],
)
def test_unknown_names_are_refused_with_those_that_have_their_words(given, names):
    with pytest.raises(UserError) as error:
        find_device_bytes(given)
    assert (
        str(error.value) == f"--device {given!r}: unknown device; did you mean {names}? "
        "give an exact name, or a size such as 24GiB"
    )


def test_nothing_is_suggested_for_a_device_of_another_kind():
    with pytest.raises(UserError, match="'GTX 1080': unknown device; give an exact name, or a size such as"):
        find_device_bytes("GTX 1080")


def test_devices_with_a_peak_have_a_size():
    """An MI300A shares its memory with its CPU cores."""
    assert {name for name in known_devices() if name not in _CAPACITY_GIB} == {"AMD Instinct MI300A"}
    with pytest.raises(UserError, match="'AMD Instinct MI300A': the size of its memory is not known; give a size"):
        find_device_bytes("AMD Instinct MI300A")
