"""The meter of a training: clock, FLOPs of its model, and the rates that they are compared with."""

from __future__ import annotations

import logging
import os
from functools import partial

import torch
from transformers import TrainingArguments

from training.metrics.calibration import Calibrator
from training.metrics.flops import ModelFlops
from training.metrics.matmuls import find_matmuls
from training.metrics.peaks import Peak, find_peak
from training.metrics.phase_timer import build_phase_timer
from training.metrics.throughput import Meter, Rates
from training.precision import find_precision, name_peak_format
from training.ranks import gather_lists

logger = logging.getLogger("redline.build")


def build_meter(model: torch.nn.Module, args: TrainingArguments, seq_len: int | None = None) -> Meter:
    """MFU is against the vendor's dense peak of this device, or a measured one where no table has it (every CPU).

    seq_len: tokens of a row. With it the rate that the model's own matmuls reach here is measured as well, and the
    FLOPs of a batch are counted by `Meter.add`; without it those of each forward pass are (`ForwardCounter`).
    """
    calibrator = _build_calibrator(args)
    peak = None
    if args.device.type == "cuda":
        peak = find_peak(torch.cuda.get_device_name(args.device), name_peak_format(vars(args)))
    peak = peak or calibrator.find_machine_peak()
    ceiling = None
    if seq_len is not None:
        peak, ceiling = _find_ceiling(model, args.per_device_train_batch_size * seq_len, calibrator, peak)
    _log_peak(peak, ceiling)
    return Meter(
        build_phase_timer(args.device.type),
        gather=partial(gather_lists, device=args.device),
        model_flops=None if seq_len is None else ModelFlops.from_model(model),
        rates=Rates(peak, ceiling, calibrator),
    )


def _build_calibrator(args: TrainingArguments) -> Calibrator:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    keeps = args.process_index == 0
    return Calibrator(find_precision(vars(args)).dtype, args.device, ranks=ranks, keeps=keeps)


def _find_ceiling(model: torch.nn.Module, tokens: int, calibrator: Calibrator, peak: Peak) -> tuple[Peak, Peak | None]:
    """The peak, raised where the model's own matmuls exceed a measured one, and the rate of those matmuls."""
    matmuls = find_matmuls(model)
    ceiling = calibrator.find_model_ceiling([m for m in (*matmuls.layers, *matmuls.head) if not m.overhead], tokens)
    if ceiling and peak.source == "measured" and ceiling.tflops > peak.tflops:
        peak = ceiling  # each is measured on its own, and other programs can only lower it
        calibrator.raise_machine_peak(peak)
    return peak, ceiling


def _log_peak(peak: Peak, ceiling: Peak | None) -> None:
    spread = "" if peak.spread_pct is None else f", spread {peak.spread_pct:.0f} %"
    alone = f"; this model's matmuls alone reach {ceiling.tflops:.3g}" if ceiling else ""
    logger.info(
        "MFU is against %.2f TFLOP/s per device: %s (%s, %s%s)%s",
        peak.tflops, peak.source, peak.device, peak.dtype, spread, alone,
    )  # fmt: skip
