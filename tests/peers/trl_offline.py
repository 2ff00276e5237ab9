"""A pytest plugin for TRL's own tests without a network: tiny models and data under the names that the tests ask for.

`REDLINE_TRAINER=profiled` also puts `ProfiledTrainer` in the place of `transformers.Trainer` before TRL is imported.
Models that are not made here fail to load, with both trainers alike.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if os.environ.get("REDLINE_TRAINER") == "profiled":
    from training.trainers import ProfiledTrainer

    transformers.Trainer = ProfiledTrainer  # pyright: ignore[reportAttributeAccessIssue]

ORGANISATION = "trl-internal-testing"
SHAPE: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip
# Name on the hub after `tiny-` -> model type, and what differs from SHAPE.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2ForCausalLM-2.5": ("qwen2", {}),
    "Qwen3ForCausalLM": ("qwen3", {}),
    "LlamaForCausalLM-3.2": ("llama", {}),
    "MistralForCausalLM-0.2": ("mistral", {}),
    "Qwen3MoeForCausalLM": ("qwen3_moe", EXPERTS),
    "GptOssForCausalLM": ("gpt_oss", EXPERTS),
    "GPTNeoXForCausalLM": ("gpt_neox", {}),
    "CohereForCausalLM": ("cohere", {}),
}
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "<|im_start|>assistant\n{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = [
    "Beautiful is better than ugly.", "Explicit is better than implicit.", "Simple is better than complex.",
    "Complex is better than complicated.", "Flat is better than nested.", "Sparse is better than dense.",
    "Readability counts.", "Errors should never pass silently.", "Unless explicitly silenced.",
    "Now is better than never.", "In the face of ambiguity, refuse the temptation to guess.",
    "Namespaces are one honking great idea.", "Although practicality beats purity.", "Special cases break no rules.",
    "There should be one obvious way to do it.", "If it is hard to explain, it is a bad idea.",
    "If it is easy to explain, it may be a good idea.",
]  # fmt: skip


def build_tokenizer() -> Any:
    """One token a byte, ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_hub(cache: Path) -> None:
    """Write the models into a hub cache, as a download would have left them."""
    tokenizer = build_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, (model_type, changes) in MODELS.items():
        repository = cache / f"models--{ORGANISATION}--tiny-{name}"
        snapshot = repository / "snapshots" / "0"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text("0")
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **SHAPE, **changes, **ids)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(snapshot)
        tokenizer.save_pretrained(snapshot)


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def build_rows(config: str) -> list[dict[str, Any]]:
    """Rows of a configuration of the data set `zen`, by its name."""
    rows: list[dict[str, Any]] = []
    for line in LINES:
        half = len(line) // 2
        prompt, completion = line[:half], line[half:]
        if "conversational" in config:
            question, answer = _turns(prompt, completion)
            both, prompt_value, completion_value = [question, answer], [question], [answer]
        else:
            both, prompt_value, completion_value = line, prompt, completion
        if config.endswith("language_modeling"):
            rows.append({"messages" if "conversational" in config else "text": both})
        elif config.endswith("prompt_completion"):
            rows.append({"prompt": prompt_value, "completion": completion_value})
        elif config.endswith("implicit_prompt_preference"):
            rows.append({"chosen": both, "rejected": both})
        elif config.endswith("preference"):
            rows.append({"prompt": prompt_value, "chosen": completion_value, "rejected": completion_value})
        else:
            rows.append({"prompt": prompt_value})
    return rows


_load_dataset = datasets.load_dataset


def load_dataset(
    path: str, name: str | None = None, split: str | None = None, streaming: bool = False, **rest: Any
) -> Any:
    """`datasets.load_dataset`, with `trl-internal-testing/zen` made here."""
    if path != f"{ORGANISATION}/zen" or name is None:
        return _load_dataset(path, name, split=split, streaming=streaming, **rest)
    made = datasets.Dataset.from_list(build_rows(name))
    if split is None:
        return datasets.DatasetDict({"train": made, "test": made.select(range(2))})
    first = split.partition("[:")[2].rstrip("]")
    found = made.select(range(int(first))) if first else made.select(range(2)) if split == "test" else made
    return found.to_iterable_dataset() if streaming else found


datasets.load_dataset = load_dataset
build_hub(Path(os.environ["HF_HUB_CACHE"]))
