"""The configurations that are measured: recipes that differ in what decides memory, 36 on one rank and 9 on two.

Sizes are such that a step peaks at 100 MB or more, so that a kernel's workspace is not what is compared, and such that
a CPU does one in a second or two. Batches, widths and vocabularies vary as well.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from training.attention import cpu

Attention = Literal["masked", "causal", "eager", "documents"]

_DECODER = {
    "hidden_size": 320,
    "intermediate_size": 896,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 2048,
    "vocab_size": 8192,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "minigpt": {**_DECODER, "model_type": "minigpt"},
    "qwen2": {
        **_DECODER,
        "model_type": "qwen2",
        "num_attention_heads": 10,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama": {**_DECODER, "model_type": "llama", "vocab_size": 4096, "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", "n_embd": 320, "n_layer": 6, "n_head": 5, "n_positions": 1024, "vocab_size": 8192},
}
PRETRAINED = ("qwen2", "llama")
"""Families of which the benchmark saves a model with random weights, since an adapter needs one to stand on."""


@dataclass(frozen=True)
class Case:
    """One configuration. `attention`: causal has one document in each row, the others several; eager by that name;
    documents is our CPU kernel, with fused layers where they can be. What is not said is the default."""

    family: str
    rows: int
    seq_len: int
    method: Literal["dense", "lora", "4-bit"] = "dense"
    bf16: bool = False
    checkpointing: bool = False
    attention: Attention = "masked"
    accumulation: int = 1
    zero_stage: int | None = None
    optimizer: str = "adamw_torch_fused"
    ranks: int = 1
    changes: tuple[tuple[str, int], ...] = ()
    """Fields of the family's config that differ."""

    @property
    def name(self) -> str:
        """All that distinguishes it, in words."""
        words = [
            self.family,
            self.method,
            "bf16" if self.bf16 else "fp32",
            self.attention,
            f"{self.rows} x {self.seq_len}",
            f"accumulated over {self.accumulation}" * (self.accumulation > 1),
            "checkpointed" * self.checkpointing,
            f"ZeRO-{self.zero_stage}" * (self.zero_stage is not None),
            self.optimizer * (self.optimizer != "adamw_torch_fused"),
            f"{'DDP, ' * (self.zero_stage is None)}{self.ranks} ranks" * (self.ranks > 1),
            *(f"{key} {value}" for key, value in self.changes),
        ]
        return ", ".join(word for word in words if word)

    def recipe(self, inputs: "GridInputs") -> dict[str, Any]:
        """The recipe that trains it for as many steps as are needed to measure one."""
        if self.method == "dense":
            model: dict[str, Any] = {"config": {**FAMILIES[self.family], **dict(self.changes)}}
        else:
            model = {"path": str(inputs.base_model(self.family))}
        model["attn_implementation"] = {"eager": "eager", "documents": cpu.NAME}.get(self.attention, "sdpa")
        adapter = {"method": "lora", "load_in_4bit": self.method == "4-bit"} if self.method != "dense" else {}
        deepspeed = {} if self.zero_stage is None else {"deepspeed": str(inputs.deepspeed_json(self.zero_stage))}
        return {
            **deepspeed,
            "model": model,
            "adapter": adapter,
            "tokenizer": {"path": str(inputs.tokenizer)},
            "data": {
                "sources": [{"path": str(inputs.one_document if self.attention == "causal" else inputs.documents)}],
                "store_dir": str(inputs.stores),
                "seq_len": self.seq_len,
                "packing": "wrapped",
                "validation_share": 0.0,
                "verify_packing": False,
                "num_workers": 0,
                "num_proc": 1,
            },
            "training": {
                "output_dir": str(inputs.work_dir / f"run-{os.getpid()}"),
                "per_device_train_batch_size": self.rows,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_checkpointing": self.checkpointing,
                "bf16": self.bf16,
                "optim": self.optimizer,
                "max_steps": MEASURED_STEP,
                "eval_strategy": "no",
                "save_strategy": "no",
                "use_cpu": inputs.use_cpu,
            },
            "perf": {"enabled": False},
        }


@dataclass(frozen=True)
class GridInputs:
    """Where the files lie that the recipes name."""

    work_dir: Path
    use_cpu: bool = True

    @property
    def documents(self) -> Path:
        """Text of many documents."""
        return self.work_dir / "documents.jsonl"

    @property
    def one_document(self) -> Path:
        """Text of a single long document."""
        return self.work_dir / "one_document.jsonl"

    @property
    def stores(self) -> Path:
        """Where token stores are built."""
        return self.work_dir / "stores"

    @property
    def tokenizer(self) -> Path:
        """A tokenizer for all configurations."""
        return self.work_dir / "tokenizer"

    def deepspeed_json(self, stage: int) -> Path:
        """Ours of that stage, with buckets that are not larger than the whole model."""
        return self.work_dir / f"zero{stage}.json"

    def base_model(self, family: str) -> Path:
        """A model of this family to attach adapters to."""
        return self.work_dir / family


MEASURED_STEP = 2  # the first one makes the optimizer's states

_MINIGPT, _QWEN2 = Case("minigpt", 4, 256), Case("qwen2", 4, 256)
_LLAMA, _GPT2 = Case("llama", 4, 256), Case("gpt2", 4, 256)
GRID = [
    _MINIGPT,
    replace(_MINIGPT, bf16=True),
    replace(_MINIGPT, bf16=True, attention="causal", rows=8),
    replace(_MINIGPT, attention="eager", accumulation=2),
    replace(_MINIGPT, bf16=True, checkpointing=True, rows=2, seq_len=1024),
    replace(_MINIGPT, optimizer="adamw_torch", rows=2, seq_len=128),
    _QWEN2,
    replace(_QWEN2, bf16=True, seq_len=512),
    replace(_QWEN2, attention="causal", checkpointing=True, rows=6),
    replace(_QWEN2, bf16=True, attention="eager", rows=2, seq_len=384),
    replace(_QWEN2, bf16=True, accumulation=4, rows=2),
    replace(_QWEN2, bf16=True, changes=(("vocab_size", 32768),)),
    replace(_QWEN2, method="lora", seq_len=512),
    replace(_QWEN2, method="lora", bf16=True, attention="causal", accumulation=2, rows=8),
    replace(_QWEN2, method="4-bit", bf16=True, rows=8),
    replace(_QWEN2, method="4-bit", bf16=True, checkpointing=True, rows=8, seq_len=512),
    _LLAMA,
    replace(_LLAMA, bf16=True, attention="causal", seq_len=512),
    replace(_LLAMA, bf16=True, checkpointing=True, accumulation=2, rows=8),
    replace(_LLAMA, attention="eager", rows=2, seq_len=512),
    replace(_LLAMA, method="lora", checkpointing=True, rows=8, seq_len=512),
    replace(_LLAMA, method="4-bit", attention="causal", rows=6),
    replace(_LLAMA, optimizer="sgd", rows=3, changes=(("hidden_size", 640), ("num_attention_heads", 10))),
    _GPT2,
    replace(_GPT2, bf16=True, seq_len=512),
    replace(_GPT2, bf16=True, attention="causal", checkpointing=True, rows=6),
    replace(_GPT2, bf16=True, attention="eager", accumulation=2),
    replace(_QWEN2, bf16=True, zero_stage=1, rows=1, seq_len=128),
    replace(_LLAMA, bf16=True, zero_stage=2, accumulation=2, rows=1, seq_len=128),
    replace(_MINIGPT, bf16=True, zero_stage=3, rows=2),
    replace(_QWEN2, bf16=True, ranks=2, rows=2),
    replace(_MINIGPT, accumulation=2, ranks=2, rows=1, seq_len=128),
    replace(_LLAMA, method="lora", bf16=True, ranks=2, seq_len=512),
    replace(_QWEN2, bf16=True, zero_stage=1, accumulation=2, ranks=2, rows=1, seq_len=128),
    replace(_LLAMA, bf16=True, zero_stage=2, ranks=2, rows=1, seq_len=128),
    replace(_GPT2, bf16=True, zero_stage=2, accumulation=2, checkpointing=True, ranks=2, rows=2),
    replace(_MINIGPT, bf16=True, zero_stage=3, ranks=2, rows=2),
    replace(_LLAMA, bf16=True, zero_stage=3, accumulation=2, checkpointing=True, ranks=2, rows=2, seq_len=128),
    replace(_MINIGPT, attention="documents"),
    replace(_MINIGPT, attention="documents", bf16=True, rows=8),
    replace(_QWEN2, attention="documents", bf16=True, seq_len=512),
    replace(_QWEN2, attention="documents", bf16=True, checkpointing=True, accumulation=2, rows=8),
    replace(_QWEN2, attention="documents", method="lora", bf16=True, seq_len=512),
    replace(_LLAMA, attention="documents", bf16=True, zero_stage=2, rows=2),
    replace(_LLAMA, attention="documents", bf16=True, zero_stage=2, accumulation=2, ranks=2, rows=2),
]
_FAST = GRID[-5]
RESIDENT = [GRID[0], GRID[7], GRID[13], GRID[18], GRID[23], _FAST]
"""Of which resident memory is measured as well, in a second process."""
QUICK = [
    _MINIGPT,
    replace(_QWEN2, bf16=True, checkpointing=True),
    replace(_GPT2, attention="causal", accumulation=2),
    replace(_LLAMA, bf16=True, zero_stage=2, ranks=2, rows=1, seq_len=128),
]
