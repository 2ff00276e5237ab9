"""Writing: a batch of prompts gives what each gives alone, and ends at the tokens that stop the model."""

import torch

from tests.models.tiny import tiny_minigpt
from training.models.writing import Sampling, count_free_positions, find_stops, write

PROMPTS = [[5, 6, 7, 8, 9, 10], [20], [30, 31, 32]]


def test_a_padded_batch_is_its_prompts_one_by_one() -> None:
    model = tiny_minigpt(initializer_range=0.3).eval()
    model.generation_config.eos_token_id = None
    greedy = Sampling(max_new_tokens=6, temperature=0)
    alone = [write(model, [prompt], greedy)[0] for prompt in PROMPTS]
    assert write(model, PROMPTS, greedy) == alone
    expected = []
    ids = torch.tensor([PROMPTS[2]])
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(int(ids[0, -1]))
    assert alone[2].ids == expected and not alone[2].stopped


def test_each_ends_at_its_own_stop() -> None:
    model = tiny_minigpt(initializer_range=0.3).eval()
    model.generation_config.eos_token_id = None
    greedy = Sampling(max_new_tokens=6, temperature=0)
    free = write(model, PROMPTS, greedy)
    stop = free[0].ids[2]
    model.generation_config.eos_token_id = [stop, 127]
    assert find_stops(model) == [stop, 127]
    for written, before in zip(write(model, PROMPTS, greedy), free, strict=True):
        end = before.ids.index(stop) + 1 if stop in before.ids else None
        assert written.ids == before.ids[:end] and written.stopped == (end is not None)


def test_a_seed_repeats_and_positions_are_counted() -> None:
    model = tiny_minigpt(max_position_embeddings=40).eval()
    one, two, other = (write(model, [[5]], Sampling(8, seed=seed))[0].ids for seed in (1, 1, 2))
    assert one == two != other
    assert count_free_positions(model, 38) == 2 and count_free_positions(model, 50) == 0
