"""Settings of the data benchmark, and what its rows share: prefixes of the text, one tokenizer, one store a size.

Everything lies in a work directory of the run. Nothing here is timed.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.encode.tokenizer import train_tokenizer
from data_prep.options import TokenizerSection
from training.benchmark.data.text import cut_prefix
from training.benchmark.isolation import ProcessRunner, run_fresh

logger = logging.getLogger("redline.benchmark")

MB = 10**6


@dataclass(frozen=True)
class Settings:
    """Sizes are of the JSONL, in MB (10^6 bytes). The defaults are what the table in docs/results/data.md asks for."""

    text: tuple[Path, ...]
    work_dir: Path
    num_proc: int
    repeats: int = 5
    vocab_size: int = 16384
    tokenizer_sample_bytes: int = 64 * 2**20
    build_mb: float = 1000  # at least 200 MB of text
    datasets_mb: float = 60  # at least 50 MB of text, which takes it a minute and more
    scaling_mb: tuple[float, ...] = (10, 30, 100, 300, 1000)
    memory_mb: tuple[float, ...] = (100, 1000)
    num_lengths: int = 1_000_000
    packed_seq_len: int = 1024
    other_seq_lens: tuple[int, ...] = (512, 8192)
    read_seq_lens: tuple[int, ...] = (2048, 512, 8192)  # the first is judged
    read_seconds: float = 2.0
    skipped_rows: int = 10_000_000
    quick: bool = False
    run: ProcessRunner = run_fresh

    @property
    def needed_mb(self) -> float:
        """Text that the rows need, in MB."""
        return max(self.build_mb, self.datasets_mb, *self.scaling_mb, *self.memory_mb)


# A look at whether everything works, in a minute, on a part of the embedded corpus.
QUICK = {
    "repeats": 1,
    "vocab_size": 1024,
    "tokenizer_sample_bytes": 500_000,
    "build_mb": 1,
    "datasets_mb": 0.2,
    "scaling_mb": (0.3, 1, 2),
    "memory_mb": (0.3, 2),
    "num_lengths": 10_000,
    "other_seq_lens": (),
    "read_seq_lens": (2048,),
    "read_seconds": 0.1,
    "skipped_rows": 20_000,
    "quick": True,
}


@dataclass
class Inputs:
    """Shared products of one run, made when first asked for."""

    settings: Settings
    _stores: dict[float, Path] = field(default_factory=dict)
    _count: int = 0

    def text(self, megabytes: float) -> Path:
        """The first whole lines of the text that fit into so many MB."""
        path = self.settings.work_dir / f"text-{megabytes:g}mb.jsonl"
        if not path.exists():
            cut_prefix(self.settings.text, int(megabytes * MB), path)
        return path

    def sampled_text(self, megabytes: float, *, with_largest: bool = False) -> Path:
        """That much of the whole text: records in random order (seed 0), of which those are taken that still fit; with
        `with_largest` the largest record first.

        How fast text is encoded, and how much of it is held at once, depend on the records: inputs of which the size
        alone is to tell must not differ in them, and the beginning of a source tree has other files than its middle.
        Raises ValueError when no record fits.
        """
        path = self.settings.work_dir / f"sampled-text-{megabytes:g}mb{'-with-largest' * with_largest}.jsonl"
        if path.exists():
            return path
        with open(self.text(self.settings.needed_mb), "rb") as file:
            sizes = np.array([len(line) for line in file])
            begins = np.cumsum(sizes) - sizes
            order = np.random.default_rng(0).permutation(len(sizes))
            if with_largest:
                order = np.concatenate([[sizes.argmax()], order])
            chosen, room = {}, int(megabytes * MB)  # a dict: in order, each once
            for index in order:
                if sizes[index] <= room and index not in chosen:
                    chosen[index] = None
                    room -= sizes[index]
            if not chosen:
                raise ValueError(f"no record of {file.name} fits into {megabytes:g} MB")
            with open(path, "wb") as output:
                for index in chosen:
                    file.seek(int(begins[index]))
                    output.write(file.read(int(sizes[index])))
        return path

    @cached_property
    def tokenizer(self) -> Path:
        """A byte-level BPE of `vocab_size` words, trained on the text once, for every side."""
        settings = self.settings
        directory = settings.work_dir / "tokenizer"
        options = TokenizerSection.model_validate(
            {"vocab_size": settings.vocab_size, "sample_bytes": settings.tokenizer_sample_bytes}
        )
        logger.info("training the tokenizer: %d words", settings.vocab_size)
        train_tokenizer(_read_texts(self.text(settings.needed_mb)), options, directory)
        return directory

    def new_directory(self, name: str) -> Path:
        """A directory of this name that no one has used before."""
        self._count += 1
        path = self.settings.work_dir / f"{name}-{self._count}"
        path.mkdir()
        return path

    def discard(self, path: Path) -> None:
        """Delete what a row no longer needs."""
        shutil.rmtree(path)

    def store(self, megabytes: float) -> Path:
        """A store of that much text, built once for all rows that read one."""
        if megabytes not in self._stores:
            from training.benchmark.data.building import build_store

            root = self.new_directory("shared-store")
            built = self.settings.run(build_store, self.text(megabytes), self.tokenizer, root, self.settings.num_proc)
            self._stores[megabytes] = built.value.store_dir
        return self._stores[megabytes]


def _read_texts(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for line in file:
            yield json.loads(line)["text"]
