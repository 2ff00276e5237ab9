"""Train the given recipe with sleeps of known length injected in four places; not a test, launched by one.

The sleeps sit in code as a user writes it: the dataset's `__getitems__`, a forward hook of the model, a hook on a
gradient, and the optimizer's own `step` (below whatever DeepSpeed or accelerate wrap around it). They sleep in
every second step only, so that a step's own work can be taken off. With several ranks only rank 1 sleeps, and only in
its backward pass: the others wait for it.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SLEEPS = {"data_wait": 0.2, "forward": 0.3, "backward": 0.3, "optimizer": 0.5}


class Sleeper:
    """Sleeps while the step under way is an even one (steps count from 1)."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.slept = {}

    def __call__(self, phase):
        step = self.trainer.state.global_step + 1
        if step % 2 == 0:
            time.sleep(SLEEPS[phase])
            # DeepSpeed steps each parameter group by itself, so how often is counted, not assumed.
            slept = self.slept.setdefault(step, dict.fromkeys(SLEEPS, 0.0))
            slept[phase] += SLEEPS[phase]

    def before(self, function, phase):
        def slowed(*args, **kwargs):
            self(phase)
            return function(*args, **kwargs)

        return slowed


def inject(trainer):
    """One sleep a batch of rows, one a forward pass, one a backward pass, one an optimizer step."""
    sleeper = Sleeper(trainer)
    if trainer.args.world_size > 1:
        if trainer.args.process_index == 1:
            trainer.model.get_output_embeddings().register_full_backward_hook(lambda *_: sleeper("backward"))
        return sleeper
    dataset = type(trainer.train_dataset)
    dataset.__getitems__ = sleeper.before(dataset.__getitems__, "data_wait")
    trainer.model.register_forward_pre_hook(lambda *_: sleeper("forward"))
    trainer.model.get_output_embeddings().register_full_backward_hook(lambda *_: sleeper("backward"))
    create = trainer.create_optimizer

    def create_slow_optimizer(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer.step = sleeper.before(optimizer.step, "optimizer")
        return optimizer

    trainer.create_optimizer = create_slow_optimizer
    return sleeper


def main():
    from training import session
    from training.train import main as train

    build = session.build_trainer
    sleepers = []

    def build_slow_trainer(*args, **kwargs):
        trainer = build(*args, **kwargs)
        sleepers.append((inject(trainer), trainer.run_dir.path))
        return trainer

    session.build_trainer = build_slow_trainer
    code = train()
    for sleeper, run_dir in sleepers if os.environ.get("RANK", "0") == "0" else []:
        (run_dir / "injected.json").write_text(json.dumps(sleeper.slept))
    return code


if __name__ == "__main__":
    sys.exit(main())
