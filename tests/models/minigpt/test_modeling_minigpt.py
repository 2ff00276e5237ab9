"""MiniGPT against Llama on copied weights, against itself along its other paths, and as a citizen of HF."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.trainer_utils import set_seed

from tests.models.tiny import VOCAB_SIZE, tiny_minigpt
from training.models.llama_export import llama_config
from training.models.minigpt import MiniGPTForCausalLM
from training.models.minigpt.activations import ACTIVATIONS

# Two rows of 24 positions: documents of 10 and 14 tokens, and of 5, 3 and 16.
PACKED_POSITIONS = torch.tensor([[*range(10), *range(14)], [*range(5), *range(3), *range(16)]])
DOCUMENTS = ((0, 0, 10), (0, 10, 24), (1, 0, 5), (1, 5, 8), (1, 8, 24))


def llama_twin(model: MiniGPTForCausalLM) -> LlamaForCausalLM:
    config = llama_config(model.config)
    config._attn_implementation = "eager"
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(model.state_dict())
    return llama


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [None, PACKED_POSITIONS], ids=["plain", "packed"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_equals_llama_in_logits_loss_and_gradients(
    attention: str, positions: torch.Tensor | None, tied: bool, token_ids: torch.Tensor
) -> None:
    model = tiny_minigpt(tie_word_embeddings=tied, rope_theta=500.0)
    model.set_attn_implementation(attention)
    llama = llama_twin(model)
    ours, theirs = (
        m.train()(token_ids, labels=token_ids, position_ids=positions, use_cache=False) for m in (model, llama)
    )
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.loss, theirs.loss, atol=1e-5, rtol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    gradients = dict(llama.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_packed_rows_equal_their_documents_alone(training: bool, token_ids: torch.Tensor) -> None:
    model = tiny_minigpt().train(training)
    packed = model(token_ids, position_ids=PACKED_POSITIONS, labels=token_ids).logits
    for row, start, stop in DOCUMENTS:
        alone = model(token_ids[row : row + 1, start:stop]).logits
        torch.testing.assert_close(packed[row : row + 1, start:stop], alone, atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_changes_nothing(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt().eval()
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), token_ids], dim=1)
    mask = (torch.arange(28) >= 4).long().expand(2, 28)
    positions = (torch.arange(28) - 4).clamp(min=0).expand(2, 28)
    out = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    torch.testing.assert_close(out, model(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_generation_with_cache_equals_greedy_search_by_hand(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt(initializer_range=0.2).eval()
    expected = token_ids[:, :6]
    for _ in range(12):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    generated = model.generate(token_ids[:, :6], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert torch.equal(generated, expected)
    assert expected[:, 6:].unique().numel() > 4  # not a constant


def test_cache_is_made_on_request_but_not_with_labels_or_in_training(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt()
    assert model.eval()(token_ids).past_key_values.get_seq_length() == 24
    assert model.eval()(token_ids, labels=token_ids).past_key_values is None
    assert model.train()(token_ids).past_key_values is None


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_checkpointing_leaves_gradients_equal(hidden_act: str, token_ids: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_minigpt(hidden_act=hidden_act, attention_dropout=0.1).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        set_seed(3)
        model(token_ids, labels=token_ids, position_ids=PACKED_POSITIONS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_loss_is_normalised_by_the_number_of_items_given(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt()
    labels = token_ids.clone()
    labels[:, :5] = -100
    mean = model(token_ids, labels=labels).loss
    total = model(token_ids, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    torch.testing.assert_close(total * 100, mean * (labels[:, 1:] != -100).sum())


def test_logits_to_keep(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt()
    full = model(token_ids).logits
    torch.testing.assert_close(model(token_ids, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(token_ids, logits_to_keep=torch.tensor([1, 4])).logits, full[:, [1, 4]])


def test_hidden_states_and_attentions_are_recorded(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt()
    model.set_attn_implementation("eager")
    out = model(token_ids, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and out.hidden_states[-1].shape == (2, 24, 64)
    assert [a.shape for a in out.attentions] == [(2, 4, 24, 24)] * 2


def test_initial_scale() -> None:
    layer = tiny_minigpt(hidden_size=256, num_hidden_layers=8).model.layers[0]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert linear.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert layer.input_layernorm.weight.eq(1).all()


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_round_trip_by_the_auto_class(hidden_act: str, tied: bool, tmp_path: Path, token_ids: torch.Tensor) -> None:
    model = tiny_minigpt(hidden_act=hidden_act, tie_word_embeddings=tied)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # so that nothing passes for having been initialised again
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MiniGPTForCausalLM
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, atol=0, rtol=0)


def test_a_saved_model_loads_without_this_repo(minigpt_dir: Path, tmp_path: Path, token_ids: torch.Tensor) -> None:
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert model.lm_head.weight is model.model.embed_tokens.weight\n"
        "assert not any(name.split('.')[0] == 'training' for name in sys.modules)\n"
        "torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])\n"
    )
    torch.save(token_ids, tmp_path / "ids.pt")
    arguments = [str(minigpt_dir), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = tiny_minigpt().eval()(token_ids).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=1e-5)


def test_vocabulary_can_be_resized(token_ids: torch.Tensor) -> None:
    model = tiny_minigpt()
    model.resize_token_embeddings(VOCAB_SIZE + 64)
    assert model(token_ids).logits.shape[-1] == VOCAB_SIZE + 64
    assert model.lm_head.weight is model.model.embed_tokens.weight
