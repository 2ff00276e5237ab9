"""Readers of a run import neither torch nor the trainer: they work where nothing but the run directory is."""

import subprocess
import sys
from pathlib import Path


def test_readers_do_not_import_torch_or_the_trainer():
    code = (
        "import sys, training.report, training.monitor, training.compare, training.reporting\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'accelerate', 'datasets', 'matplotlib.pyplot'}\n"
        "ours = {'training.trainers', 'training.config', 'training.data', 'training.run', 'training.metrics.flops'}\n"
        "found = (heavy | ours) & set(sys.modules)\n"
        "assert not found, found\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
