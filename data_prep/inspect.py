"""Shows the content of a token store.

    python -m data_prep.inspect STORE [--documents N] [--split train|validation] [--verify]

The output has: counts, and what was left out and why; a histogram of document lengths; one record of each source, with
its place and unused keys; decoded documents, spread evenly over the split; the longest and the most unusual documents;
bad records. Tokens that carry loss are green and others are dimmed; without colours, they are between ⟦ and ⟧.
The most unusual documents are those with the rarest words (the highest mean -ln p of their tokens, by the frequencies
of the split) and the most repetitive ones (the lowest ln(distinct tokens) / ln(tokens)). They are found among at most
20,000 evenly spread documents. `--verify` only compares every shard with its hash in the manifest.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.errors import UserError
from data_prep.store.document_table import DocumentTable
from data_prep.store.examples import BRACKETS, COLOURS, describe_example, find_pieces, load_examples, mark_loss
from data_prep.store.statistics import count_tokens, measure_oddness
from data_prep.store.store import REJECTED_SPLITS, SPLITS, TOKENIZER, Manifest, Split, Store, count_left_out
from data_prep.store.summary import read_bad_records
from data_prep.store.verification import verify_shards

BAR_WIDTH = 32
PIPED_WIDTH = 160  # without a terminal, rich would take 80 and truncate counts and paths
SHOWN_TOKENS = 400
LOOKED_AT = 20_000
LEAST_TOKENS = 8  # both measures mean little for shorter documents


@with_exit_code
def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Show a store; return the exit code."""
    program = program_name("data_prep.inspect")
    parser = CommandParser(prog=program, description="Show what a token store contains.")
    parser.add_argument("store", type=Path, help="directory that data_prep.prepare printed")
    parser.add_argument("--documents", type=_count, default=3, help="decoded documents to show")
    parser.add_argument("--split", choices=[*SPLITS, *REJECTED_SPLITS], default="train")
    parser.add_argument("--verify", action="store_true", help="only compare every shard with the manifest's hashes")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    console = console or Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    store = Store.open(options.store)
    verify(store, console) if options.verify else inspect(store, options.split, options.documents, console)
    return 0


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of documents, 0 or more")
    return int(text)


def inspect(store: Store, split: Split, num_documents: int, console: Console) -> None:
    """Print everything about one split of a store."""
    table = store.split(split)
    console.print(show_counts(store.manifest))
    console.print(Panel(show_histogram(table.lengths), title=f"{split}: tokens per document", expand=False))
    tokenizer = _load_tokenizer(store.path / TOKENIZER)
    marks = COLOURS if _has_colour(console) else BRACKETS
    for example in load_examples(store.path):
        console.print(Text.from_ansi(describe_example(example, marks)))
    for index in np.linspace(0, len(table) - 1, min(num_documents, len(table))).astype(int).tolist():
        _print_document(console, table, index, tokenizer, "document")
    for index in np.argsort(table.lengths, kind="stable")[::-1][:num_documents].tolist():
        _print_document(console, table, index, tokenizer, "among the longest: document")
    _print_oddest(console, store, table, num_documents, tokenizer)
    _print_bad_records(console, store, num_documents)


def verify(store: Store, console: Console) -> None:
    """Check the hash of every shard. Raises UserError that names those with another content."""
    number, size = verify_shards(store)
    console.print(f"all {number} shards ({size / 1e6:,.1f} MB) match their hashes")


def _print_oddest(console: Console, store: Store, table: DocumentTable, shown: int, tokenizer: Tokenizer) -> None:
    looked_at = np.linspace(0, len(table) - 1, min(LOOKED_AT, len(table))).astype(np.int64)
    looked_at = looked_at[table.lengths[looked_at] >= LEAST_TOKENS]
    surprise, richness = measure_oddness(table, looked_at, count_tokens(table, store.manifest.vocab_size))
    for order, values, what in (
        (-surprise, surprise, "rarest words, {:.1f} nats a token"),
        (richness, richness, "most repetitive, Herdan's C {:.2f}"),
    ):
        for place in np.argsort(order, kind="stable")[:shown].tolist():
            title = f"{what.format(values[place])}: document"
            _print_document(console, table, int(looked_at[place]), tokenizer, title)


def show_counts(manifest: Manifest) -> Table:
    """Make a table of the splits and sources."""
    title = f"store {manifest.fingerprint}, encoder {manifest.encoder}, vocabulary {manifest.vocab_size}"
    table = Table("", "documents", "tokens", "text MB", "bytes/token", "unigram entropy", "left out", title=title)
    for name, counts in manifest.splits.items():
        entropy = "" if counts.unigram_entropy_nats is None else f"{counts.unigram_entropy_nats:.3f} nats"
        table.add_row(name, *_numbers(counts.documents, counts.tokens, counts.text_bytes), entropy, "")
    for source in manifest.sources:
        name = f"{source.path} ({source.kind})"
        left_out = ", ".join(f"{count:,} {why}" for why, count in count_left_out(source).items() if count)
        table.add_row(name, *_numbers(source.documents, source.tokens, source.text_bytes), "", left_out)
    return table


def _numbers(documents: int, tokens: int, text_bytes: int) -> list[str]:
    ratio = f"{text_bytes / tokens:.2f}" if tokens else ""
    return [f"{documents:,}", f"{tokens:,}", f"{text_bytes / 1e6:.1f}", ratio]


def show_histogram(lengths: np.ndarray) -> str:
    """Draw a histogram with a line for each power of two, the lower bound of its lengths."""
    if not len(lengths):
        return "no documents"
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    counts = np.bincount(exponents)
    first = int(np.flatnonzero(counts)[0])
    lines = []
    for exponent in range(first, len(counts)):
        bar = "█" * round(BAR_WIDTH * counts[exponent] / counts.max())
        span = f"{2**exponent:>7,} to {2 ** (exponent + 1) - 1:>7,}"
        lines.append(f"{span}  {bar:<{BAR_WIDTH}} {counts[exponent]:,}")
    quartiles = ", ".join(f"{value:,.0f}" for value in np.percentile(lengths, [0, 25, 50, 75, 100]))
    return "\n".join([*lines, f"minimum, quartiles, maximum: {quartiles}; mean {lengths.mean():,.1f}"])


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise UserError(f"{path} is missing, so documents cannot be decoded: delete the store and prepare again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower type
        raise UserError(f"{path} is damaged ({error}): delete the store and prepare again") from None


def show_document(ids: np.ndarray, loss_runs: np.ndarray | None, tokenizer: Tokenizer, colour: bool = True) -> Text:
    """Decode a document, with loss in green or between marks; the middle of a long document is left out."""
    has_loss = mark_loss(len(ids), loss_runs)
    text = Text()
    half = SHOWN_TOKENS // 2
    ranges = [(0, len(ids))] if len(ids) <= SHOWN_TOKENS else [(0, half), (len(ids) - half, len(ids))]
    for number, (begin, end) in enumerate(ranges):
        if number:
            text.append(f"\n… {len(ids) - SHOWN_TOKENS:,} tokens …\n", "yellow")
        for start, stop in find_pieces(has_loss[begin:end]):
            decoded = tokenizer.decode(ids[begin + start : begin + stop].tolist(), skip_special_tokens=False)
            if has_loss[begin + start] and not colour:
                decoded = f"⟦{decoded}⟧"
            text.append(decoded, "green" if has_loss[begin + start] else "dim")
    return text


def _print_document(console: Console, table: DocumentTable, index: int, tokenizer: Tokenizer, what: str) -> None:
    ids = table.ids(index)
    title = f"{what} {index}, source {table.sources[index]}, {len(ids):,} tokens"
    shown = show_document(ids, table.loss_runs(index), tokenizer, _has_colour(console))
    console.print(Panel(shown, title=title))


def _has_colour(console: Console) -> bool:
    """Whether the console is a terminal with colours, and NO_COLOR is not set."""
    return console.color_system is not None and not console.no_color


def _print_bad_records(console: Console, store: Store, shown: int) -> None:
    console.print(f"bad records: {store.manifest.bad_records}")
    for bad in read_bad_records(store.path, shown):
        console.print(f"  {bad}", markup=False)


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
