"""Train like several_runs.py, and note where the host would wait for a device between two records; launched by a test.

Every operator is looked at (`tests/reads.py`), and on a GPU PyTorch itself raises an error where the host waits. Each
run leaves `RUN/reads.json`: the operators that wait, each with the frames that it was called from, but for those of
`BY_DESIGN`.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

BY_DESIGN = {
    "finite.py:check": "a step that is not finite must not be taken: once a step, before the optimizer",
    "ranks.py:read": "a number of gloo's, which lies on the CPU",
    "linear_cross_entropy.py:_is_one": "asks on a CPU only",
    "linear_cross_entropy.py:linear_cross_entropy": "leaves out positions without loss on a CPU only",
    "linear_cross_entropy.py:_rows_to_gradients": "gives the scale to the CPU kernel as a number",
    "masking_utils.py:_ignore_causal_mask_sdpa": "transformers, under SDPA: whether padded rows have any padding",
    "masking_utils.py:find_packed_sequence_indices": "transformers, under SDPA: whether rows hold several documents",
}


def watch(trainer):
    """From the beginning of the second step to that of the last: no record is written in between."""
    import torch
    from transformers import TrainerCallback

    from tests.reads import CountReads

    is_on, checked = False, trainer._finite.check

    def switch(on):
        nonlocal is_on
        is_on = on
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    def check(norm):
        before = is_on
        switch(False)
        checked(norm)
        switch(before)

    class Watch(TrainerCallback):
        """Comes before the other callbacks."""

        def on_step_begin(self, args, state, control, **kwargs):
            """Watch the step, unless it is the first or the last."""
            switch(1 <= state.global_step < state.max_steps - 1)

    if torch.cuda.is_available():
        trainer._finite.check = check
    trainer.callback_handler.callbacks.insert(0, Watch())
    train = trainer.train

    def train_watched(*args, **kwargs):
        try:
            with CountReads(lambda: is_on) as reads:
                output = train(*args, **kwargs)
        finally:
            switch(False)
        left = {"found": reads.outside(BY_DESIGN), "count": len(reads.found), "steps": trainer.state.global_step}
        (trainer.run_dir.path / "reads.json").write_text(json.dumps(left))
        return output

    trainer.train = train_watched


def main():
    from tests.integration import several_runs
    from training.run import session

    build = session.build_trainer

    def build_watched_trainer(*args, **kwargs):
        trainer = build(*args, **kwargs)
        watch(trainer)
        return trainer

    session.build_trainer = build_watched_trainer
    return several_runs.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
