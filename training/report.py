"""(Re)build the plots and report.html of a run: `python -m training.report RUN`.

Reads nothing but the run directory, so a run can be copied anywhere and reported there. Prints the path of the page.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.progress import progress
from training.reporting.html import build_report


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when RUN is no run directory."""
    program = program_name("training.report")
    parser = CommandParser(
        prog=program,
        description="Draw the plots of a run and write its report.html.",
        epilog=f"Example: {program} runs/minigpt_quickstart",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, such as runs/NAME")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    with progress("drawing the report"):
        page = build_report(args.run)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
