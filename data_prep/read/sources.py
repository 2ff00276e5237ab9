"""Finds the files of `data.sources`, in the order of their paths, and the format in which each is read."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.options import EMBEDDED, HUB_PREFIX, MAX_RECORD_BYTES, SourceSection
from data_prep.read.corpus import find_corpus_files
from data_prep.read.files import Format, Stamp, read_stamp
from data_prep.read.huggingface import find_cached_files, find_saved_files, stream_path
from data_prep.read.listing import choose_larger, guess_format, list_directory, split_path


@dataclass(frozen=True)
class SourceFile:
    """A file with its size in bytes and its stamp when it was found, or a streamed dataset (`hf_stream`, size 0)."""

    path: str
    format: Format
    size: int
    stamp: Stamp | None = None


@dataclass(frozen=True)
class Input:
    """A source and its files; `index` is its position in `data.sources`, `max_record_bytes` is that of the recipe."""

    index: int
    section: SourceSection
    files: tuple[SourceFile, ...]
    max_record_bytes: int = MAX_RECORD_BYTES


def find_inputs(
    sections: Sequence[SourceSection], max_record_bytes: int = MAX_RECORD_BYTES, streaming: bool = False
) -> list[Input]:
    """Find the files of every source.

    Raises UserError when a path, glob, directory or dataset name yields no file, or when an option does not apply.
    With `streaming`, a dataset by name is not downloaded; it is one file of format `hf_stream`.
    """
    inputs = [
        Input(index, section, tuple(_find_files(section, f"data.sources.{index}", streaming)), max_record_bytes)
        for index, section in enumerate(sections)
    ]
    for item in inputs:
        _check_options(item)
    return inputs


def _check_options(item: Input) -> None:
    """Raises UserError for an option that applies to none of the source's files."""
    formats = {file.format for file in item.files}
    for name, value, taken_by in (
        ("records_key", item.section.records_key, {"json", "jsonl"}),
        ("delimiter", item.section.delimiter, {"csv", "tsv"}),
    ):
        if value is not None and not formats & taken_by:
            what = f"applies to {' and '.join(sorted(taken_by))} files only, these are {', '.join(sorted(formats))}"
            raise UserError(f"data.sources.{item.index}.{name}: {value!r} {what}: remove it")


def _find_files(section: SourceSection, key: str, streaming: bool) -> Iterator[SourceFile]:
    if section.path.startswith(HUB_PREFIX):
        if streaming:
            yield SourceFile(stream_path(section.path, section.hf_split), "hf_stream", 0)
            return
        paths = find_cached_files(section, key)
    elif section.path == EMBEDDED:
        for path in find_corpus_files():
            yield _describe(str(path), "corpus")
        return
    else:
        paths = _list_paths(Path(section.path).expanduser(), section, key)
    for path in map(str, paths):
        yield _describe(path, find_format(path, section))


def _describe(path: str, format: Format) -> SourceFile:
    stamp = read_stamp(path)
    return SourceFile(path, format, stamp[1], stamp)


def _list_paths(path: Path, section: SourceSection, key: str) -> Sequence[str | Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        if section.format == "auto" and (saved := find_saved_files(path, section.hf_split, key)) is not None:
            return saved
        return list_directory(str(path), section.format, key)
    names = sorted((name for name in glob.glob(str(path), recursive=True) if Path(name).is_file()), key=split_path)
    if not names:
        raise UserError(f"{key}.path: {path} is not a file, a directory, or a glob that matches a file")
    return choose_larger(names, str(path), key) if section.format == "auto" else names


def find_format(path: str, section: SourceSection) -> Format:
    """Return the format that the section sets, otherwise the one guessed from the suffix and the first lines."""
    found = guess_format(path) if section.format == "auto" else section.format
    return "lines" if found == "text" and section.text_unit == "line" else found
