"""Trains runs one after another, and each again by the definition of its arguments: `… ARGUMENTS --then ARGUMENTS …`.

The second training is plain PyTorch, without the Trainer: next-token cross-entropy summed over the micro-batches of a
step and divided by their tokens, clipping by the global norm, AdamW with decay on matrices alone, schedules by their
formulas. It starts from the run's first weights, which the seed gives, and sees the run's batches. `plain.json` in the
run directory says how far the weights moved, and how far both trainings are apart at the end.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.integration import several_runs

    return several_runs.main(argv, finish=compare)


def compare(loaded: Any, prepared: Any, trainer: Any, memory_base: Any) -> None:
    """In the place of what comes after a run."""
    import torch

    from training.run.build import build_run_model, build_train_batches

    given = loaded.config.arguments()
    ours = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    model: Any = build_run_model(loaded.config, trainer.processing_class, trainer.args)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    batches = build_train_batches(
        trainer.train_dataset, loaded.config.data, trainer.args, trainer.data_collator, trainer.run_dir
    )
    batches.start(None)
    train_plainly(model, weights, iter(batches), given, trainer.state.global_step)

    def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
        return math.sqrt(sum((one[name] - other[name]).square().sum().item() for name in start))

    torch.save({name: weight.detach() for name, weight in ours.items()}, trainer.run_dir.path / "weights.pt")
    found = {"steps": trainer.state.global_step, "moved": distance(ours, start), "apart": distance(ours, weights)}
    (trainer.run_dir.path / "plain.json").write_text(json.dumps(found))


def train_plainly(model: Any, weights: dict[str, Any], batches: Any, given: dict[str, Any], steps: int) -> None:
    """`steps` optimizer steps with the arguments `given`, names and values of TrainingArguments."""
    import torch

    groups = [
        {"params": [w for w in weights.values() if w.ndim >= 2], "weight_decay": given["weight_decay"]},
        {"params": [w for w in weights.values() if w.ndim < 2], "weight_decay": 0.0},
    ]
    if given["optim"] == "sgd":
        optimizer: Any = torch.optim.SGD(groups, lr=0.0)
    else:
        betas = given["adam_beta1"], given["adam_beta2"]
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=given["adam_epsilon"], foreach=False)
    model.train()
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(given["gradient_accumulation_steps"])]
        tokens = sum((batch["labels"][:, 1:] != -100).sum().item() for batch in micro_batches)
        for batch in micro_batches:
            (loss_sum(model, batch, given["label_smoothing_factor"]) / tokens).backward()
        if given["max_grad_norm"]:
            torch.nn.utils.clip_grad_norm_(weights.values(), given["max_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = given["learning_rate"] * schedule(given, step, steps)
        optimizer.step()
        optimizer.zero_grad()


def loss_sum(model: Any, batch: dict[str, Any], smoothing: float) -> Any:
    """(1 - s) times the cross-entropy of each next token, and s times its mean over all words of the vocabulary."""
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "position_ids", "attention_mask")}
    log_probs = model(**inputs, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    labels = batch["labels"][:, 1:]
    chosen = labels != -100
    picked = log_probs[chosen]
    right = picked.gather(-1, labels[chosen][:, None])[:, 0]
    return -((1 - smoothing) * right + smoothing * picked.mean(-1)).sum()


def schedule(given: dict[str, Any], step: int, steps: int) -> float:
    """Share of the rate in step 0, 1, … of `steps`."""
    kind = str(given["lr_scheduler_type"])
    warmup = given["warmup_steps"]
    warmup = math.ceil(warmup * steps) if warmup < 1 else int(warmup)
    if kind != "constant" and step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(kind, 1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
