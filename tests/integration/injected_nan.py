"""Train like several_runs.py, with one NaN in what the last rank computes; not a test, launched by one.

The name of a run says where: in the `loss` or in the `gradient` (of a finite loss), always in the second micro-batch of
step `STEP`. Each rank leaves `RUN/after-RANK.json`: whether its weights are finite when the run is over.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

STEP = 3


def inject(trainer):
    """A NaN in the second micro-batch of a step on the last rank."""
    is_last = trainer.args.process_index == trainer.args.world_size - 1
    kind = trainer.run_dir.name.partition("-")[0]

    def is_due():
        return trainer.state.global_step == STEP - 1 and trainer.accelerator.sync_gradients and is_last

    def spoil_loss(model, arguments, output):
        if kind == "loss" and model.training and is_due():
            output.loss = output.loss * float("nan")

    def spoil_gradient(module, entering, leaving):
        return tuple(g * float("nan") for g in entering) if kind == "gradient" and is_due() else None

    trainer.model.register_forward_hook(spoil_loss)
    trainer.model.get_output_embeddings().register_full_backward_hook(spoil_gradient)


def leave_weights(trainer):
    import torch

    held = [getattr(parameter, "ds_tensor", parameter) for parameter in trainer.model.parameters()]
    found = {"finite": all(bool(torch.isfinite(part).all()) for part in held), "step": trainer.state.global_step}
    (trainer.run_dir.path / f"after-{trainer.args.process_index}.json").write_text(json.dumps(found))


def main():
    from tests.integration import several_runs
    from training.run import session

    build, trainers = session.build_trainer, []

    def build_spoiled_trainer(*args, **kwargs):
        trainer = build(*args, **kwargs)
        inject(trainer)
        trainers.append(trainer)
        return trainer

    session.build_trainer = build_spoiled_trainer
    code = several_runs.main(sys.argv[1:])
    for trainer in trainers:
        leave_weights(trainer)
    return code


if __name__ == "__main__":
    sys.exit(main())
