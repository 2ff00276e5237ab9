"""Compares the shards of a store with the hashes in its manifest: all, or those that a second is enough for."""

import logging
import random
import time
from typing import Literal

from data_prep.errors import UserError
from data_prep.progress import progress
from data_prep.read.fingerprint import hash_file
from data_prep.store.store import Shard, Store

logger = logging.getLogger("redline.data")

Verify = Literal["sample", "full", "off"]
SAMPLE_SECONDS = 1.0


def verify_shards(store: Store, how: Verify = "full") -> tuple[int, int]:
    """Check hashes of shards; how many were checked, and their bytes.

    how: sample checks shards in an order of its own each time, until `SAMPLE_SECONDS` are over, so that a damaged one
    is found by one of the next starts. Raises UserError that names the shards with another content.
    """
    if how == "off":
        return 0, 0
    shards = list({shard.name: shard for shard in store.manifest.shards}.values())
    if how == "sample":
        random.Random().shuffle(shards)
    end = time.monotonic() + SAMPLE_SECONDS
    checked: list[Shard] = []
    damaged: list[str] = []
    with progress("verifying shards", sum(shard.file_bytes for shard in shards), "B") as advance:
        for shard in shards:
            if how == "sample" and time.monotonic() > end:
                break
            checked.append(shard)
            if hash_file(store.path / shard.name) != shard.hash:
                damaged.append(shard.name)
            advance(shard.file_bytes)
    if damaged:
        raise UserError(
            f"{store.path}: {len(damaged)} of {len(checked)} shards differ from their hash in the manifest "
            f"({', '.join(damaged)}): delete the store and prepare again"
        )
    return len(checked), sum(shard.file_bytes for shard in checked)


def log_verified(store: Store, how: Verify) -> None:
    """Check hashes as `verify_shards` does, and log one line."""
    number, size = verify_shards(store, how)
    if number:
        total = len({shard.name for shard in store.manifest.shards})
        logger.info(
            "store: %d of %d shards (%.1f MB) match their hashes (data.verify: %s)", number, total, size / 1e6, how
        )
