"""Runs of all sides of a situation, in turn, each in processes of its own with its log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from training.benchmark.interleave import draw_orders
from training.benchmark.isolation import PeakMemory, update_peaks
from training.benchmark.launching import Surroundings, run_logged
from training.benchmark.peers.inputs import PeerInputs, PeerRun
from training.benchmark.peers.reading import Measurement
from training.benchmark.peers.sides import PeerSide
from training.benchmark.peers.situations import Situation

if TYPE_CHECKING:
    from training.metrics.peaks import Peak

logger = logging.getLogger("redline.benchmark")

RUN_LIMIT_SECONDS = 2 * 3600
BASE = "redline"
RunSide = Callable[[PeerSide, PeerRun], Measurement]


@dataclass
class SituationResult:
    """Measurements by the name of a side, by round; and why a side has none."""

    situation: Situation
    measured: dict[str, list[Measurement]] = field(default_factory=dict)
    obstacles: dict[str, str] = field(default_factory=dict)
    flops_per_token: int = 0
    """`count_palm_flops` of the model, where the device has a peak."""
    peak: Peak | None = None
    """Of bfloat16, on CUDA."""


def measure_situation(
    situation: Situation, sides: Sequence[PeerSide], inputs: PeerInputs, run_side: RunSide
) -> SituationResult:
    """All rounds. A side that fails has no result, and the others continue. Raises UserError when Redline fails."""
    settings = inputs.settings
    result = SituationResult(situation, peak=None if settings.on_cpu else find_device_peak())
    sides = [side for side in sides if situation.name in side.situations]
    reason = situation.obstacle(settings)
    for side in sides:
        if why := reason or side.obstacle(settings):
            result.obstacles[side.name] = why
    able = [side for side in sides if side.name not in result.obstacles]
    result.measured = {side.name: [] for side in able}
    for number, order in enumerate(draw_orders(able, settings.rounds), 1):
        for side in order:
            if side.name in result.obstacles:
                continue
            try:
                run = inputs.plan(situation, settings.work_dir / situation.name / f"{side.name}-{number}")
                measurement = run_side(side, run)
            except UserError as error:
                if side.name == BASE:
                    raise
                logger.warning("%s: %s", side.name, error)
                result.obstacles[side.name] = str(error)
                del result.measured[side.name]
                continue
            result.measured[side.name].append(measurement)
            if result.peak and not result.flops_per_token:
                result.flops_per_token = count_palm_flops(run.model, situation.shape(settings)[1])
            logger.info(
                "%s, round %d of %d, %s: %.0f tokens/s, peak %.2f GiB, loss %.4f", situation.name, number,
                settings.rounds, side.name, measurement.tokens_per_second, measurement.peak_gib, measurement.loss,
            )  # fmt: skip
    return result


def find_device_peak() -> Peak | None:
    """The vendor's dense bfloat16 rate of this machine's GPU; None: it has none in our table."""
    import torch

    from training.metrics.peaks import find_peak

    return find_peak(torch.cuda.get_device_name(), "bfloat16")


def count_palm_flops(model: dict[str, Any], seq_len: int) -> int:
    """FLOPs of a trained token, 6 N + 12 layers x width x seq_len (appendix B of PaLM, arXiv:2204.02311), over rows of
    one document. model: its config.json with `parameters`; N leaves out an input embedding that is not the head."""
    embedding = 0 if model["tie_word_embeddings"] else model["vocab_size"] * model["hidden_size"]
    heads = model["num_attention_heads"]
    width = heads * (model.get("head_dim") or model["hidden_size"] // heads)
    return 6 * (model["parameters"] - embedding) + 12 * model["num_hidden_layers"] * width * seq_len


def run_peer(side: PeerSide, run: PeerRun) -> Measurement:
    """One run. Raises UserError with its reason when it fails, or when it leaves no result that can be read."""
    launch = side.prepare(run)
    peaks: dict[int, PeakMemory] = {}
    around = Surroundings(launch.environment, launch.folder, lambda pid: update_peaks(pid, peaks))
    log = run.output.with_name(f"{run.output.name}.log")
    run.output.mkdir(parents=True, exist_ok=True)
    run_logged(launch.command, log, RUN_LIMIT_SECONDS, around)
    try:
        return side.read(run, log, max((peak.resident for peak in peaks.values()), default=0))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{run.output.name}: its result cannot be read ({type(error).__name__}: {error})") from None
