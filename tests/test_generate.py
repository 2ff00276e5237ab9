"""`training.generate`: plain text, a chat, a conversation, files in batches, and what it refuses."""

import builtins
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.tiny import chat_tokenizer, tiny_minigpt
from training.generate import main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    model = tiny_minigpt(initializer_range=0.3)
    model.generation_config.eos_token_id = None
    model.save_pretrained(directory)
    chat_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def generate(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`generate(*flags)`: exit code, stdout, stderr; greedy, 5 tokens."""

    def run(*flags: str) -> tuple[int, str, str]:
        code = main(["--model", str(model_dir), "--temperature", "0", "--max_new_tokens", "5", *flags])
        out, error = capsys.readouterr()
        return code, out, error

    return run


def test_a_text_goes_on_and_an_assistant_answers(generate) -> None:
    code, text, error = generate("--prompt", "w20 w21")
    assert code == 0 and text.startswith("w20 w21") and len(text) > len("w20 w21\n")
    assert "5 tokens in" in error and "stopped by the length limit" in error
    _, answer, _ = generate("--prompt", "w20 w21", "--chat")
    _, rendered, _ = generate("--prompt", "<|im_start|> user w20 w21 <|im_end|> <|im_start|> assistant ")
    assert answer.strip() and rendered.endswith(answer)
    _, with_system, _ = generate("--prompt", "w20 w21", "--chat", "--system", "w30")
    assert with_system.strip() and with_system != answer


def test_a_file_in_batches_is_its_prompts_one_by_one(generate, tmp_path: Path) -> None:
    texts = ["w20 w21 w22", "w23", "w24 w25"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    code, out, error = generate("--prompts", str(tmp_path / "p.jsonl"), "--chat", "--batch_size", "2")
    assert code == 0 and error.endswith("2 of 3 prompts\n3 of 3 prompts\n")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["messages"] for line in lines] == [[{"role": "user", "content": text}] for text in texts]
    alone = [generate("--prompt", text, "--chat")[1] for text in texts]
    assert [line["text"].split() for line in lines] == [text.split() for text in alone]
    assert not any(line["stopped"] for line in lines)


def test_a_conversation_remembers_what_was_said(generate, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["w20", "w21", ""])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(said))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, out, _ = generate("--chat")
    first, second = out.splitlines()
    assert code == 0
    before = f"<|im_start|> user w20 <|im_end|> <|im_start|> assistant {first} <|im_end|> "
    _, text, _ = generate("--prompt", before + "<|im_start|> user w21 <|im_end|> <|im_start|> assistant ")
    assert second.strip() and text.endswith(second + "\n")


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--prompt", ""], "--prompt: is empty"),
        ([], "--prompt: give the text to continue"),
        (["--chat"], "--prompt: give the text to continue"),  # no terminal
        (["--prompt", "a", "--system", "b"], "--system: is for --chat"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--prompt", " ".join(["w20"] * 2049)], "the prompt takes 2049 tokens"),
    ],
)
def test_what_is_wrong_is_one_line(flags: list[str], message: str, generate) -> None:
    code, _, error = generate(*flags)
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_model_without_a_template_cannot_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_minigpt().save_pretrained(tmp_path)
    chat_tokenizer(None).save_pretrained(tmp_path)
    assert main(["--model", str(tmp_path), "--chat", "--prompt", "w20"]) == 2
    assert "no chat template: leave out --chat" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(model_dir: Path) -> None:
    arguments = ["--model", str(model_dir), "--prompt", "w20", "--max_new_tokens", "300"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "training.generate", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    with running:
        assert b"Traceback" not in running.stderr.read() and running.wait(60) == 0
