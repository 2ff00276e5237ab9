"""What all sides read, made once before anything is timed: text, tokenizer, and Redline's rows and weights, exported.

Every document of the text is longer than a row and cut to one, so that each row is one document: the stock Trainer
knows no other attention, and both must see the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.errors import UserError
from training.benchmark.advise.running import as_arguments
from training.benchmark.data.text import read_corpus
from training.benchmark.isolation import ProcessRunner
from training.benchmark.peers.situations import (
    EVALUATED_ROWS,
    PRETRAIN,
    WARMUP_STEPS,
    PeerSettings,
    Situation,
)
from training.config import load_config

if TYPE_CHECKING:
    from training.data.dataset import RowDataset

logger = logging.getLogger("redline.benchmark")

CHARACTERS_PER_TOKEN = 8  # a text of so many for each token of a row is almost always longer than a row


@dataclass(frozen=True)
class PeerRun:
    """One run of a side. arguments: of train.py. inputs: the exported folder. output: the place of this run."""

    settings: PeerSettings
    situation: Situation
    arguments: tuple[str, ...]
    inputs: Path
    output: Path

    @cached_property
    def model(self) -> dict[str, Any]:
        """config.json of the model, with the number of its `parameters`."""
        config = json.loads((self.inputs / "model" / "config.json").read_bytes())
        return {**config, **json.loads((self.inputs / "facts.json").read_bytes())}

    def count_timed_tokens(self) -> int:
        """Useful tokens of all ranks in the steps after the warm-up, where a step takes the rows as they come."""
        steps, _, batch = self.situation.shape(self.settings)
        offsets = np.load(self.inputs / "train" / "offsets.npy")
        per_step = batch * self.situation.ranks
        return int(offsets[steps * per_step] - offsets[WARMUP_STEPS * per_step])


def write_texts(settings: PeerSettings) -> None:
    """The embedded corpus as documents of more than a row: `evaluation.jsonl`, and `train.jsonl` with the others."""
    documents = _cut(settings.seq_len * CHARACTERS_PER_TOKEN)
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    for name, count in (("evaluation", EVALUATED_ROWS), ("train", None)):
        with (settings.work_dir / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in islice(documents, count):
                file.write(json.dumps({"text": text}) + "\n")


def _cut(length: int) -> Iterator[str]:
    text = ""
    for _, document in read_corpus():
        text += document
        while len(text) > length:
            yield text[:length]
            text = text[length:]


def find_sources(settings: PeerSettings, situation: Situation) -> list[dict[str, Any]]:
    """`data.sources` of a situation."""
    if situation.padded:
        return [{"path": str(settings.chat), "split": "train"}]
    return [
        {"path": str(settings.work_dir / f"{name}.jsonl"), "split": split}
        for name, split in (("train", "train"), ("evaluation", "validation"))
    ]


def build_arguments(settings: PeerSettings, situation: Situation, tokenizer: Path | None) -> tuple[str, ...]:
    """Arguments of train.py, without the run directory. tokenizer: None trains one."""
    changes = situation.build_recipe(settings)
    changes["data.sources"] = find_sources(settings, situation)
    changes["data.store_dir"] = str(settings.work_dir / "stores")
    if tokenizer is None:
        changes["tokenizer.vocab_size"] = settings.vocab_size
    else:
        changes["tokenizer.path"] = str(tokenizer)
    return (*settings.recipe, "--resume", "never", *as_arguments(changes))


class PeerInputs:
    """Makes the inputs of each situation when they are first asked for."""

    def __init__(self, settings: PeerSettings, run: ProcessRunner):
        self.settings = settings
        self._run = run
        self._arguments: dict[str, tuple[str, ...]] = {}

    @cached_property
    def tokenizer(self) -> Path | None:
        """That of the recipe, as None, or one that is trained on the text."""
        config = load_config(self.settings.recipe).config
        if config.tokenizer.path or config.model.path:
            return None
        return self._run(train_tokenizer, build_arguments(self.settings, PRETRAIN, None)).value

    def plan(self, situation: Situation, output: Path) -> PeerRun:
        """A run of this situation. Raises UserError where a recipe is wrong or its model cannot be exported."""
        folder = self.settings.work_dir / situation.name / "inputs"
        if situation.name not in self._arguments:
            if not self._arguments:
                write_texts(self.settings)
            arguments = build_arguments(self.settings, situation, self.tokenizer)
            model = load_config(arguments).config.model
            if model.kind is not None:
                raise UserError("--model: MiniGPT is Redline's own: name a recipe with a Hugging Face model_type")
            steps, _, batch = situation.shape(self.settings)
            logger.info("%s: exporting rows and weights", situation.name)
            packing = ("data.packing=none",) if situation.padded else ()
            count = steps * batch * situation.ranks
            self._run(export, (*arguments, *packing), folder, count)
            self._arguments[situation.name] = arguments
        return PeerRun(self.settings, situation, self._arguments[situation.name], folder, output)


def train_tokenizer(arguments: Sequence[str]) -> Path:
    """In a process of its own: the directory of the trained tokenizer."""
    from data_prep.prepare import prepare

    config = load_config(arguments).config
    return prepare(config.data, config.tokenizer).tokenizer_dir.resolve()


def export(arguments: Sequence[str], folder: Path, count: int) -> None:
    """In a process of its own: the first `count` rows that a training takes, its evaluation rows, its initial model."""
    import torch
    from transformers import AutoTokenizer

    from data_prep.prepare import prepare
    from data_prep.store.store import Store
    from training.data.batching import FixedBatches
    from training.data.dataset import build_datasets
    from training.data.loader import build_batching
    from training.launch import read_world
    from training.run.build import build_run_model, build_training_arguments
    from training.run_dir import RunDir

    loaded = load_config(arguments)
    config = loaded.config
    prepared = prepare(config.data, config.tokenizer)
    if prepared.store_dir is None:
        raise UserError("data.streaming: true has no store to export from: set it to false")
    train, evaluation = build_datasets(Store.open(prepared.store_dir), config.data)
    batching = build_batching(train.row_lengths, config.data, 1)
    if not isinstance(batching, FixedBatches):
        raise UserError("data.max_tokens_per_batch: batches of other sides have a fixed number of rows: leave it out")
    order = islice(batching.cut(0, 0, 1), count)
    write_rows(train, chain.from_iterable(batch.rows for batch in order), folder / "train")
    if evaluation is not None:
        write_rows(evaluation, range(len(evaluation)), folder / "evaluation")
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args = build_training_arguments(loaded, RunDir(folder / "run"), device, read_world())
    model = build_run_model(config, tokenizer, args)
    model.save_pretrained(str(folder / "model"))
    tokenizer.save_pretrained(folder / "model")
    (folder / "facts.json").write_text(json.dumps({"parameters": sum(one.numel() for one in model.parameters())}))


def write_rows(rows: RowDataset, numbers: Any, folder: Path) -> None:
    """Rows by their numbers, end to end, as `scripts/rows.py` reads them."""
    chosen = rows.__getitems__(list(numbers))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "ids.npy", np.concatenate([row.input_ids for row in chosen]))
    np.save(folder / "labels.npy", np.concatenate([row.labels for row in chosen]))
    np.save(folder / "offsets.npy", np.cumsum([0, *(len(row.input_ids) for row in chosen)], dtype=np.int64))
