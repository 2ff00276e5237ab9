"""(Re)build the plots and report.html of a run: `python -m training.report RUN`.

Reads nothing but the run directory, so a run can be copied anywhere and reported there. Prints the path of the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_prep.errors import UserError
from training.reporting.html import build_report


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when RUN is no run directory."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description="Build plots and report.html.")
    parser.add_argument("run", metavar="RUN", help="a run directory, such as runs/NAME")
    args = parser.parse_args(argv)
    try:
        print(build_report(args.run))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
