"""Store -> rows -> batches: packing, a deterministic order, the collator and what it counts."""
