"""Train, be killed at a random moment of saving each step, resume, many times; not a test, launched by one.

`killed_saves.py FOLDER RANKS KILLS ARGUMENTS`: a straight run in FOLDER/straight, then sessions of FOLDER/killed, each
killed (SIGKILL, one rank of them at random) in its second save or right after it. What each session would start from
is compared with the straight run's checkpoint of that step. FOLDER/killed.json: of each kill the step that is resumed
from, and whether it hit an unfinished save. One process imports all; sessions are forks of it.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.injected_saves import state_of

DEADLINE_SECONDS = 120


def start(ranks, arguments):
    """Process numbers of a session."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if ranks > 1:
                    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
                    os.environ.update(LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                output = os.open(os.environ["REDLINE_FAULT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for stream in (1, 2):
                    os.dup2(output, stream)
                from training import train

                code = train.main(arguments, finish=lambda *_: None)
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def find_newest(run):
    numbers = [int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")]
    return max(numbers, default=0)


def kill_soon(run, pids, rng):
    """Up to a tenth of a second after the second save of this session has begun, kill a rank, then the others."""
    begun, until = find_newest(run), time.monotonic() + DEADLINE_SECONDS
    while find_newest(run) == begun or not any((run / ".staging").glob("checkpoint-*")):
        assert time.monotonic() < until, "no save"
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    for pid in rng.sample(pids, len(pids)):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return any((run / ".staging").glob("checkpoint-*"))


def main(folder, ranks, kills, arguments):
    import training.run.session  # noqa: F401  once for all sessions
    from training.checkpoints.manifest import check_resumable
    from training.checkpoints.quarantine import find_resumable

    keep = ["training.save_total_limit=null"]
    straight, run = folder / "straight", folder / "killed"
    for pid in start(ranks, [*arguments, *keep, "--output_dir", str(straight)]):
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the straight run failed"
    rng, hits = random.Random(0), []
    while len(hits) < kills:
        resume = ["--resume", "auto"] if find_newest(run) else []
        hit = kill_soon(run, start(ranks, [*arguments, *resume, "--output_dir", str(run)]), rng)
        found = find_resumable(run)
        assert found is not None and not (run / "quarantine").exists(), "a checkpoint under its name was not whole"
        check_resumable(found)
        assert state_of(found) == state_of(straight / found.name), f"{found.name} is another than in the straight run"
        hits.append([int(found.name.partition("-")[2]), hit])
    (folder / "killed.json").write_text(json.dumps(hits))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
