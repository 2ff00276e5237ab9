"""`python -m training.benchmark NAME …`: finds the benchmark by its name."""

import importlib
import sys

from data_prep.command import run_command

# name -> module with `main(argv)`, what it does
BENCHMARKS = {
    "advise": ("training.benchmark.advise.command", "measures which settings make a configuration faster"),
    "compare": ("training.benchmark.compare", "two configurations trained in turn, with intervals"),
    "data": ("training.benchmark.data.command", "raw text to batches, compared with datasets, TRL and accelerate"),
    "memory": ("training.benchmark.memory.command", "predicted peak memory of a rank, compared with real steps"),
    "peers": (
        "training.benchmark.peers.command",
        "tokens/s of the stock Trainer, TRL, LitGPT and nanoGPT, compared with ours",
    ),
    "overhead": ("training.benchmark.overhead.command", "profiling overhead of a step, measured on and off in turn"),
    "text": ("training.benchmark.data.text", "write a directory of files as the JSONL that `data --input` reads"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark that is named first; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].startswith("--local_rank"):  # the deepspeed launcher puts it first
        argv = [*argv[1:], argv[0]]
    if argv and argv[0] in BENCHMARKS:
        return importlib.import_module(BENCHMARKS[argv[0]][0]).main(argv[1:])
    asked = argv in (["-h"], ["--help"])
    lines = [f"    {name:<9} {what}" for name, (_, what) in BENCHMARKS.items()]
    print("usage: python -m training.benchmark NAME [--help]", "", *lines, sep="\n", file=None if asked else sys.stderr)
    return 0 if asked else 2


# Worker processes are spawned and import this module again, under another name.
if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
