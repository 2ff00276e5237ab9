"""Calibration is made a few times on a machine, kept, and read from then on."""

import logging
from dataclasses import replace

import orjson
import pytest
import torch

from training.metrics import calibration
from training.metrics.calibration import CALIBRATIONS, Calibrator
from training.metrics.matmuls import Matmul
from training.metrics.peaks import Peak


@pytest.fixture
def calibrator(tmp_path):
    return Calibrator(torch.float32, torch.device("cpu"), path=tmp_path / "cache" / "matmuls.json")


@pytest.fixture
def measured(monkeypatch):
    """Rates that come out of each measurement, and how many were made."""
    rates = iter([1.0, 3.0, 2.0, 99.0])
    made = []

    def measure(dtype, device, *, seconds):
        made.append(next(rates))
        return Peak(made[-1], "measured", "cpu", str(dtype), 5.0, (8, 8, 8))

    monkeypatch.setattr(calibration, "measure_matmul_peak", measure)
    return made


def test_the_best_of_the_first_calibrations_counts_from_then_on(calibrator, measured):
    found = [calibrator.find_machine_peak() for _ in range(5)]
    assert [peak.tflops for peak in found] == [1.0, 3.0, 3.0, 3.0, 3.0]
    assert len(measured) == CALIBRATIONS
    assert found[-1].shape == (8, 8, 8)  # a tuple again


def test_a_higher_rate_found_elsewhere_is_the_machines_from_then_on(calibrator, measured):
    found = [calibrator.find_machine_peak() for _ in range(CALIBRATIONS)][-1]
    calibrator.raise_machine_peak(replace(found, tflops=4.0, shape=None))
    assert calibrator.find_machine_peak().tflops == 4.0
    assert len(measured) == CALIBRATIONS


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"ranks": 2}])
def test_what_changes_the_rate_is_measured_anew(calibrator, measured, change):
    calibrator.find_machine_peak()
    assert replace(calibrator, **change).find_machine_peak().tflops == 3.0


def test_each_way_of_float32_products_has_rates_of_its_own(calibrator, measured):
    before = torch.get_float32_matmul_precision()
    assert calibrator.find_machine_peak().tflops == 1.0
    try:
        torch.set_float32_matmul_precision("medium" if before == "highest" else "highest")
        assert calibrator.find_machine_peak().tflops == 3.0
    finally:
        torch.set_float32_matmul_precision(before)


def test_ranks_that_do_not_keep_only_read(calibrator, measured):
    replace(calibrator, keeps=False).find_machine_peak()
    assert not calibrator.file.exists()


def test_a_damaged_or_unwritable_file_costs_a_measurement_and_says_so(calibrator, measured, caplog):
    calibrator.file.parent.mkdir()
    calibrator.file.write_text("{")
    assert calibrator.find_machine_peak().tflops == 1.0
    blocked = replace(calibrator, path=calibrator.file / "not a directory")
    with caplog.at_level(logging.WARNING):
        assert blocked.find_machine_peak().tflops == 3.0
    assert "not remembered" in caplog.text


def test_the_ceiling_of_a_model_is_its_flops_over_the_time_of_its_shapes(calibrator, monkeypatch):
    """Two products of 64 x 64 at 4 TFLOP/s and one of 64 x 192, three times the FLOPs, at 2 (transposed 1)."""
    rates = {((10, 64, 64), "nn"): 1, ((10, 64, 64), "nt"): 4, ((10, 64, 192), "nn"): 2, ((10, 64, 192), "nt"): 1}
    monkeypatch.setattr(
        calibration, "measure_rates", lambda shape, layout, *_, seconds: [float(rates[shape, layout])] * 20
    )
    small, large = (Matmul("x", 64, out, weight_grad=True, input_grad=True) for out in (64, 192))
    ceiling = calibrator.find_model_ceiling([small, large, small], tokens=10)
    assert ceiling is not None
    assert ceiling.tflops == pytest.approx((2 + 3) / (2 / 4 + 3 / 2))
    assert calibrator.find_model_ceiling([], tokens=10) is None


def test_real_rates_are_positive_and_remembered(calibrator):
    matmul = Matmul("x", 64, 128, weight_grad=True, input_grad=True)
    first = calibrator.find_model_ceiling([matmul], tokens=64)
    assert first is not None and first.tflops > 0 and first.spread_pct is not None
    assert list(_entries(calibrator).values()) == [[first.tflops]]


def test_a_ceiling_that_a_run_exceeded_is_measured_anew(calibrator, measured):
    other = replace(calibrator, dtype=torch.bfloat16)
    found = [calibrator.find_machine_peak() for _ in range(CALIBRATIONS - 1)][-1]
    other.find_machine_peak()
    replace(calibrator, keeps=False).forget(found)
    assert calibrator.find_machine_peak().tflops == 99.0  # the third of three: still remembered
    calibrator.forget(replace(found, tflops=99.0))
    assert list(_entries(calibrator).values()) == [[], [2.0]]


def _entries(calibrator):
    return {key: [one["tflops"] for one in found] for key, found in orjson.loads(calibrator.file.read_bytes()).items()}
