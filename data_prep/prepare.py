"""Raw sources to a trained tokenizer and a token store, both cached by content.

    python -m data_prep.prepare --config configs/X.yaml [data.validation_share=0.05 …]

Steps: (1) find the files and hash them; (2) find or train the tokenizer; (3) name the store, and return at once when
it is there; (4) plan parts, tokenize them in a pool, write the manifest. A run whose products are cached costs the
hashing alone. Processes that ask for one product at once are put in a row by a lock file: one builds, the others
find it. Bad records stop the build or, with `data.on_bad_record: skip`, are listed in `STORE/bad_records.jsonl`.
"""

import fcntl
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data_prep.build import BuildSpec, build_part, load_result
from data_prep.chat import CHATML, ChatTemplate
from data_prep.documents import Document, find_source_shape, parse_records, read_documents, text_of
from data_prep.encoding import EncoderName, choose_encoder
from data_prep.errors import UserError
from data_prep.executor import find_num_processes, run_parts
from data_prep.fingerprint import ContentHashes, describe_contents, fingerprint_store, fingerprint_trained_tokenizer
from data_prep.kinds import Shape
from data_prep.options import DataSection, TokenizerSection
from data_prep.recipe import load_data_recipe
from data_prep.records import BadRecord, Span
from data_prep.sources import PART_BYTES, Input, find_inputs, plan_parts
from data_prep.store import MANIFEST, Manifest, Store
from data_prep.summary import check_bad_share, write_manifest
from data_prep.tokenizer import LoadedTokenizer, find_tokenizer, fingerprint_tokenizer, load_tokenizer, train_tokenizer

logger = logging.getLogger("redline.data")

SAMPLE_CHARACTERS = 512 * 1024
SAMPLE_FILES = 64


@dataclass(frozen=True)
class Prepared:
    """Where the products lie, and whether they were there before. `seconds` is the wall time of `prepare`."""

    store_dir: Path
    tokenizer_dir: Path
    store_cached: bool
    tokenizer_cached: bool
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """The inputs, what names their content, and the shape of each, which is looked for only when something is built."""

    inputs: list[Input]
    contents: list[dict[str, Any]]

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(find_source_shape(item) for item in self.inputs)


def prepare(data: DataSection, tokenizer: TokenizerSection) -> Prepared:
    """Make sure that the tokenizer and the token store of a recipe exist. Raises UserError.

    Safe to call from many processes at once; torch is not imported.
    """
    started = time.perf_counter()
    root = Path(data.store_dir)
    inputs = find_inputs(data.sources)
    contents = describe_contents(inputs, ContentHashes(root))
    plan = _Plan(inputs, contents)
    tokenizer_dir, tokenizer_cached = _prepare_tokenizer(tokenizer, plan, root)
    store_dir, store_cached = _prepare_store(data, plan, tokenizer_dir)
    return Prepared(store_dir, tokenizer_dir, store_cached, tokenizer_cached, time.perf_counter() - started)


def _prepare_tokenizer(options: TokenizerSection, plan: _Plan, root: Path) -> tuple[Path, bool]:
    if options.path is not None:
        directory = find_tokenizer(options.path, root)
        logger.info("tokenizer: %s", directory)
        return directory, True
    directory = root / "tokenizers" / fingerprint_trained_tokenizer(options, plan.contents)
    with _exclusive(directory):
        cached = directory.is_dir()
        if cached:
            logger.info("tokenizer: cached at %s", directory)
        else:
            train_tokenizer(_texts(plan), options, directory)
    return directory, cached


def _texts(plan: _Plan) -> Iterator[str]:
    """All good texts of all sources; what is bad is dealt with when the store is built."""
    for item, shape in zip(plan.inputs, plan.shapes, strict=True):
        spans = [Span(file.path, file.format) for file in item.files]
        count = 0
        for found in parse_records(spans, shape):
            if isinstance(found, BadRecord):
                continue
            yield text_of(found[1])
            count += 1
            if count == item.section.max_documents:
                break


@contextmanager
def _exclusive(product: Path) -> Iterator[None]:
    """Holds the lock of a product; a process that dies lets go of it."""
    product.parent.mkdir(parents=True, exist_ok=True)
    with open(product.with_name(f".{product.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for the process that builds it", product)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare_store(data: DataSection, plan: _Plan, tokenizer_dir: Path) -> tuple[Path, bool]:
    template = _read_template(data.chat_template)
    tokenizer_name = fingerprint_tokenizer(tokenizer_dir)
    name = fingerprint_store(data, plan.contents, tokenizer_name, template)
    directory = Path(data.store_dir) / name
    with _exclusive(directory):
        manifest = _find_complete(directory)
        if manifest is not None:
            check_bad_share(manifest.bad_records, manifest.num_documents, data.max_bad_share, directory)
            _log_store(f"store: cached at {directory}", manifest)
            return directory, True
        started = time.perf_counter()
        directory.mkdir(parents=True, exist_ok=True)
        manifest = _build_store(data, plan, directory, load_tokenizer(tokenizer_dir), tokenizer_name, template)
    seconds = time.perf_counter() - started
    size = sum(source.text_bytes for source in manifest.sources)
    _log_store(f"store: built in {seconds:.1f} s ({size / 1e6 / seconds:.1f} MB/s) at {directory}", manifest)
    return directory, False


def _find_complete(directory: Path) -> Manifest | None:
    if not (directory / MANIFEST).exists():
        return None
    try:
        return Store.open(directory).manifest
    except UserError as error:
        logger.warning("store: %s; building it anew", error)
        shutil.rmtree(directory)
        return None


def _log_store(what: str, manifest: Manifest) -> None:
    tokens = sum(counts.tokens for counts in manifest.splits.values())
    bad = f", {manifest.bad_records} bad records left out" if manifest.bad_records else ""
    logger.info("%s: %d documents, %.2f M tokens%s", what, manifest.num_documents, tokens / 1e6, bad)
    for source in manifest.sources:
        ratio = f", {source.bytes_per_token:.2f} bytes/token" if source.bytes_per_token else ""
        counts = f"{source.documents} documents, {source.tokens} tokens{ratio}"
        logger.info("  %s (%s): %s", source.path, source.kind, counts)


def _read_template(option: str | None) -> str | None:
    """Source of the template that the recipe names; None leaves it to the tokenizer. Raises UserError."""
    if option is None:
        return None
    if option == "chatml":
        return CHATML
    try:
        return Path(option).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template: {option} is neither chatml nor a readable Jinja file ({error})") from None


def _build_store(
    data: DataSection,
    plan: _Plan,
    directory: Path,
    tokenizer: LoadedTokenizer,
    tokenizer_name: str,
    template: str | None,
) -> Manifest:
    template = _choose_template(template, tokenizer, plan.shapes)
    spec = BuildSpec(
        directory=directory,
        tokenizer_dir=tokenizer.directory,
        tokenizer_fingerprint=tokenizer_name,
        template=template,
        encoder=_choose_encoder(plan, template, tokenizer, data),
        train_on=data.train_on,
        validation_share=data.validation_share,
        skip_bad_records=data.on_bad_record == "skip",
        shapes=plan.shapes,
        splits=tuple(source.split for source in data.sources),
    )
    parts = plan_parts(plan.inputs)
    results = {part.index: found for part in parts if (found := load_result(directory, part.index))}
    if results:
        logger.info("store: going on with a stopped build, %d of %d parts are there", len(results), len(parts))
    missing = [part for part in parts if part.index not in results]
    # A pool costs about a second to start: not worth it for an input that one process tokenizes in as much.
    small = sum(file.size for item in plan.inputs for file in item.files) < PART_BYTES
    for result in run_parts(partial(build_part, spec=spec), missing, 1 if small else find_num_processes(data.num_proc)):
        results[result.part] = result
    ordered = [results[part.index] for part in parts]
    return write_manifest(directory, ordered, data, spec, tokenizer)


def _choose_template(template: str | None, tokenizer: LoadedTokenizer, shapes: tuple[Shape, ...]) -> str:
    found = template or tokenizer.chat_template or CHATML
    if any(shape.kind != "text" for shape in shapes):
        origin = "data.chat_template" if template else "the tokenizer's own" if tokenizer.chat_template else "ChatML"
        logger.info("chat template: %s", origin)
    return found


def _choose_encoder(plan: _Plan, template: str, tokenizer: LoadedTokenizer, data: DataSection) -> EncoderName:
    """By a sample of about 512 kB, from the beginnings of files spread evenly over every source."""
    chat = ChatTemplate(template, tokenizer.special_tokens)
    sample: list[str] = []
    for item, shape in zip(plan.inputs, plan.shapes, strict=True):
        files = item.files[:: -(-len(item.files) // SAMPLE_FILES)]
        for file in files:
            left = SAMPLE_CHARACTERS // len(plan.inputs) // len(files)
            for document in read_documents([Span(file.path, file.format)], shape, chat, data.train_on):
                if isinstance(document, Document):
                    sample.append(document.text[:left])
                    left -= len(sample[-1])
                if left <= 0:
                    break
    return choose_encoder(tokenizer, sample)


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        prepared = prepare(*load_data_recipe(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(prepared.store_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
