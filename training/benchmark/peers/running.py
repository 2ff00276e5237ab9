"""Runs of all sides of a situation, in turn, each in processes of its own with its log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data_prep.errors import UserError
from training.benchmark.interleave import draw_orders
from training.benchmark.isolation import PeakMemory, update_peaks
from training.benchmark.launching import Surroundings, run_logged
from training.benchmark.peers.inputs import PeerInputs, PeerRun
from training.benchmark.peers.reading import Measurement
from training.benchmark.peers.sides import PeerSide
from training.benchmark.peers.situations import Situation

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


def measure_situation(
    situation: Situation, sides: Sequence[PeerSide], inputs: PeerInputs, run_side: RunSide
) -> SituationResult:
    """All rounds. A side that fails has no result, and the others continue. Raises UserError when Redline fails."""
    settings, result = inputs.settings, SituationResult(situation)
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
                place = settings.work_dir / situation.name / f"{side.name}-{number}"
                measurement = run_side(side, inputs.plan(situation, place))
            except UserError as error:
                if side.name == BASE:
                    raise
                logger.warning("%s: %s", side.name, error)
                result.obstacles[side.name] = str(error)
                del result.measured[side.name]
                continue
            result.measured[side.name].append(measurement)
            logger.info(
                "%s, round %d of %d, %s: %.0f tokens/s, peak %.2f GiB, loss %.4f", situation.name, number,
                settings.rounds, side.name, measurement.tokens_per_second, measurement.peak_gib, measurement.loss,
            )  # fmt: skip
    return result


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
