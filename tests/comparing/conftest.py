"""Runs for comparisons: the synthetic records of the report's tests, with a factor on their speed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.conftest import CONFIG, ENV, make_records, to_lines
from training.metrics import names

RATES = (names.PERF_TOKENS_PER_SECOND, names.PERF_MFU_PCT, names.PERF_MFU_PALM_PCT, names.PERF_HFU_PCT)
WriteTimed = Callable[..., Path]


@pytest.fixture
def write_timed(tmp_path: Path) -> WriteTimed:
    """`write_timed("a", seed=0, slower=1.0, loss=0.0, …)` -> a run whose steps take `slower` times as long."""

    def write(
        name: str, *, seed: int = 0, slower: float = 1.0, loss: float = 0.0, steps: int = 600, config: str = CONFIG
    ) -> Path:
        records = make_records(steps, 5, seed)
        for record in records:
            for key in record:
                if key == "time_s" or key.endswith("_ms"):
                    record[key] *= slower
                elif key in RATES:
                    record[key] /= slower
                elif key in (names.TRAIN_LOSS, names.EVAL_LOSS):
                    record[key] += loss
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(to_lines(records))
        (run / "config.yaml").write_text(config)
        (run / "env.json").write_text(json.dumps(ENV))
        return run

    return write
