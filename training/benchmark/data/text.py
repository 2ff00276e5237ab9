"""Real text for the benchmarks: a tree of files as one JSONL file, and prefixes of it.

    python -m training.benchmark text TREE OUTPUT.jsonl

Writes one `{"text": …, "path": …}` a line for every regular file of TREE that is UTF-8 and not empty, in the order of
a hash of its path: the same on every machine, and any prefix is a fair sample of the whole, which the order of paths
would not give (a source tree keeps its documentation in one place and its generated tables in another).
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from data_prep.command import CommandParser
from data_prep.errors import UserError
from data_prep.read.corpus import find_corpus_files, read_corpus_documents


def main(argv: list[str]) -> int:
    """Write a directory of files as JSONL; the exit code."""
    parser = CommandParser(prog="python -m training.benchmark text", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("tree", type=Path, help="directory to read")
    parser.add_argument("output", type=Path, help="JSONL file to write")
    options = parser.parse_args(argv)
    try:
        documents, size = write_jsonl(read_tree(options.tree), options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {documents} documents, {size / 1e6:.1f} MB")
    return 0


def read_tree(root: Path) -> Iterator[tuple[str, str]]:
    """Path and text of every file below `root` that is UTF-8 and not empty. Raises UserError when there is none."""
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    if not names:
        raise UserError(f"text: no files below {root}")
    return _read_files(root, sorted(names, key=lambda name: hashlib.blake2b(os.fsencode(name)).digest()))


def _read_files(root: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            text = (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text:
            yield name, text


def read_corpus() -> Iterator[tuple[str, str]]:
    """The embedded corpus, each document once; what the local Python cannot decode is left out."""
    for path in find_corpus_files():
        try:
            texts = read_corpus_documents(path)
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield from ((path.name, text) for text in texts)


def write_jsonl(documents: Iterator[tuple[str, str]], output: Path) -> tuple[int, int]:
    """Write `{"text", "path"}` lines, repeated texts once; the number of documents and bytes."""
    seen: set[bytes] = set()
    size = 0
    with open(output, "wb") as file:
        for name, text in documents:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            name = os.fsencode(name).decode(errors="replace")
            size += file.write(orjson.dumps({"text": text, "path": name}) + b"\n")
    return len(seen), size


def cut_prefix(sources: Sequence[Path], num_bytes: int, output: Path) -> int:
    """Copy the first whole lines that fit into `num_bytes` (one at least); the bytes written."""
    written = 0
    with open(output, "wb") as writer:
        for source in sources:
            with open(source, "rb") as reader:
                for line in reader:
                    if written and written + len(line) > num_bytes:
                        return written
                    written += writer.write(line)
    return written
