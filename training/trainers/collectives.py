"""Sums and gathers over the ranks of a run; with one rank the values themselves."""

import torch
import torch.distributed as dist


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over the ranks in float64 (FLOPs of a window do not fit float32). Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather_floats(value: float, device: torch.device) -> list[float]:
    """This value of every rank, by rank. Collective."""
    if not dist.is_initialized():
        return [value]
    values = [0.0] * dist.get_world_size()
    values[dist.get_rank()] = value
    return sum_over_ranks(values, device)


def gather_lists(values: list[float], device: torch.device) -> list[list[float]]:
    """These values, equally many everywhere, of every rank, by rank, in float64. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [values]
    mine = torch.tensor(values, dtype=torch.float64, device=device)
    gathered = mine.new_empty(dist.get_world_size() * len(values))
    dist.all_gather_into_tensor(gathered, mine)
    return gathered.view(-1, len(values)).tolist()
