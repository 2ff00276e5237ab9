"""Prepares a tokenizer and a token store from raw sources; both are cached by content.

    python -m data_prep.prepare --config configs/X.yaml [data.validation_share=0.05 …]

The steps are: (1) find and hash the files; (2) find or train the tokenizer; (3) compute the name of the store, and
return if it exists and its shards match their hashes (`data.verify`); (4) plan parts, reuse those of other stores,
tokenize the rest, and write the manifest. A run with a cached tokenizer and store costs a stat per file, and a second
for hashes. If several processes need the same product, a lock file lets one build it while the others wait. A bad
record stops the build, or with `data.on_bad_record: skip` it is listed in
`STORE/bad_records.jsonl`.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.command import program_name, run_command, with_exit_code
from data_prep.encode.encoder_choice import choose_encoder, sample_documents
from data_prep.encode.encoding import EncoderName
from data_prep.encode.template_choice import build_template, choose_template, read_template
from data_prep.encode.tokenizer import (
    LoadedTokenizer,
    find_tokenizer,
    fingerprint_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from data_prep.encode.tokenizer_text import READ_TIMES, choose_parts, read_texts
from data_prep.errors import UserError
from data_prep.options import DataSection, SourceSection, TokenizerSection
from data_prep.parse.kinds import Shape
from data_prep.progress import progress
from data_prep.read.chunks import Content
from data_prep.read.fingerprint import describe_contents, fingerprint_store, fingerprint_trained_tokenizer
from data_prep.read.parts import Part, plan_parts
from data_prep.read.records import BadRecord
from data_prep.read.sources import Input, find_inputs
from data_prep.recipe import DATA_SECTIONS, load_data_recipe
from data_prep.recipe.usage import describe_options, describe_sections, format_call, wrap_text
from data_prep.render.documents import Document, LeftOut, find_source_shape, read_documents
from data_prep.render.noticed import log_noticed, notice_sample
from data_prep.store.assembly import assemble_store
from data_prep.store.build import BuildSpec
from data_prep.store.contents import find_contents
from data_prep.store.duplicates import drop_duplicates, remove_signatures
from data_prep.store.examples import find_examples, load_examples, log_examples, save_examples
from data_prep.store.store import MANIFEST, Manifest, Store
from data_prep.store.summary import check_bad_share, log_store
from data_prep.store.verification import log_verified
from data_prep.store.writing import exclusive, explain_write_errors
from data_prep.stream.stream import StreamPlan, plan_stream, plan_units, sample_texts

logger = logging.getLogger("redline.data")


@dataclass(frozen=True)
class Prepared:
    """The directories of the tokenizer and the store, and whether they were cached.

    seconds: wall time of `prepare`.
    stream: replaces the store with `data.streaming`; `store_dir` is then None.
    """

    store_dir: Path | None
    tokenizer_dir: Path
    store_cached: bool
    tokenizer_cached: bool
    seconds: float
    stream: StreamPlan | None = None


@dataclass(frozen=True)
class _Plan:
    """The inputs, descriptions of their content, and their shapes, which are found only if something is built."""

    inputs: list[Input]
    contents: list[dict[str, Any]]
    files: list[tuple[Content, ...]]
    skip_bad_records: bool

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(find_source_shape(item, self.skip_bad_records) for item in self.inputs)


def prepare(data: DataSection, tokenizer: TokenizerSection) -> Prepared:
    """Make sure that the tokenizer and the token store of a recipe exist. Raises UserError.

    Several processes may call this at the same time, but each hashes the files that are not cached. Of the ranks of a
    run, one per node calls it. Does not import torch.
    """
    if data.streaming:
        return _prepare_stream(data, tokenizer)
    started = time.perf_counter()
    root = Path(data.store_dir)
    inputs = find_inputs(data.list_sources(), data.max_record_bytes)
    files = [find_contents(item, root) for item in inputs]
    hashes = [[content.hash for content in contents] for contents in files]
    plan = _Plan(inputs, describe_contents(inputs, hashes), files, data.on_bad_record == "skip")
    tokenizer_dir, tokenizer_cached = _prepare_tokenizer(tokenizer, plan.contents, _read_texts(plan, tokenizer), root)
    store_dir, store_cached = _prepare_store(data, plan, tokenizer_dir)
    return Prepared(store_dir, tokenizer_dir, store_cached, tokenizer_cached, time.perf_counter() - started)


def _prepare_stream(data: DataSection, options: TokenizerSection) -> Prepared:
    """Prepare the tokenizer and plan the stream. Reads only a sample of the sources."""
    started = time.perf_counter()
    root = Path(data.store_dir)
    inputs = find_inputs(data.list_sources(), data.max_record_bytes, streaming=True)
    plan = _Plan(inputs, [], [], data.on_bad_record == "skip")
    texts = [] if options.path is not None else sample_texts(plan.inputs, plan.shapes, options.sample_bytes)
    contents = [{"sample": texts}]
    directory, cached = _prepare_tokenizer(options, contents, texts, root)
    tokenizer = load_tokenizer(directory)
    template = choose_template(data.chat_template, tokenizer, plan.shapes)
    units = plan_units(plan.inputs)
    parts = [share.part for unit in units for share in unit]
    spec = _describe_build(data, plan, parts, root, tokenizer, template)
    log_examples(find_examples(plan.inputs, spec))
    stream = plan_stream(plan.inputs, data, spec)
    size = sum(file.size for item in plan.inputs for file in item.files)
    logger.info("stream: %.1f MB of files in %d units, read while training; no store", size / 1e6, len(stream.units))
    return Prepared(None, directory, False, cached, time.perf_counter() - started, stream)


def _prepare_tokenizer(
    options: TokenizerSection, contents: list[dict[str, Any]], texts: Iterable[str], root: Path
) -> tuple[Path, bool]:
    if options.path is not None:
        directory = find_tokenizer(options.path, root)
        logger.info("tokenizer: %s", directory)
        return directory, True
    directory = root / "tokenizers" / fingerprint_trained_tokenizer(options, contents)
    with exclusive(directory):
        cached = directory.is_dir()
        if cached:
            logger.info("tokenizer: cached at %s", directory)
        else:
            train_tokenizer(texts, options, directory)
    return directory, cached


def _read_texts(plan: _Plan, options: TokenizerSection) -> Iterator[str]:
    parts = choose_parts(plan_parts(plan.inputs, plan.files), READ_TIMES * options.sample_bytes, options.seed)
    yield from read_texts(parts, plan.shapes)


def _prepare_store(data: DataSection, plan: _Plan, tokenizer_dir: Path) -> tuple[Path, bool]:
    tokenizer_name = fingerprint_tokenizer(tokenizer_dir)
    name = fingerprint_store(data, plan.contents, tokenizer_name, read_template(data.chat_template))
    directory = Path(data.store_dir) / name
    with exclusive(directory):
        manifest = _find_complete(directory)
        if manifest is not None:
            check_bad_share(manifest.bad_records, manifest.num_records, data.max_bad_share, directory)
            log_store(f"store: cached at {directory}", manifest)
            log_verified(Store(directory, manifest), data.verify)
            log_examples(load_examples(directory))
            return directory, True
        started = time.perf_counter()
        manifest = _build_store(data, plan, directory, load_tokenizer(tokenizer_dir), tokenizer_name)
    seconds = time.perf_counter() - started
    size = sum(source.text_bytes for source in manifest.sources)
    log_store(f"store: built in {seconds:.1f} s ({size / 1e6 / seconds:.1f} MB/s) at {directory}", manifest)
    return directory, False


def _find_complete(directory: Path) -> Manifest | None:
    if not (directory / MANIFEST).exists():
        return None
    try:
        return Store.open(directory).manifest
    except UserError as error:
        logger.warning("store: %s; building it again", error)
        (directory / MANIFEST).unlink()
        return None


def _build_store(
    data: DataSection,
    plan: _Plan,
    directory: Path,
    tokenizer: LoadedTokenizer,
    tokenizer_name: str,
) -> Manifest:
    template = choose_template(data.chat_template, tokenizer, plan.shapes)
    parts = plan_parts(plan.inputs, plan.files)
    spec = _describe_build(data, plan, parts, directory, tokenizer, template)
    examples = find_examples(plan.inputs, spec)
    log_examples(examples)
    with explain_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    save_examples(directory, examples)
    manifest = assemble_store(drop_duplicates(parts, spec, data), spec, data, tokenizer)
    remove_signatures(spec)
    return manifest


def _describe_build(
    data: DataSection,
    plan: _Plan,
    parts: list[Part],
    directory: Path,
    tokenizer: LoadedTokenizer,
    template: str,
) -> BuildSpec:
    return BuildSpec(
        directory=directory,
        tokenizer_dir=tokenizer.directory,
        tokenizer_fingerprint=fingerprint_tokenizer(tokenizer.directory),
        template=template,
        encoder=_choose_encoder(plan, parts, template, tokenizer, data),
        train_on=data.train_on,
        validation_share=data.validation_share,
        skip_bad_records=data.on_bad_record == "skip",
        shapes=plan.shapes,
        splits=tuple(source.split for source in data.sources),
        min_document_tokens=data.min_document_tokens,
        max_document_tokens=data.max_document_tokens,
        on_dropped_content=data.on_dropped_content,
        special_tokens_in_text=data.special_tokens_in_text,
    )


def _choose_encoder(
    plan: _Plan, parts: list[Part], template: str, tokenizer: LoadedTokenizer, data: DataSection
) -> EncoderName:
    chat = build_template(template, tokenizer, data.on_dropped_content, data.special_tokens_in_text)

    def read(part: Part) -> Iterator[Document | BadRecord | LeftOut]:
        return read_documents(part.spans, plan.shapes[part.source], chat, data.train_on)

    with progress("choosing the encoder"):
        sample = list(sample_documents(parts, read))
        if data.streaming:
            # A store counts these over all records, a stream only in the sample before the first step.
            noticed = notice_sample(sample, chat.control, data.special_tokens_in_text == "text")
            log_noticed(logger, noticed.describe(), f" of the first {len(sample)} records")
        return choose_encoder(tokenizer, sample, data.special_tokens_in_text)


OPTIONS = {
    "--config": "Recipe: a YAML file, or the name of a file in configs/ without .yaml. By default, the embedded corpus "
    "with default settings.",
    "OVERRIDE": "Value for a key of the recipe: section.key=value, --section.key value or --key value. Values are "
    "YAML, as in data.sources='[{path: texts/, weight: 2.0}]'. In key names, - and _ are the same. --key without a "
    "value sets true.",
}


def format_usage() -> str:
    """The text of `--help`."""
    about = (
        "Find or train the tokenizer, find or build the token store, and print the directory of the store. Existing "
        "ones with the same content are used again."
    )
    return "\n".join(
        [
            format_call(program_name("data_prep.prepare"), ("[--config NAME_OR_PATH]", "[OVERRIDE ...]")) + "\n",
            wrap_text(about) + "\n",
            describe_options(OPTIONS) + describe_sections({**DATA_SECTIONS, "data.sources": SourceSection}),
        ]
    )


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a recipe's data and print the store's directory; return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv:
        print(format_usage())
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        prepared = prepare(*load_data_recipe(argv))
    except KeyboardInterrupt:
        print("stopped; finished parts are kept: run again to continue", file=sys.stderr)
        return 130
    print(prepared.store_dir or prepared.tokenizer_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
