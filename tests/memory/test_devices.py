import pytest

from data_prep.errors import UserError
from training.memory.devices import _CAPACITY_GIB, GIB, find_device_bytes
from training.metrics.peaks import known_devices


def test_names_and_sizes():
    assert find_device_bytes("NVIDIA A100-SXM4-80GB") == int(79.1 * GIB)
    assert find_device_bytes("24GiB") == 24 * GIB
    assert find_device_bytes("80 GB") == 80_000_000_000


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="NVIDIA L40S"):
        find_device_bytes("L40S")


def test_devices_with_a_peak_have_a_size():
    """GH200 and GB200 come in several memory sizes under one name; an MI300A shares its memory with its CPU cores."""
    without = {name for name in known_devices() if name not in _CAPACITY_GIB and "A100-" not in name}
    assert without == {"NVIDIA GH200 480GB", "NVIDIA GH200 120GB", "NVIDIA GB200", "AMD Instinct MI300A"}
