"""A MiniGPT exported to Llama loads where this repo does not exist, with equal logits and its tokenizer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import tiny_minigpt
from training.export import main

LOAD = (
    "import sys, torch\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
    "assert type(model) is LlamaForCausalLM\n"
    "assert not any(name.split('.')[0] == 'training' for name in sys.modules)\n"
    "assert AutoTokenizer.from_pretrained(sys.argv[1]).convert_tokens_to_ids('b') == 1\n"
    "assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape == (1, 5)\n"
    "torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])\n"
)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_exported_directory_is_a_stock_llama(tied: bool, tmp_path: Path, token_ids: torch.Tensor) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    model = tiny_minigpt(tie_word_embeddings=tied, rope_theta=2e4, head_dim=24).eval()
    model.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, []))).save_pretrained(source)
    assert main([str(source), str(out), "--format", "llama"]) == 0
    torch.save(token_ids, tmp_path / "ids.pt")
    arguments = [str(out), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", LOAD, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_dtype_is_kept(tmp_path: Path) -> None:
    tiny_minigpt().to(torch.bfloat16).save_pretrained(tmp_path / "source")
    assert main([str(tmp_path / "source"), str(tmp_path / "out"), "--format", "llama"]) == 0
    assert '"dtype": "bfloat16"' in (tmp_path / "out" / "config.json").read_text()


def test_other_activations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_minigpt(hidden_act="mish").save_pretrained(tmp_path / "source")
    assert main([str(tmp_path / "source"), str(tmp_path / "out"), "--format", "llama"]) == 2
    assert "hidden_act 'mish' cannot be said in Llama" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_named(
    qwen_dir: Path, minigpt_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for name, text in (("broken", '{"model_type"'), ("nameless", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    cases = [
        (qwen_dir, tmp_path / "out", "llama", "this is a qwen2, not a minigpt"),
        (minigpt_dir, tmp_path / "out", "merged", "is no adapter"),
        (tmp_path, tmp_path / "out", "llama", "no model here"),
        (minigpt_dir, tmp_path / "full", "llama", "no empty directory"),
        (tmp_path / "broken", tmp_path / "out", "llama", "config.json: cannot be read"),
        (tmp_path / "nameless", tmp_path / "out", "llama", "names no model_type"),
    ]
    for source, out, target_format, message in cases:
        assert main([str(source), str(out), "--format", target_format]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
