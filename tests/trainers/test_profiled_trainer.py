"""Scripts of others, with one line changed: the same losses, and phases, MFU and records beside them."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from data_prep.errors import UserError
from tests.callbacks.test_contract import Counts
from training import report
from training.metrics import names
from training.metrics.flops import measure_flops
from training.metrics.throughput import Forward, Meter
from training.trainers import Profiled, ProfiledTrainer

CHATS = [
    ("How do I reverse a list in Python?", "Use `reversed(items)`, or `items[::-1]` for a copy."),
    ("What does gradient accumulation do?", "It adds up the gradients of several micro-batches before one step."),
    ("Why is my loss NaN?", "Often the learning rate is too high. Lower it, or clip the gradient."),
    ("Translate 'good morning' into German.", "Guten Morgen."),
    ("Is 91 prime?", "No: 91 = 7 x 13."),
    ("What is the capital of Norway?", "Oslo."),
    ("Name three sorting algorithms.", "Merge sort, quicksort and heapsort."),
    ("What does `git rebase` do?", "It moves commits onto another base and rewrites them on the way."),
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class MySFT(Profiled, SFTTrainer):
    """As docs/use_your_own_trainer.md has it."""


class MyDPO(Profiled, DPOTrainer):
    """Likewise."""


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SFT_ROWS = [{"messages": [turn("user", question), turn("assistant", answer)]} for question, answer in CHATS]
DPO_ROWS = [
    {
        "prompt": [turn("user", question)],
        "chosen": [turn("assistant", answer)],
        "rejected": [turn("assistant", "I do not know.")],
    }
    for question, answer in CHATS
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    made.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    made.chat_template = TEMPLATE
    return made


def build_qwen2(tokenizer: Any, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape, **ids, **changes))


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("qwen2")
    build_qwen2(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "seed": 1,
}


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_records(path: Path, trainer: Any) -> list[dict[str, Any]]:
    """Phases sum to the step, MFU is there, the losses are those of the Trainer; readers know the directory."""
    records = read_records(path)
    measured = [record for record in records if names.PERF_STEP_MS in record]
    assert [record["step"] for record in measured] == list(range(1, trainer.state.max_steps + 1))
    for record in measured:
        phases = [record[names.phase_key(phase)] for phase in names.PHASES if names.phase_key(phase) in record]
        assert sum(phases) == pytest.approx(record[names.PERF_STEP_MS], rel=1e-9)
        for phase in (names.DATA_WAIT, names.FORWARD, names.BACKWARD, names.OPTIMIZER):
            assert record[names.phase_key(phase)] > 0
        assert 0 < record[names.PERF_MFU_PCT] <= record[names.PERF_HFU_PCT]
    assert [record[names.TRAIN_LOSS] for record in measured] == losses(trainer)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", trainer.state.max_steps)
    (path / "report.html").unlink()
    assert report.main([str(path)]) == 0 and (path / "report.html").stat().st_size > 10_000
    return measured


def train_sft(kind: type[SFTTrainer], saved: str, tokenizer: Any, path: Path, **options: Any) -> SFTTrainer:
    given = {"max_length": 96, "model_init_kwargs": {"dtype": "float32"}} | COMMON | options
    args = SFTConfig(output_dir=str(path), **given)
    trainer = kind(model=saved, args=args, train_dataset=Dataset.from_list(SFT_ROWS), processing_class=tokenizer)
    trainer.train()
    return trainer


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"padding_free": True, "max_length": None}])
def test_sft_trainer_of_trl(options, saved, tokenizer, tmp_path):
    stock = train_sft(SFTTrainer, saved, tokenizer, tmp_path / "stock", **options)
    mine = train_sft(MySFT, saved, tokenizer, tmp_path / "mine", **options)
    assert losses(mine) == losses(stock)
    measured = check_records(tmp_path / "mine", mine)
    # TRL counts tokens by the attention mask or position ids, in a way of its own.
    counted = [entry["num_tokens"] for entry in mine.state.log_history if "num_tokens" in entry]
    assert [record["tokens"] for record in measured] == counted
    assert not (tmp_path / "stock" / "metrics.jsonl").exists()


def train_dpo(kind: type[DPOTrainer], saved: str, tokenizer: Any, path: Path, **changes: Any) -> DPOTrainer:
    args = DPOConfig(output_dir=str(path), model_init_kwargs={"dtype": "float32"}, **(COMMON | changes))
    trainer = kind(model=saved, args=args, train_dataset=Dataset.from_list(DPO_ROWS), processing_class=tokenizer)
    trainer.train()
    return trainer


def test_dpo_trainer_of_trl(saved, tokenizer, tmp_path):
    stock = train_dpo(DPOTrainer, saved, tokenizer, tmp_path / "stock")
    mine = train_dpo(MyDPO, saved, tokenizer, tmp_path / "mine")
    assert losses(mine) == losses(stock)
    measured = check_records(tmp_path / "mine", mine)
    assert {"train/rewards/chosen", "train/rewards/margins"} <= measured[-1].keys()


@pytest.fixture
def counted(monkeypatch) -> Iterator[list[Forward]]:
    """The forward passes that a meter is told of."""
    found: list[Forward] = []
    add = Meter.add_forward
    monkeypatch.setattr(Meter, "add_forward", lambda meter, forward: (found.append(forward), add(meter, forward)))
    yield found


def test_a_reference_model_costs_flops_and_trains_on_no_token(saved, tokenizer, tmp_path, counted):
    train_dpo(MyDPO, saved, tokenizer, tmp_path, max_steps=1)
    assert [forward.with_backward for forward in counted].count(True) == 2  # micro-batches
    assert [forward.with_backward for forward in counted].count(False) == 2
    work = [(forward.with_backward, forward.count()) for forward in counted]
    assert all(one.model_flops > 0 and (one.useful_tokens > 0) == trained for trained, one in work)


class Distils(Profiled, Trainer):
    """The loss of a student beside a forward pass of its teacher, which is another model."""

    teacher: Any

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            self.teacher(**inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_two_models_are_those_executed(checkpointing, tokenizer, tmp_path, counted):
    """Against torch's counter, which sees each operator. Rows are of one length: nothing is masked."""
    trainer: Any = plain_trainer(Distils, tokenizer, tmp_path, max_steps=1, gradient_checkpointing=checkpointing)
    trainer.teacher = build_qwen2(tokenizer, use_sliding_window=False).eval()
    executed = measure_flops(trainer.train)
    assert sum(forward.count().hardware_flops for forward in counted) == pytest.approx(executed, rel=0.005)


def build_rows(tokenizer: Any) -> Dataset:
    def encode(question: str, answer: str) -> dict[str, list[int]]:
        ids = tokenizer(f"{question} {answer}")["input_ids"][:40]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids}

    return Dataset.from_list([encode(*chat) for chat in CHATS if len(" ".join(chat)) >= 40])


def plain_trainer(kind: type[Trainer], tokenizer: Any, path: Path, **options: Any) -> Trainer:
    args = TrainingArguments(output_dir=str(path), **(COMMON | options))
    rows = build_rows(tokenizer)
    return kind(build_qwen2(tokenizer), args, train_dataset=rows, eval_dataset=rows)


STRAIGHT = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_stock_trainer_with_evaluation_checkpoints_and_resume(checkpointing, tokenizer, tmp_path):
    options = STRAIGHT | {"gradient_checkpointing": checkpointing}
    stock = plain_trainer(Trainer, tokenizer, tmp_path / "stock", **options)
    stock.train()
    mine = plain_trainer(ProfiledTrainer, tokenizer, tmp_path / "mine", **options)
    mine.add_callback(Counts())
    mine.train()
    keys = ("loss", "eval_loss", "grad_norm", "learning_rate")
    logs = [[{key: entry.get(key) for key in keys} for entry in one.state.log_history] for one in (stock, mine)]
    assert logs[0] == logs[1]
    check_records(tmp_path / "mine", mine)
    straight = read_records(tmp_path / "mine")
    assert [record["step"] for record in straight if names.EVAL_LOSS in record] == [2, 4]

    resumed = plain_trainer(ProfiledTrainer, tokenizer, tmp_path / "mine", **options)
    resumed.add_callback(counts := Counts())
    resumed.train(resume_from_checkpoint=str(tmp_path / "mine" / "checkpoint-2"))
    assert losses(resumed)[-2:] == losses(stock)[-2:]
    records = read_records(tmp_path / "mine")
    assert [record["step"] for record in records] == [record["step"] for record in straight]
    assert [record["tokens"] for record in records] == [record["tokens"] for record in straight]
    assert counts.steps == 4
    assert records[:2] == straight[:2] and records[2]["time_s"] > straight[1]["time_s"]


def test_records_of_an_earlier_training_are_kept(tokenizer, tmp_path):
    for steps in (1, 2):
        plain_trainer(ProfiledTrainer, tokenizer, tmp_path, max_steps=steps).train()
    assert [record["step"] for record in read_records(tmp_path) if names.TRAIN_LOSS in record] == [1, 2]
    assert [record["step"] for record in read_records(tmp_path / "records.old-1") if names.TRAIN_LOSS in record] == [1]


def test_files_of_the_user_with_such_names_stay(tokenizer, tmp_path):
    (tmp_path / "config.yaml").write_text("mine\n")
    plain_trainer(ProfiledTrainer, tokenizer, tmp_path, max_steps=1).train()
    assert (tmp_path / "config.yaml").read_text() == "mine\n" and not list(tmp_path.glob("records.old-*"))


def test_a_summary_of_the_user_is_moved_and_kept(tokenizer, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    plain_trainer(ProfiledTrainer, tokenizer, tmp_path, max_steps=1).train()
    assert (tmp_path / "records.old-1" / "summary.json").read_text() == "{}"
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"


class OwnStep(ProfiledTrainer):
    """A step of its own, which never comes to `compute_loss`."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_step_without_compute_loss_is_measured(tokenizer, tmp_path):
    trainer = plain_trainer(OwnStep, tokenizer, tmp_path)
    trainer.train()
    measured = [record for record in read_records(tmp_path) if names.PERF_STEP_MS in record]
    assert len(measured) == 4
    for record in measured:
        assert record[names.phase_key(names.FORWARD)] > 0
        assert record[names.PERF_MFU_PCT] > 0 and record[names.PERF_TOKENS_PER_SECOND] > 0
    plain_trainer(ProfiledTrainer, tokenizer, tmp_path / "usual").train()
    assert [record["tokens"] for record in read_records(tmp_path)] == [
        record["tokens"] for record in read_records(tmp_path / "usual")
    ]


class Doubles(torch.nn.Module):
    """A model that has no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.inner(x).squeeze(-1) - labels).square().mean()}


def test_rates_of_a_model_without_tokens_are_absent(tmp_path):
    rows = Dataset.from_list([{"x": [float(n), 1.0], "labels": 2.0 * n} for n in range(8)])
    args = TrainingArguments(output_dir=str(tmp_path), **COMMON)
    ProfiledTrainer(Doubles(), args, train_dataset=rows).train()
    measured = [record for record in read_records(tmp_path) if names.PERF_STEP_MS in record]
    assert measured and not any(names.PERF_TOKENS_PER_SECOND in record for record in measured)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_nothing_warns_of_its_removal(tokenizer, tmp_path):
    plain_trainer(ProfiledTrainer, tokenizer, tmp_path, max_steps=1).train()


@pytest.mark.parametrize(
    ("mine", "stock"), [(ProfiledTrainer, Trainer), (MySFT, SFTTrainer), (MyDPO, DPOTrainer), (OwnStep, Trainer)]
)
def test_the_signature_is_that_of_the_trainer(mine, stock):
    assert inspect.signature(mine).parameters.keys() == inspect.signature(stock).parameters.keys()


def test_a_second_call_of_train_measures_each_phase_once(tokenizer, tmp_path):
    trainer = plain_trainer(ProfiledTrainer, tokenizer, tmp_path, max_steps=2)
    trainer.train()
    first = read_records(tmp_path)
    trainer.train()
    check_records(tmp_path, trainer)
    assert [record["tokens"] for record in read_records(tmp_path)] == [record["tokens"] for record in first]
    assert json.loads((tmp_path / "summary.json").read_text())["tokens"] == first[-1]["tokens"]


class Fails(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise UserError("the cable was pulled")


def test_what_ends_a_training_is_in_its_records(tokenizer, tmp_path):
    trainer = plain_trainer(ProfiledTrainer, tokenizer, tmp_path)
    trainer.add_callback(Fails())
    with pytest.raises(UserError, match="cable"):
        trainer.train()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "UserError: the cable was pulled")


def test_a_model_whose_flops_are_not_known_gets_phases_and_one_line(tokenizer, tmp_path, caplog):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    options: dict[str, Any] = {**COMMON, "max_steps": 1}
    args = TrainingArguments(output_dir=str(tmp_path), **options)
    trainer = ProfiledTrainer(BertForMaskedLM(config), args, train_dataset=build_rows(tokenizer))
    with caplog.at_level(logging.WARNING, logger="redline.train"):
        trainer.train()
    (line,) = [line for line in caplog.messages if "MFU" in line]
    assert line.startswith("BertForMaskedLM: no MFU")
    (record,) = [record for record in read_records(tmp_path) if names.PERF_STEP_MS in record]
    assert names.PERF_MFU_PCT not in record and record[names.PERF_TOKENS_PER_SECOND] > 0


def test_nothing_is_measured_while_paused(tokenizer, tmp_path):
    trainer: Any = plain_trainer(ProfiledTrainer, tokenizer, tmp_path)
    trainer.train()
    meter, resume = trainer.meter, trainer.pause_measuring()
    assert trainer.meter is None
    with trainer.span(names.FORWARD):
        pass
    resume()
    assert trainer.meter is meter and trainer.last_measured_step == 4
