"""How fast matmuls and memory are on this machine, measured, and remembered in the user's cache.

- `find_machine_peak`: the best of several shapes (`peaks.measure_matmul_peak`): what MFU is against where no vendor
  states a rate.
- `find_model_ceiling`: the rate at which the matmuls of one model would run with nothing around them, each at its own
  shape. MFU cannot rise above it but by other shapes: what is lost between the two is the model's, not the trainer's.
- `find_bandwidth`: bytes a second of copying.

A measurement takes about half a second and is disturbed by whatever else runs, which can only lower it. So each is made
at the first `CALIBRATIONS` starts of a machine and the best of them counts; later starts, and resumes, read the file.
A model whose own matmuls then exceed the machine's peak raises it.
It is kept by host, device with threads, ranks that measure at once, number format, torch and shapes. Delete it to
calibrate again.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch

from data_prep.progress import progress
from training.metrics.matmuls import Matmul
from training.metrics.peaks import (
    CPU_SHAPES,
    CUDA_SHAPES,
    Bandwidth,
    Peak,
    Shape,
    device_label,
    measure_bandwidth,
    measure_matmul_peak,
    measure_rates,
    upper_decile,
)
from training.run_dir import write_text_atomic

logger = logging.getLogger("redline.metrics")

CALIBRATIONS = 3
MAX_ROWS = 4096  # of a micro-batch: more do not change the rate, and a head of 150,000 words takes 1.2 GB of results
SECONDS = 0.5


@dataclass(frozen=True)
class Calibrator:
    """Measures on one device, or remembers. `ranks`: how many measure there at once; `keeps`: writes to the file."""

    dtype: torch.dtype
    device: torch.device
    ranks: int = 1
    keeps: bool = True
    path: Path | None = None
    """None: `redline/matmuls.json` in the user's cache directory."""

    @property
    def file(self) -> Path:
        """Where measurements are kept."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return self.path or cache / "redline" / "matmuls.json"

    def find_machine_peak(self) -> Peak:
        """The best matmul rate of this machine in this number format."""
        shapes = CUDA_SHAPES if self.device.type == "cuda" else CPU_SHAPES
        return self._find("peak", shapes, lambda: measure_matmul_peak(self.dtype, self.device, seconds=SECONDS))

    def raise_machine_peak(self, peak: Peak) -> None:
        """A rate above all that were measured is the machine's from now on, for other models as well."""
        if self.keeps:
            shapes = CUDA_SHAPES if self.device.type == "cuda" else CPU_SHAPES
            key = self._name("peak", shapes)
            _keep(self.file, key, [*_load(self.file).get(key, []), asdict(peak)])

    def find_model_ceiling(self, matmuls: Iterable[Matmul], tokens: int) -> Peak | None:
        """FLOPs over seconds of the forward products of a micro-batch of so many tokens; None for a model without.

        Of every shape the better of the two layouts that training uses (the weight as it is, and transposed) counts.
        """
        flops: dict[Shape, int] = {}
        for matmul in matmuls:
            shape = (min(tokens, MAX_ROWS), matmul.in_features, matmul.out_features)
            flops[shape] = flops.get(shape, 0) + matmul.forward
        if not flops:
            return None
        return self._find("ceiling", sorted(flops.items()), lambda: self._measure_ceiling(flops))

    def _measure_ceiling(self, flops: dict[Shape, int]) -> Peak:
        seconds, spreads = 0.0, []
        for shape, amount in flops.items():
            rates = max(
                (
                    measure_rates(shape, layout, self.dtype, self.device, seconds=SECONDS / (2 * len(flops)))
                    for layout in ("nn", "nt")
                ),
                key=upper_decile,
            )
            low, median, high = statistics.quantiles(rates, n=4)
            spreads.append(100.0 * (high - low) / median)
            seconds += amount / (1e12 * upper_decile(rates))
        tflops = sum(flops.values()) / seconds / 1e12
        name = str(self.dtype).removeprefix("torch.")
        return Peak(tflops, "measured", device_label(self.device), name, statistics.median(spreads))

    def forget(self, best: Peak) -> None:
        """`best`, as found here, is no ceiling, since a run was faster: all that was measured under its name goes."""
        if self.keeps:
            for key, found in _load(self.file).items():
                if any(entry["tflops"] == best.tflops for entry in found if "tflops" in entry):
                    _keep(self.file, key, [])

    def find_bandwidth(self) -> Bandwidth:
        """Raises RuntimeError when there is no memory for it."""
        key = f"bandwidth on {platform.node()}: {device_label(self.device)}, {self.ranks} at once"
        with progress("calibration: measuring the memory bandwidth"):
            found = self._remember(key, lambda: asdict(measure_bandwidth(self.device)))
        return max((Bandwidth(**entry) for entry in found), key=lambda entry: entry.gigabytes_per_second)

    def _find(self, what: str, shapes: Sequence[object], measure: Callable[[], Peak]) -> Peak:
        with progress(f"calibration: measuring the {what}"):
            found = self._remember(self._name(what, shapes), lambda: asdict(measure()))
        best = max(found, key=lambda entry: entry["tflops"])
        return Peak(**{**best, "shape": tuple(best["shape"]) if best["shape"] else None})

    def _name(self, what: str, shapes: Sequence[object]) -> str:
        # Float32 products have more than one way, whose rates differ (`precision.speed_up_float32`, TF32).
        way = f" ({torch.get_float32_matmul_precision()})" if self.dtype == torch.float32 else ""
        device = f"{device_label(self.device)}, {self.ranks} at once, {self.dtype}{way}, torch {torch.__version__}"
        return f"{what} on {platform.node()}: {device}; {shapes}"

    def _remember(self, key: str, measure: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """All measurements under `key`, with another one while they are fewer than `CALIBRATIONS`."""
        found = _load(self.file).get(key, [])
        if len(found) < CALIBRATIONS:
            found.append(measure())
            if self.keeps:
                _keep(self.file, key, found)
        return found


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}


def _keep(path: Path, key: str, found: list[dict[str, Any]]) -> None:
    """Others may write at the same time: the last one wins, and what is lost is measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {**_load(path), key: found}
        write_text_atomic(path, orjson.dumps(entries, option=orjson.OPT_INDENT_2).decode())
    except OSError as error:
        logger.warning("calibration: not remembered, it is measured at each start (%s)", error)
