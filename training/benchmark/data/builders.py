"""The two ways to tokenize a file that are compared, as calls for a fresh process; libraries are imported untimed.

`map_with_datasets` is what a careful user of `datasets` writes: the fast tokenizer on batches, `num_proc` processes,
no attention mask, an end-of-document token after each text, saved to disk. Its caches start empty.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Build:
    """`text_bytes` is the UTF-8 size of the texts where the side counts it; `tokens` must agree between sides.

    `cpu_seconds` of all processes say what the work costs where others use the machine at the same time.
    """

    seconds: float
    cpu_seconds: float
    tokens: int
    documents: int
    store_dir: Path
    text_bytes: int = 0
    encoder: str = ""


def build_store(text: Path, tokenizer: Path, root: Path, num_proc: int) -> Build:
    """`data_prep.prepare` into a fresh `store_dir`."""
    from data_prep.options import DataSection, TokenizerSection
    from data_prep.prepare import prepare
    from data_prep.store.store import Store

    data = DataSection.model_validate(
        {"sources": [{"path": str(text)}], "store_dir": str(root), "num_proc": num_proc, "on_bad_record": "skip"}
    )
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    prepared = prepare(data, TokenizerSection.model_validate({"path": str(tokenizer)}))
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    if prepared.store_dir is None or prepared.store_cached:
        raise RuntimeError(f"no store was built in {root}: nothing was measured")
    manifest = Store.open(prepared.store_dir).manifest
    splits = manifest.splits.values()
    return Build(
        seconds,
        cpu,
        tokens=sum(split.tokens for split in splits),
        documents=sum(split.documents for split in splits),
        store_dir=prepared.store_dir,
        text_bytes=sum(split.text_bytes for split in splits),
        encoder=manifest.encoder,
    )


def map_with_datasets(text: Path, tokenizer: Path, root: Path, num_proc: int) -> Build:
    """`load_dataset` and `map` with the Hugging Face fast tokenizer, saved to disk."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if num_proc > 1 else "true"
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    processes = num_proc if num_proc > 1 else None  # with 1, datasets starts a process for nothing
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    fast = AutoTokenizer.from_pretrained(tokenizer)
    raw = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(root / "cache"))
    encoded = raw.map(
        partial(encode_batch, tokenizer=fast), batched=True, num_proc=processes, remove_columns=raw.column_names
    )
    encoded.save_to_disk(root / "saved", num_proc=processes)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    tokens = sum(len(chunk.flatten()) for chunk in encoded.data.column("input_ids").chunks)
    return Build(seconds, cpu, tokens, len(encoded), root / "saved")


def encode_batch(batch: Mapping[str, list[str]], tokenizer: Any) -> dict[str, list[list[int]]]:
    """What `map` calls with a batch of texts."""
    ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return {"input_ids": [document + [tokenizer.eos_token_id] for document in ids]}


def read_whole(path: Path) -> None:
    """Bring a file into the page cache."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def evict(path: Path) -> None:
    """Drop a file from the page cache, as far as the system lets us."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
