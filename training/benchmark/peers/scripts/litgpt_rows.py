"""Exported rows as a data module of LitGPT: `litgpt pretrain --data litgpt_rows.LitgptRows --data.path FOLDER`.

LitGPT takes rows of one token more than the model sees; the last token is the first of the following row.
"""

from pathlib import Path

import numpy as np
import torch
from litgpt.data import DataModule  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader


class LitgptRows(DataModule):
    """Rows of `path`/train in their order; `connect` says how long they are."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.batch_size, self.seq_len = Path(path), 1, 1

    def connect(self, tokenizer=None, batch_size: int = 1, max_seq_length: int | None = None, **kwargs) -> None:
        """Take the settings of the run."""
        self.batch_size, self.seq_len = batch_size, max_seq_length or 1

    def train_dataloader(self) -> DataLoader:
        """Batches of (rows, tokens + 1)."""
        ids = np.load(self.path / "train" / "ids.npy", mmap_mode="r")
        count = len(ids) // self.seq_len
        rows = [
            torch.from_numpy(np.take(ids, range(at, at + self.seq_len + 1), mode="wrap").astype(np.int64))
            for at in range(0, count * self.seq_len, self.seq_len)
        ]
        return DataLoader(rows, batch_size=self.batch_size)  # pyright: ignore[reportArgumentType]

    def val_dataloader(self) -> DataLoader:
        """The same; LitGPT insists on a look at validation before the first step."""
        return self.train_dataloader()
