"""Train like several_runs.py, with faults in the saves; not a test, launched by one, with `layer.c` preloaded.

The name of a run says which: `crash`: at its second save, a copy of the process crashes at each operation of it, one
after another; `full-RANK-…`: at save K from the second on, the disk is full for this rank from the Kth write on.
`RUN.json`, beside the run, has what was found.
"""

import json
import os
import random
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.layer import CRASH, CRASHED, FULL, armed

NOT_STATE = {"progress.json", "trainer_state.json", "training_args.bin"}
STRIDE = int(os.environ.get("REDLINE_FAULT_STRIDE", "1"))  # from one fault to the next


def state_of(checkpoint):
    from training.checkpoints.manifest import read_manifest

    files = read_manifest(checkpoint).files.items()
    return {name: entry["xxh3_128"] for name, entry in files if name not in NOT_STATE}


def inject(trainer):
    path, kind, save = trainer.run_dir.path, trainer.run_dir.name.split("-"), trainer._save_checkpoint
    saves = []

    def save_with_faults(*args, **kwargs):
        saves.append(trainer.state.global_step)
        if kind[0] == "crash" and len(saves) == 2:
            found = crash_at_each(trainer, lambda: save(*args, **kwargs))
            path.with_suffix(".json").write_text(json.dumps(found))
        if kind[0] == "full" and len(saves) > 1 and trainer.args.process_index == int(kind[1]):
            with armed(path / ".staging", 1 + (len(saves) - 2) * STRIDE, FULL) as layer:
                save(*args, **kwargs)
                trainer.store.drain() if kind[-1] == "single" else None
                at = (layer.fault_last() or b"").decode()
            with path.with_suffix(".jsonl").open("a") as file:
                file.write(json.dumps([trainer.state.global_step, at]) + "\n")
            return
        save(*args, **kwargs)

    trainer._save_checkpoint = save_with_faults


def crash_at_each(trainer, save):
    """A list of [number, operation, exit code, checkpoint that a resume finds, its state, what is left]; the last
    one did not crash."""
    from training.checkpoints.quarantine import find_resumable
    from training.checkpoints.store import sweep

    run = trainer.run_dir.path
    before = run.with_name(run.name + "-before")
    shutil.copytree(run, before)
    found = []
    while not found or found[-1][2] == CRASHED:
        number = 1 + len(found) * STRIDE
        reading, writing = os.pipe()
        state = random.getstate()  # Python seeds the child again
        child = os.fork()
        if child == 0:
            try:
                random.setstate(state)
                os.dup2(writing, 2)  # the layer says there what it crashed at
                with armed(run, number, CRASH):
                    save()
                    trainer.store.drain()
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, errors="replace") as said:
            lines = [line for line in said.read().splitlines() if line.startswith("CRASH ")]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sweep(trainer.run_dir)
        left = [path.name for path in run.glob(".staging/*")]
        start = find_resumable(run)
        operation = lines[0][len("CRASH ") :].replace(str(run), "RUN") if lines else ""
        found.append([number, operation, code, start and start.name, start and state_of(start), left])
        if os.environ.get("REDLINE_FAULT_KEEP"):
            shutil.copytree(run, run.with_name(f"{run.name}-at-{number}"))
        shutil.rmtree(run)
        shutil.copytree(before, run)
    shutil.rmtree(before)
    return found


def main():
    from tests.integration import several_runs
    from training import train  # first: it sets what torch is imported with
    from training.run import session

    del train
    build = session.build_trainer

    def build_faulty_trainer(*args, **kwargs):
        trainer = build(*args, **kwargs)
        inject(trainer)
        return trainer

    session.build_trainer = build_faulty_trainer
    return several_runs.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
