"""Finds, loads and trains tokenizers, stored as directories that `AutoTokenizer` can load.

Reads and writes `tokenizer.json` and `tokenizer_config.json` itself, without `transformers`, so that data preparation
does not import torch. A trained tokenizer is a byte-level BPE with GPT-2's word pattern: any text encodes and decodes
back to the same bytes. Training is reproducible: the same text and options give identical files.
"""

import heapq
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.errors import UserError
from data_prep.options import TokenizerSection
from data_prep.progress import progress
from data_prep.read.fingerprint import hash_file, name_of
from data_prep.render.chatml import CHATML

logger = logging.getLogger("redline.data")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
MORE_TEMPLATES = "additional_chat_templates"
GPT2_FILES = ("vocab.json", "merges.txt")
SPECIAL_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


@dataclass(frozen=True)
class LoadedTokenizer:
    """The properties of a tokenizer that data preparation needs.

    vocab_size: largest id + 1.
    bos_id: the token that the tokenizer adds before every text; None if it adds none.
    special_tokens: special tokens with a role (`eos_token`, …), by role.
    control_tokens: ids of all special tokens, by text.
    tool_template: the chat template for conversations with tools.
    """

    directory: Path
    backend: Tokenizer
    vocab_size: int
    eos_id: int
    bos_id: int | None
    chat_template: str | None
    special_tokens: dict[str, str]
    control_tokens: dict[str, int]
    tool_template: str | None = None


def fingerprint_tokenizer(directory: Path) -> str:
    """Hash the content of a tokenizer's files."""
    names = [*TOKENIZER_FILES, *(f"{MORE_TEMPLATES}/{path.name}" for path in _list_more_templates(directory))]
    return name_of([[name, hash_file(path)] for name in names if (path := directory / name).is_file()])


def load_tokenizer(directory: Path) -> LoadedTokenizer:
    """Read a tokenizer directory. Raises UserError when a file is damaged or there is no end-of-document token.

    `bos_id` is set only if the tokenizer itself adds it before every text (Llama does, Qwen does not).
    """
    try:
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower type
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer.path: {directory / 'tokenizer.json'} is not a valid tokenizer ({reason})") from None
    backend.no_truncation()
    backend.no_padding()
    config = {**_load_json(directory / "special_tokens_map.json"), **_load_json(directory / "tokenizer_config.json")}
    special = {key: _content(config[key]) for key in SPECIAL_KEYS if config.get(key)}
    eos_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if eos_id is None:
        raise UserError(
            f"tokenizer.path: {directory} has no eos_token in its vocabulary: set it in tokenizer_config.json"
        )
    empty = backend.encode("").ids
    # Only the test for a leading token needs it. It would add tokens, and may trim white space from offsets.
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    bos_id = backend.token_to_id(special["bos_token"]) if "bos_token" in special else None
    templates = _find_chat_templates(directory, config)
    return LoadedTokenizer(
        directory=directory,
        backend=backend,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        eos_id=eos_id,
        bos_id=bos_id if bos_id is not None and empty[:1] == [bos_id] else None,
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
        special_tokens=special,
        control_tokens={
            token.content: number for number, token in backend.get_added_tokens_decoder().items() if token.special
        },
    )


def _load_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"tokenizer.path: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"tokenizer.path: {path} is not a JSON object")
    return value


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _find_chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Find the chat templates by name; a single one is `default`. Others are in `additional_chat_templates`."""
    found = _load_json(directory / "chat_template.json").get("chat_template", config.get("chat_template")) or {}
    if isinstance(found, str):
        found = {"default": found}
    if isinstance(found, list):
        found = {item["name"]: item["template"] for item in found}
    files = {path.stem: path for path in _list_more_templates(directory)}
    if (path := directory / "chat_template.jinja").is_file():
        files["default"] = path
    return {**found, **{name: path.read_text(encoding="utf-8") for name, path in files.items()}}


def _list_more_templates(directory: Path) -> list[Path]:
    return sorted((directory / MORE_TEMPLATES).glob("*.jinja"))


def find_tokenizer(path: str, store_dir: Path) -> Path:
    """Return the directory of the tokenizer that `tokenizer.path` names, local or on the hub. Raises UserError.

    A GPT-2 directory without `tokenizer.json` (`vocab.json`, `merges.txt`) is converted into `store_dir/tokenizers`.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        directory = _download(path)
    if (directory / "tokenizer.json").is_file():
        return directory
    if all((directory / name).is_file() for name in GPT2_FILES):
        return _convert_gpt2(directory, store_dir)
    raise UserError(f"tokenizer.path: no tokenizer.json in {directory}: write it with AutoTokenizer.save_pretrained")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # imported here: takes 0.3 s

    try:
        return Path(snapshot_download(name, allow_patterns=[*TOKENIZER_FILES, *GPT2_FILES, f"{MORE_TEMPLATES}/*"]))
    except Exception as error:  # the hub client raises a dozen types; all mean the same to the user
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tokenizer.path: {name} is not a directory, and cannot be downloaded from the hub ({reason})"
        ) from None


def _convert_gpt2(directory: Path, store_dir: Path) -> Path:
    target = store_dir / "tokenizers" / name_of([hash_file(directory / name) for name in GPT2_FILES])
    if not (target / "tokenizer_config.json").is_file():
        backend = Tokenizer(models.BPE.from_file(*(str(directory / name) for name in GPT2_FILES)))
        _set_byte_level(backend)
        eos = "<|endoftext|>"
        backend.add_special_tokens([AddedToken(eos, special=True)])
        _save(backend, {"eos_token": eos, "bos_token": eos, "pad_token": eos, "unk_token": eos}, target)
        logger.info("tokenizer: converted %s to %s", directory, target)
    return target


def byte_symbols() -> list[str]:
    """Characters that represent bytes 0 to 255 in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _set_byte_level(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()


class TextSample:
    """The documents with the smallest seeded hashes, up to `max_bytes` in total, but at least one.

    The sample does not depend on the order of the documents. Repeated documents count once. Memory is bounded by
    `max_bytes`.
    """

    def __init__(self, max_bytes: int, seed: int):
        self._max_bytes, self._seed = max_bytes, seed
        self._heap: list[tuple[int, str, int]] = []
        self._seen: set[int] = set()
        self._limit = 2**64  # the smallest rank that did not fit; ranks from here on are not taken
        self.bytes = 0

    def add(self, text: str) -> int:
        """Add a document; return its size in bytes."""
        data = text.encode()
        rank = xxhash.xxh3_64_intdigest(data, seed=self._seed)
        if rank in self._seen or rank >= self._limit:
            return len(data)
        self._seen.add(rank)
        heapq.heappush(self._heap, (-rank, text, len(data)))
        self.bytes += len(data)
        while self.bytes > self._max_bytes and len(self._heap) > 1:
            negative, _, size = heapq.heappop(self._heap)
            self._limit = -negative
            self._seen.discard(self._limit)
            self.bytes -= size
        return len(data)

    def texts(self) -> list[str]:
        """Return the texts of the sample."""
        return [text for _, text, _ in sorted(self._heap, reverse=True)]


def train_tokenizer(texts: Iterable[str], options: TokenizerSection, directory: Path) -> None:
    """Train on a sample of `texts` and save to `directory`, completely or not at all.

    Raises UserError when there is no text.
    """
    started = time.perf_counter()
    sample = TextSample(options.sample_bytes, options.seed)
    with progress("reading text for the tokenizer", unit="B") as advance:
        for text in texts:
            advance(sample.add(text))
    if not sample.bytes:
        raise UserError("tokenizer: data.sources contain no text to train it on")
    backend = Tokenizer(models.BPE())
    _set_byte_level(backend)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=options.special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with progress(f"training the tokenizer on {sample.bytes / 1e6:.1f} MB of text"):
        backend.train_from_iterator(sample.texts(), trainer)
    eos, pad = options.special_tokens[0], options.special_tokens[min(1, len(options.special_tokens) - 1)]
    _save(backend, {"eos_token": eos, "pad_token": pad, "chat_template": CHATML}, directory)
    seconds = time.perf_counter() - started
    logger.info(
        "tokenizer: trained in %.1f s on %.1f MB of text, vocabulary size %d, at %s",
        seconds,
        sample.bytes / 1e6,
        backend.get_vocab_size(),
        directory,
    )


def _save(backend: Tokenizer, config: dict[str, Any], directory: Path) -> None:
    """Write to a temporary directory and rename it, so that a directory with the final name is complete."""
    temporary = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    backend.save(str(temporary / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (temporary / "tokenizer_config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    try:
        os.replace(temporary, directory)
    except OSError:
        if not directory.is_dir():
            raise
        for path in temporary.iterdir():  # another process was faster, with the same bytes
            path.unlink()
        temporary.rmdir()
