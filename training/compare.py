"""Compare runs: `python -m training.compare RUN_A RUN_B [RUN_C …]`, or with repeats
`python -m training.compare --a RUN RUN --b RUN RUN [--paired]`.

Reads nothing but run directories. Prints the page; `--output PAGE.md` writes it with PAGE.json and PAGE.png beside it.
docs/compare.md says what each number means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.errors import UserError
from training.comparing.comparison import compare
from training.comparing.page import format_page
from training.comparing.sides import Side, load_side
from training.comparing.writing import write_comparison

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when something named is no run."""
    args = _parse(argv)
    sides = _load_sides(args)
    if args.paired and len({len(side.runs) for side in sides}) > 1:
        counts = ", ".join(f"{side.name} has {len(side.runs)}" for side in sides)
        raise UserError(f"--paired: {counts} runs; name the runs of each round on both sides")
    if args.skip_steps is not None and args.skip_steps < 0:
        raise UserError(f"--skip_steps {args.skip_steps}: name 0 or more")
    comparison = compare(sides, paired=args.paired, skip_steps=args.skip_steps)
    if args.output:
        write_comparison(comparison, args.output)
    print(json.dumps(comparison.as_json(), indent=1) if args.json else format_page(comparison))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    program = program_name("training.compare")
    parser = CommandParser(
        prog=program, description="Compare runs.", epilog=f"Example: {program} runs/A runs/B --output compare.md"
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="Run directories, one per side. Each is compared with the first.",
    )
    for side in ("a", "b"):
        parser.add_argument(
            f"--{side}", nargs="+", metavar="RUN", help=f"repeats of side {side.upper()}, or a directory of them"
        )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="Runs i of --a and --b were trained one after the other; compare them as pairs.",
    )
    parser.add_argument("--skip_steps", type=int, metavar="N", help="leave out the first N steps (default: a tenth)")
    parser.add_argument("--output", type=Path, metavar="PAGE.md", help="write the page, its JSON and its picture")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    return parser.parse_args(argv)


def _load_sides(args: argparse.Namespace) -> list[Side]:
    if args.runs and (args.a or args.b):
        raise UserError("name runs either one a side (RUN_A RUN_B) or with --a and --b, not both")
    given = [[run] for run in args.runs] if args.runs else [args.a, args.b]
    if len(given) < 2 or not all(given):
        raise UserError("name two sides: RUN_A RUN_B, or --a RUN … --b RUN …")
    if len(given) > len(LETTERS):
        raise UserError(f"{len(given)} runs: at most {len(LETTERS)} sides at once")
    return [load_side(letter, paths) for letter, paths in zip(LETTERS, given, strict=False)]


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
