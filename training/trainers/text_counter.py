"""Bytes of text that were trained on, and losses by them: bits per byte (`training/data/token_bytes.py`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from training.data.batch import BatchInfo
from training.metrics import names
from training.ranks import sum_over_ranks


def find_bits_per_byte(nats: float, text_bytes: float) -> float | None:
    """A sum of losses over the bytes that their tokens spell; None without any."""
    return nats / math.log(2) / text_bytes if text_bytes else None


@dataclass
class TextCounter:
    """Of this rank: tokens with a loss and their bytes since the last logged loss, bytes since the last progress."""

    tokens: int = 0
    text_bytes: int = 0
    new_bytes: int = 0

    def add(self, info: BatchInfo) -> None:
        """Count a micro-batch."""
        self.tokens += info.loss_tokens
        self.text_bytes += info.loss_bytes
        self.new_bytes += info.loss_bytes

    def take_bytes(self) -> int:
        """Bytes since the last call."""
        taken, self.new_bytes = self.new_bytes, 0
        return taken

    def take_record(self, loss: float, device: torch.device) -> dict[str, float]:
        """Collective. loss: the mean over tokens since the last one logged; empty where no bytes are counted."""
        tokens, text_bytes = self.sum_unlogged(device)
        self.tokens = self.text_bytes = 0
        found = find_bits_per_byte(loss * tokens, text_bytes)
        return {} if found is None else {names.TRAIN_BITS_PER_BYTE: found}

    def sum_unlogged(self, device: torch.device) -> list[int]:
        """Collective: tokens and bytes over all ranks."""
        return [round(value) for value in sum_over_ranks([float(self.tokens), float(self.text_bytes)], device)]

    def restore(self, unlogged: list[int]) -> None:
        """What a checkpoint kept, on one rank."""
        self.tokens, self.text_bytes = unlogged
