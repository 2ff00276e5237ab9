"""`data.sources` to a plan: which files, in which format, cut into parts that processes can work on alone.

The plan is a pure function of the sources' content and names: files in the order of their paths, whole small files
grouped, large files of lines cut by byte range and Parquet by row group. A source with a limit (`max_documents`,
`max_tokens`) is one part, because "the first N" needs one reader.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow.parquet as pq

from data_prep.corpus import find_corpus_files
from data_prep.errors import UserError
from data_prep.options import EMBEDDED, SourceSection
from data_prep.records import COMPRESSIONS, READ_ERRORS, Format, Span, open_binary

PART_BYTES = 16 * 2**20

RECORD_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
}
# What a directory is searched for besides; a file that is named outright may end in anything.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".tex", ".html", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs",
                 ".go", ".java", ".js", ".ts", ".sh", ".sql", ".toml", ".yaml", ".yml")  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    path: str
    format: Format
    size: int


@dataclass(frozen=True)
class Input:
    """A source and its files; `index` is its place in `data.sources`."""

    index: int
    section: SourceSection
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class Part:
    """Work for one process: some spans of one source, in order."""

    index: int
    source: int
    spans: tuple[Span, ...]
    max_documents: int | None = None
    max_tokens: int | None = None


def find_inputs(sections: Sequence[SourceSection]) -> list[Input]:
    """Files of every source. Raises UserError when a path, glob or directory holds none."""
    return [Input(i, section, tuple(_find_files(section, f"data.sources.{i}"))) for i, section in enumerate(sections)]


def _find_files(section: SourceSection, key: str) -> Iterator[SourceFile]:
    if section.path == EMBEDDED:
        for path in find_corpus_files():
            yield SourceFile(str(path), "corpus", path.stat().st_size)
        return
    paths = _list_paths(Path(section.path).expanduser(), key)
    for path in paths:
        yield SourceFile(str(path), find_format(path, section), path.stat().st_size)


def _list_paths(path: Path, key: str) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_wanted(file, path))
        if not found:
            raise UserError(f"{key}.path: no text or record files in directory {path}")
        return found
    found = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
    if not found:
        raise UserError(f"{key}.path: {path} is no file, directory or glob that matches one")
    return found


def _is_wanted(file: Path, root: Path) -> bool:
    hidden = any(part.startswith((".", "__pycache__")) for part in file.relative_to(root).parts)
    suffix = _plain_suffix(file)
    return not hidden and (suffix in RECORD_SUFFIXES or suffix in TEXT_SUFFIXES) and file.is_file()


def _plain_suffix(path: Path) -> str:
    """The suffix below a compression's: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()


def find_format(path: Path, section: SourceSection) -> Format:
    """Format by suffix; `.json` that holds one object a line is read as JSONL."""
    found = RECORD_SUFFIXES.get(_plain_suffix(path))
    if found is None:
        return "lines" if section.text_unit == "line" else "text"
    return "jsonl" if found == "json" and _holds_json_lines(path) else found


def _holds_json_lines(path: Path) -> bool:
    try:
        with open_binary(str(path)) as file:
            first, second = file.readline(1 << 24), file.readline(1 << 24)
        return first.lstrip()[:1] == b"{" and bool(second.strip()) and isinstance(orjson.loads(first), dict)
    except (orjson.JSONDecodeError, *READ_ERRORS):
        return False


def plan_parts(inputs: Sequence[Input], part_bytes: int = PART_BYTES) -> list[Part]:
    """Parts of all sources, numbered through. Costs one look at the footer of each Parquet file."""
    parts: list[Part] = []
    for item in inputs:
        limits = (item.section.max_documents, item.section.max_tokens)
        if limits != (None, None):
            spans = tuple(Span(file.path, file.format) for file in item.files)
            parts.append(Part(len(parts), item.index, spans, *limits))
            continue
        for group in _group_spans(item.files, part_bytes):
            parts.append(Part(len(parts), item.index, tuple(group)))
    return parts


def _group_spans(files: Sequence[SourceFile], part_bytes: int) -> Iterator[list[Span]]:
    group: list[Span] = []
    size = 0
    for file in files:
        for span, span_bytes in _cut(file, part_bytes):
            if group and size + span_bytes > part_bytes:
                yield group
                group, size = [], 0
            group.append(span)
            size += span_bytes
    if group:
        yield group


def _cut(file: SourceFile, part_bytes: int) -> Iterator[tuple[Span, int]]:
    whole = Span(file.path, file.format)
    compressed = Path(file.path).suffix.lower() in COMPRESSIONS
    if file.size <= part_bytes or compressed:
        yield whole, file.size
    elif file.format in ("jsonl", "lines"):
        for start in range(0, file.size, part_bytes):
            yield Span(file.path, file.format, start, min(start + part_bytes, file.size)), part_bytes
    elif file.format == "parquet":
        yield from _cut_parquet(file, part_bytes)
    else:
        yield whole, file.size


def _cut_parquet(file: SourceFile, part_bytes: int) -> Iterator[tuple[Span, int]]:
    try:
        groups = pq.read_metadata(file.path).num_row_groups
    except READ_ERRORS:  # the reader reports it, with the place
        groups = 1
    step = max(1, groups * part_bytes // file.size)
    for start in range(0, groups, step):
        yield Span(file.path, file.format, start, min(start + step, groups)), part_bytes
