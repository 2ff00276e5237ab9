"""How every benchmark reads its command line: the module's docstring is its help."""

import argparse

from data_prep.command import CommandParser


def build_parser(name: str, doc: str | None) -> CommandParser:
    """A parser for `python -m training.benchmark NAME`: the first line of `doc` says what, the rest stands below."""
    what, _, rest = (doc or "").partition("\n\n")
    return CommandParser(
        prog=f"python -m training.benchmark {name}",
        description=what,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
