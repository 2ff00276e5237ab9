import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.encode.tokenizer import (
    TextSample,
    find_tokenizer,
    fingerprint_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from data_prep.errors import UserError
from data_prep.options import TokenizerSection
from tests.data_prep.conftest import make_texts

TEXT = "the cat said\n\n  hello é 猫 🐈\t<|im_start|>user\x00 \ufffd end"


def test_auto_tokenizer_loads_it_with_the_same_ids(tokenizer_dir: Path):
    mine, hf = load_tokenizer(tokenizer_dir), AutoTokenizer.from_pretrained(tokenizer_dir)
    assert hf.is_fast
    assert hf(TEXT)["input_ids"] == mine.backend.encode(TEXT).ids
    assert hf.decode(hf(TEXT)["input_ids"]) == TEXT
    assert (hf.eos_token_id, hf.pad_token_id, len(hf)) == (mine.eos_id, 1, mine.vocab_size)
    assert (mine.eos_id, mine.bos_id, mine.vocab_size) == (0, None, 500)
    assert hf.chat_template == mine.chat_template
    assert hf.convert_tokens_to_ids("<|im_start|>") == 2


def test_training_again_in_another_process_gives_the_same_bytes(tokenizer_dir: Path, tmp_path: Path):
    code = (
        "import sys, pathlib; from data_prep.encode.tokenizer import train_tokenizer;"
        "from data_prep.options import TokenizerSection;"
        "from tests.data_prep.conftest import make_texts, SPECIAL_TOKENS;"
        "train_tokenizer(make_texts(200)[::-1], TokenizerSection(vocab_size=500, special_tokens=SPECIAL_TOKENS),"
        " pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer_dir / name).read_bytes()
    assert fingerprint_tokenizer(tmp_path / "again") == fingerprint_tokenizer(tokenizer_dir)


def test_sample_is_bounded_and_free_of_order():
    texts = make_texts(300)
    chosen = []
    for order in (texts, texts[::-1], texts + texts):
        sample = TextSample(2000, seed=1)
        for text in order:
            sample.add(text)
        assert sample.bytes == sum(len(text) for text in sample.texts()) <= 2000
        chosen.append(sample.texts())
    assert chosen[0] == chosen[1] == chosen[2]
    assert len(chosen[0]) > 5
    other = TextSample(2000, seed=2)
    for text in texts:
        other.add(text)
    assert other.texts() != chosen[0]


def test_nothing_to_train_on_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([], TokenizerSection.model_validate({}), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_gpt2_files_become_a_loadable_tokenizer(tokenizer_dir: Path, tmp_path: Path):
    model = json.loads((tokenizer_dir / "tokenizer.json").read_text())["model"]
    source = tmp_path / "gpt2"
    source.mkdir()
    (source / "vocab.json").write_text(json.dumps(model["vocab"]))
    (source / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    directory = find_tokenizer(str(source), tmp_path / "stores")
    assert find_tokenizer(str(source), tmp_path / "stores") == directory
    hf = AutoTokenizer.from_pretrained(directory)
    text = "the cat said hello"
    assert hf(text)["input_ids"] == load_tokenizer(tokenizer_dir).backend.encode(text).ids
    assert hf.eos_token == "<|endoftext|>"


def test_a_directory_without_tokenizer_or_end_token_is_an_error(tokenizer_dir: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer.json"):
        find_tokenizer(str(tmp_path), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_dir / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="no eos_token"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_named(tokenizer_dir: Path, tmp_path: Path):
    data = (tokenizer_dir / "tokenizer.json").read_bytes()
    for damaged in (data[: len(data) // 2], b"{}", b"", b"[1]"):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"tokenizer\.path: .*tokenizer\.json is not a valid tokenizer \(.+\)"
        ) as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_bytes(data)
    for damaged in (b"[1]", b"{"):
        (tmp_path / "tokenizer_config.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer_config\.json is not (valid JSON|a JSON object)"):
            load_tokenizer(tmp_path)


def test_beginning_token_is_seen_where_the_tokenizer_adds_it(tokenizer_dir: Path, tmp_path: Path):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 9)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "</s>", "eos_token": {"content": "<|endoftext|>"}}')
    assert load_tokenizer(tmp_path).bos_id == 9
