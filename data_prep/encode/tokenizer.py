"""Tokenizers as directories that `AutoTokenizer` loads: found, or trained here.

`transformers` is not needed to read or write them (`tokenizer.json` and `tokenizer_config.json` say all there is),
which keeps torch out of data preparation. A trained tokenizer is a byte-level BPE with GPT-2's word pattern: any text
encodes and decodes back to the same bytes. Training is reproducible: the same text and options give the same bytes.
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
    """What data preparation needs of a tokenizer. `vocab_size` is the largest id + 1. `control_tokens` are all that it
    calls special; those with a role are in `special_tokens`, too. `tool_template` is for conversations with tools."""

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
    """Name of a tokenizer by the content of its files."""
    names = [*TOKENIZER_FILES, *(f"{MORE_TEMPLATES}/{path.name}" for path in _list_more_templates(directory))]
    return name_of([[name, hash_file(path)] for name in names if (path := directory / name).is_file()])


def load_tokenizer(directory: Path) -> LoadedTokenizer:
    """Read a tokenizer directory. Raises UserError when a file is damaged or there is no end-of-document token.

    `bos_id` is set only where the tokenizer itself puts one in front of every text (Llama does, Qwen does not).
    """
    try:
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more special
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer.path: {directory / 'tokenizer.json'} is no tokenizer ({reason})") from None
    backend.no_truncation()
    backend.no_padding()
    config = {**_load_json(directory / "special_tokens_map.json"), **_load_json(directory / "tokenizer_config.json")}
    special = {key: _content(config[key]) for key in SPECIAL_KEYS if config.get(key)}
    eos_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if eos_id is None:
        raise UserError(f"tokenizer.path: {directory} names no eos_token of its vocabulary: add it to its config")
    empty = backend.encode("").ids
    # Only that is asked of it: what it adds is never wanted, and it may cut white space off the offsets of tokens.
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
        raise UserError(f"tokenizer.path: {path} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"tokenizer.path: {path} is no JSON object")
    return value


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _find_chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name; one alone is `default`. transformers keeps the others in `additional_chat_templates`."""
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
    """Directory of the tokenizer that `tokenizer.path` names, local or on the hub. Raises UserError.

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
    from huggingface_hub import snapshot_download  # only here: 0.3 s

    try:
        return Path(snapshot_download(name, allow_patterns=[*TOKENIZER_FILES, *GPT2_FILES, f"{MORE_TEMPLATES}/*"]))
    except Exception as error:  # the hub client raises a dozen kinds; all mean the same to the user
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer.path: {name} is no directory, and the hub does not give it ({reason})") from None


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
    """The characters by which byte-level vocabularies write bytes 0 to 255 (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _set_byte_level(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()


class TextSample:
    """Documents of at most `max_bytes` (one at least) with the smallest seeded hash: the same whatever their order.

    Memory is bounded by `max_bytes`. Repeated documents count once.
    """

    def __init__(self, max_bytes: int, seed: int):
        self._max_bytes, self._seed = max_bytes, seed
        self._heap: list[tuple[int, str, int]] = []
        self._seen: set[int] = set()
        self._limit = 2**64  # the smallest rank that did not fit: nothing from there on is taken
        self.bytes = 0

    def add(self, text: str) -> int:
        """Its size in bytes."""
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
        """The texts of the sample."""
        return [text for _, text, _ in sorted(self._heap, reverse=True)]


def train_tokenizer(texts: Iterable[str], options: TokenizerSection, directory: Path) -> None:
    """Train on a sample of `texts` and save to `directory`, which appears whole or not at all. Raises UserError."""
    started = time.perf_counter()
    sample = TextSample(options.sample_bytes, options.seed)
    with progress("reading text for the tokenizer", unit="B") as advance:
        for text in texts:
            advance(sample.add(text))
    if not sample.bytes:
        raise UserError("tokenizer: data.sources hold no text to train on")
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
        "tokenizer: trained in %.1f s on %.1f MB of text, %d words, at %s",
        seconds,
        sample.bytes / 1e6,
        backend.get_vocab_size(),
        directory,
    )


def _save(backend: Tokenizer, config: dict[str, Any], directory: Path) -> None:
    """Write beside and rename, so that a directory under its final name is complete."""
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
        for path in temporary.iterdir():  # another process was first, with the same bytes
            path.unlink()
        temporary.rmdir()
