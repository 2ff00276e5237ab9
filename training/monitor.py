"""Watch a run in the terminal: `python -m training.monitor RUN [--once] [--every SECONDS]`.

Reads nothing but the run directory, so it can run anywhere that sees the files and costs the training nothing.
Ends when the run ends; Ctrl-C leaves the run alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from training.reporting.dashboard import Dashboard


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when RUN is no run directory."""
    program = program_name("training.monitor")
    parser = CommandParser(
        prog=program,
        description="Watch a run in the terminal.",
        epilog=f"Example: {program} runs/minigpt_quickstart --every 5",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, such as runs/NAME")
    parser.add_argument("--once", action="store_true", help="print one screen and exit")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="refresh interval (default 1)")
    args = parser.parse_args(argv)
    console = Console()
    dashboard = Dashboard(args.run)
    if args.once:
        console.print(dashboard.render(console.width))
        return 0
    with suppress(KeyboardInterrupt):  # the usual way to leave it
        _watch(dashboard, console, max(args.every, 0.1))
    return 0


def _watch(dashboard: Dashboard, console: Console, every: float) -> None:
    with Live(dashboard.render(console.width), console=console, auto_refresh=False) as live:
        while not dashboard.is_over():
            time.sleep(every)
            live.update(dashboard.render(console.width), refresh=True)


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
