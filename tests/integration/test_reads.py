"""Between two records the host reads nothing that a device computes, so it never waits for a GPU."""

from __future__ import annotations

from pathlib import Path

from tests.integration import watched_reads

STEPS = 6
RUNS = {
    "packed": ["training.bf16=true"],
    "padded": ["data.packing=none", "--model.attn_implementation", "sdpa", "perf.loss_kernel=plain"],
}


def test_no_step_without_a_record_reads_a_number(launch_all, tmp_path: Path):
    """The run on a GPU is in `tests/gpu/test_reads.py`."""
    flags = ["perf.log_every=100", "monitor.train_every=100", f"training.max_steps={STEPS}", "--unfinished"]
    runs = launch_all("python", tmp_path, {name: [*own, *flags] for name, own in RUNS.items()},
                      script=Path(watched_reads.__file__))  # fmt: skip
    for name, run in runs.items():
        left = run.json("reads.json")
        assert left["steps"] == STEPS
        assert left["count"] >= STEPS - 2, "nothing was watched: the check of each step reads one number"
        assert [(name, frames[-8:]) for name, frames in left["found"]] == [], name
