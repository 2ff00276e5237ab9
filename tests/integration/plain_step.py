"""One step of plain gradient descent on all documents of a store, written down by its definition.

One process, one document at a time, nothing padded, no Trainer: the gradient of the mean loss over all tokens that
carry loss, wherever and with whom they were batched.
"""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from data_prep.store.store import Store
from training.models.trained import load_trained


def step_once(checkpoint: Path, store: Store, learning_rate: float) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint after a step on the training documents, by name."""
    model = load_trained(checkpoint, device=torch.device("cpu"))
    table = store.split("train")
    loss, count = torch.zeros(()), 0
    for number in range(len(table)):
        ids = torch.from_numpy(table.ids(number).astype("int64"))
        runs = table.loss_runs(number)
        spans = [(0, len(ids))] if runs is None else runs.reshape(-1, 2).tolist()
        predicted = [at for start, end in spans for at in range(max(start, 1), end)]
        logits = model(input_ids=ids[None]).logits[0]
        loss = loss + cross_entropy(logits[[at - 1 for at in predicted]], ids[predicted], reduction="sum")
        count += len(predicted)
    (loss / count).backward()
    stepped = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        stepped[name] = (weight - learning_rate * weight.grad).detach()
    return stepped
