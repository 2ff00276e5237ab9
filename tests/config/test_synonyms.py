from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.recipe import Layer
from training.config import LoadedConfig, load_config
from training.config.synonyms import REFUSED_FLAGS


def value(loaded: LoadedConfig, dotted: str) -> Any:
    return Layer(loaded.config.model_dump()).get(tuple(int(p) if p.isdigit() else p for p in dotted.split(".")))


@pytest.mark.parametrize(
    ("argv", "key", "expected"),
    [
        (["--batch_size", "3"], "training.per_device_train_batch_size", 3),
        (["--batch-size=3"], "training.per_device_train_batch_size", 3),
        (["--num_workers", "2"], "data.num_workers", 2),
        (["--dataloader_workers", "2"], "data.num_workers", 2),
        (["--pin_memory"], "training.dataloader_pin_memory", True),
        (["--pin-memory", "false"], "training.dataloader_pin_memory", False),
        (["--max_sequence_length", "64"], "data.seq_len", 64),
        (["--precision", "16-mixed"], "training.fp16", True),
        (["--precision", "bf16-mixed"], "training.bf16", True),
        (["--precision", "32"], "training.bf16", False),
        (["--gradient_accumulation_steps", "4"], "training.gradient_accumulation_steps", 4),
        (["--compile_model"], "training.torch_compile", True),
        (["--enable_compile"], "training.torch_compile", True),
        (["--warmup_steps", "10"], "training.warmup_steps", 10),
        (["--save_steps", "7"], "training.save_steps", 7),
        (["--logging_steps", "7"], "monitor.train_every", 7),
        (["--output_dir", "o"], "training.output_dir", "o"),
        (["--plot_loss", "false"], "monitor.plot_every", 0),
        (["--plot_loss"], "monitor.plot_every", 200),
        (["--num_threads", "1"], "perf.num_threads", 1),
        (["--data_files", "a", "b"], "data.sources.1.path", "b"),
        (["--max_data_size", "9"], "data.sources.0.max_documents", 9),
        (["--data_files", "a", "b", "--max_data_size", "9"], "data.sources.1.max_documents", 9),
        (["--config", "debug"], "data.sources.0.max_documents", 200),
        (["--config", "debug", "--use_full_data"], "data.sources.0.max_documents", None),
        (["--tokenizer_vocab_size", "500"], "tokenizer.vocab_size", 500),
        (["--use_dynamic_padding"], "data.packing", "none"),
        (["--disable_monitoring"], "perf.enabled", False),
        (["--disable_metrics_monitoring"], "perf.enabled", False),
        (["--fast_detection"], "perf.log_every", 100),
    ],
)
def test_synonyms(argv: list[str], key: str, expected: object) -> None:
    assert value(load_config(argv), key) == expected


def test_limit_on_documents_keeps_the_origin_of_the_rest() -> None:
    origins = load_config(["--config", "debug", "--max_data_size", "9"]).origins
    assert str(origins["data", "sources", 0, "max_documents"]) == "command line"
    assert "debug.yaml" in str(origins["data", "sources", 0, "path"])


@pytest.mark.parametrize("flag", sorted(REFUSED_FLAGS))
def test_what_is_not_there_says_so(flag: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([f"--{flag}", "1"])
    assert REFUSED_FLAGS[flag] in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--precision", "8"], "--precision = '8': must be one of 16-mixed, bf16-mixed, 32"),
        (["--max_data_size", "10GB"], "--max_data_size = '10GB': must be a number of documents"),
        (["--data_files"], "--data_files needs at least one value"),
        (["--pin_memory=maybe"], "--pin_memory = 'maybe': must be true or false"),
    ],
)
def test_bad_values_of_synonyms(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(argv)
    assert message in str(error.value)
