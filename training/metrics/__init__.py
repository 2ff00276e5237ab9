"""Pure measuring: clocks, FLOPs, peaks and the names they are logged under. Knows no Trainer and no run."""
