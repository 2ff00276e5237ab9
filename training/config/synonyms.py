"""Flags that people coming from other training scripts type, and what they mean here.

A synonym only stands for keys of ours; where a flag asks for something that Redline does not do, it is refused with
the reason, never taken and ignored.
"""

from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import Synonym

PRECISIONS = {
    "16-mixed": {"training.fp16": True, "training.bf16": False},
    "bf16-mixed": {"training.bf16": True, "training.fp16": False},
    "32": {"training.fp16": False, "training.bf16": False},
}


def _precision(text: str) -> dict[str, Any]:
    if text not in PRECISIONS:
        raise UserError(f"command line: --precision = {text!r}: must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[text]


def _documents(text: str) -> dict[str, Any]:
    if not text.replace("_", "").isdigit():
        raise UserError(f"command line: --max_data_size = {text!r}: must be a number of documents")
    return {"data.sources.*.max_documents": int(text)}


def _whole_data(on: bool) -> dict[str, Any]:
    return {"data.sources.*.max_documents": None, "data.sources.*.max_tokens": None} if on else {}


def _files(paths: list[str]) -> dict[str, Any]:
    return {"data.sources": [{"path": path} for path in paths]}


def _thin_monitoring(on: bool) -> dict[str, Any]:
    if not on:
        return {}
    return {"monitor.train_every": 50, "monitor.gpu_every": 500, "monitor.plot_every": 0, "perf.log_every": 100}


SYNONYMS: dict[str, str | Synonym] = {
    "batch_size": "training.per_device_train_batch_size",
    "compile_model": "training.torch_compile",
    "data_files": Synonym("many", _files),
    "dataloader_workers": "data.num_workers",
    "disable_metrics_monitoring": Synonym("switch", lambda on: {"perf.enabled": not on}),
    "disable_monitoring": Synonym("switch", lambda on: _thin_monitoring(on) | {"perf.enabled": not on}),
    "enable_compile": "training.torch_compile",
    "fast_detection": Synonym("switch", _thin_monitoring),
    "logging_steps": "monitor.train_every",
    "max_data_size": Synonym("one", _documents),
    "max_sequence_length": "data.seq_len",
    "pin_memory": "training.dataloader_pin_memory",
    "plot_loss": Synonym("switch", lambda on: {"monitor.plot_every": 200 if on else 0}),
    "precision": Synonym("one", _precision),
    "tokenizer_vocab_size": "tokenizer.vocab_size",
    "use_dynamic_padding": Synonym("switch", lambda on: {"data.packing": "none" if on else "best_fit"}),
    "use_full_data": Synonym("switch", _whole_data),
}

_NOT_YET = "is not built yet"
REFUSED_FLAGS = {
    "devices": "the launcher decides: torchrun --nproc_per_node=N training/train.py … or deepspeed --num_gpus N …",
    "disable_optimizations": "name what to switch off: --torch_compile false, --attn_implementation eager, "
    "--packing none, --optim adamw_torch",
    "max_cpu": f"a limit on CPU use {_NOT_YET}; --num_threads bounds it",
    "max_memory": f"a limit on memory {_NOT_YET}; `python -m training.plan` says what a run needs",
    "retrain_tokenizer": "the tokenizer is trained anew whenever its sources or options change; "
    "to force it, point --store_dir at an empty directory",
    "tokenizer_samples": "the text a tokenizer is trained on is bounded in bytes: --sample_bytes",
}
