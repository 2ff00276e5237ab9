"""What other programs call the model's path, the tokenizer and the data: transformers, TRL, LLaMA-Factory, axolotl,
nanoGPT, Lightning. Names of training are in `training.config.synonyms`.
"""

import re
from pathlib import Path
from typing import Any

from data_prep.options import EMBEDDED, HUB_PREFIX
from data_prep.recipe.synonym import Names, Synonym

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".gz", ".zst", ".bz2", ".xz")
_COLUMNS = "columns are found by their names (docs/data.md); for other names, use data.columns or --text_key"
_SHARE = "use data.validation_share, the fraction of documents that are held out"
_TOKENIZER_OWN = (
    "special tokens come from the tokenizer; for a tokenizer that is trained here, use tokenizer.special_tokens"
)
_WEIGHTS = "give each source a weight: data.sources: [{path: a, weight: 2.0}, {path: b}]"


def find_source(text: str) -> str:
    """`data.sources.*.path` for what other programs take as a data set: a file, a directory, a glob or a hub name."""
    if text == EMBEDDED or text.startswith(HUB_PREFIX) or Path(text).expanduser().exists():
        return text
    if text.endswith(_FILE_SUFFIXES) or text.startswith(("/", ".", "~")) or set("*?[") & set(text):
        return text
    if _HUB_NAME.fullmatch(text):
        return HUB_PREFIX + text
    raise ValueError(
        "is not a file, directory or glob here; a Hugging Face dataset is written hf:NAME or hf:NAME:CONFIG"
    )


def _sources(texts: list[str]) -> dict[str, Any]:
    return {"data.sources": [{"path": find_source(text)} for text in texts]}


def _validation_file(text: str) -> dict[str, Any]:
    return {"data.sources.+": {"path": find_source(text), "split": "validation"}, "data.validation_share": 0}


def _number(text: str, what: str = "must be a number") -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(what) from None


def _share(text: str) -> dict[str, Any]:
    share = _number(text)
    if not 0 <= share < 1:
        raise ValueError(
            "must be a share below 1: documents are held out by share (data.validation_share), not by number"
        )
    return {"data.validation_share": share}


def _percentage(text: str) -> dict[str, Any]:
    percentage = _number(text)
    if not 0 <= percentage <= 100:
        raise ValueError("must be a percentage from 0 to 100")
    return {"data.validation_share": percentage / 100}


def _documents(text: str) -> dict[str, Any]:
    if not text.replace("_", "").isdigit():
        raise ValueError("must be a number of documents")
    return {"data.sources.*.max_documents": int(text)}


def _packing(text: str) -> dict[str, Any]:
    return {"data.packing": {"true": "best_fit", "false": "none"}.get(text, text)}


def _switch(key: str, if_true: str, if_false: str) -> Synonym:
    return Synonym("switch", lambda on: {key: if_true if on else if_false})


_MODEL = (
    "model model_name_or_path model_name model_id model_path base_model pretrained_model pretrained_model_name_or_path"
)
_TOKENIZER = "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer_dir tokenizer_id"
_SOURCES = (
    "dataset datasets dataset_name dataset_path dataset_name_or_path dataset_id data data_file data_files data_path "
    "train_data train_dataset train_file train_files training_file"
)
_VALIDATION = "validation_file valid_file val_file eval_file eval_data eval_dataset eval_data_path"
_LENGTH = (
    "block_size context_length ctx_len cutoff_len max_length max_len max_seq_len max_seq_length max_sequence_length "
    "model_max_length sequence_len sequence_length seqlen seq_length"
)

_DOCUMENTS = "max_data_size max_samples max_train_samples num_samples"
_TEXT = "dataset_text_field text_field text_column text_column_name text_key"

DATA_NAMES = Names(
    synonyms={
        **dict.fromkeys(_MODEL.split(), "model.path"),
        **dict.fromkeys(_TOKENIZER.split(), "tokenizer.path"),
        "tokenizer_vocab_size": "tokenizer.vocab_size",
        **dict.fromkeys(_SOURCES.split(), Synonym("many", _sources)),
        **dict.fromkeys(_VALIDATION.split(), Synonym("one", _validation_file)),
        **dict.fromkeys(("val_set_size", "val_size", "test_size", "eval_ratio"), Synonym("one", _share)),
        "split_dataset_ratio": Synonym("one", _share),
        "validation_split_percentage": Synonym("one", _percentage),
        **dict.fromkeys(_DOCUMENTS.split(), Synonym("one", _documents)),
        **dict.fromkeys(("dataset_split", "dataset_train_split", "train_split"), "data.sources.*.hf_split"),
        **dict.fromkeys(_TEXT.split(), "data.sources.*.text_key"),
        **dict.fromkeys(_LENGTH.split(), "data.seq_len"),
        **dict.fromkeys(("packing", "sample_packing", "neat_packing", "use_packing"), Synonym("word", _packing)),
        "use_dynamic_padding": _switch("data.packing", "none", "best_fit"),
        "assistant_only_loss": _switch("data.train_on", "assistant", "all"),
        "completion_only_loss": _switch("data.train_on", "assistant", "all"),
        "train_on_completions_only": _switch("data.train_on", "assistant", "all"),
        "train_on_responses_only": _switch("data.train_on", "assistant", "all"),
        "train_on_inputs": _switch("data.train_on", "all", "assistant"),
        "train_on_input": _switch("data.train_on", "all", "assistant"),
        "train_on_prompt": _switch("data.train_on", "all", "assistant"),
        "mask_history": _switch("data.train_on", "last_assistant", "assistant"),
        "chat_template_path": "data.chat_template",
        "dataset_prepared_path": "data.store_dir",
        **dict.fromkeys(
            ("preprocessing_num_workers", "dataset_num_proc", "dataset_processes", "num_preprocess_workers"),
            "data.num_proc",
        ),
        "data_seed": "data.seed",
    },
    refused={
        "template": "the tokenizer has a chat template; for another one, use data.chat_template (chatml or a file)",
        "dataset_config_name": "write it into the source: data.sources: [{path: hf:NAME:CONFIG}]",
        "dataset_config": "write it into the source: data.sources: [{path: hf:NAME:CONFIG}]",
        "dataset_dir": "name the files or the directory itself: data.sources: [{path: DIR/FILE}]",
        "dataset_weights": _WEIGHTS,
        "interleave_probs": _WEIGHTS,
        "mix_strategy": _WEIGHTS,
        "max_eval_samples": _SHARE,
        "eval_size": _SHARE,
        "eval_sample_packing": "evaluation rows are packed like training rows: use data.packing",
        "pad_to_sequence_len": "packed rows are full; with data.packing: none, rows are padded by batch "
        "(data.pad_to_multiple_of)",
        "pad_to_max_length": "packed rows are full; with data.packing: none, rows are padded by batch "
        "(data.pad_to_multiple_of)",
        "eos_token": _TOKENIZER_OWN,
        "bos_token": _TOKENIZER_OWN,
        "pad_token": _TOKENIZER_OWN,
        "add_special_tokens": _TOKENIZER_OWN,
        "use_fast_tokenizer": "the tokenizer is always a fast one: leave it out",
        "use_fast": "the tokenizer is always a fast one: leave it out",
        "prompt_column": _COLUMNS,
        "response_column": _COLUMNS,
        "messages_column": _COLUMNS,
        "retrain_tokenizer": "the tokenizer is trained from scratch whenever its sources or options change; "
        "to force it, point --store_dir at an empty directory",
        "tokenizer_samples": "the text a tokenizer is trained on is bounded in bytes: --sample_bytes",
        "overwrite_cache": "a store is named by its content, never stale; to force a build, name another --store_dir",
        "cache_dir": "set the environment variable HF_HOME",
        "streaming_buffer_size": "data.streaming reads units in the order of data.seed",
        "shuffle": "rows come in a random order of data.seed",
    },
)
