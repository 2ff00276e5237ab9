"""What happens beside a training step: one purpose a file, one contract (`contract.py`)."""
