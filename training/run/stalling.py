"""What a run does about a rank without progress, as `monitor.on_stall` says."""

from __future__ import annotations

import logging
import time

from training.config.sections import MonitorSection
from training.launch import World
from training.outcomes import RankEnd, tell
from training.run_dir import RunDir
from training.stalls import ANSWER_SECONDS, STALLED, Stall, StallWatch
from training.stop_signals import end_process

logger = logging.getLogger("redline.train")


def build_stall_watch(monitor: MonitorSection, run_dir: RunDir, world: World) -> StallWatch:
    """A watch that is running, unless `monitor.on_stall` is off. Stacks go to stderr until the run is open."""

    def on_stall(stall: Stall) -> None:
        logger.warning("%s: stacks in %s", stall, watch.folder or "stderr")
        if world.is_main and watch.folder is not None:
            run_dir.append_event("stall", stall.step, str(stall), section=stall.section, seconds=stall.seconds)
        if monitor.on_stall == "stop":
            time.sleep(ANSWER_SECONDS)  # others write theirs
            tell(vars(RankEnd(world.rank, STALLED, str(stall))))
            end_process(STALLED)

    watch = StallWatch(world.rank, monitor.stall_seconds, on_stall)
    if monitor.on_stall != "off":
        watch.start()
    return watch
