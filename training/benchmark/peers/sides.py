"""The sides: one object each, which knows its own facts. To add one, add it to `SIDES` with a test."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from data_prep.errors import UserError
from training.benchmark.compare import TRAIN
from training.benchmark.peers.inputs import PeerRun
from training.benchmark.peers.reading import (
    Measurement,
    read_litgpt,
    read_nanogpt,
    read_redline,
    read_script,
)
from training.benchmark.peers.situations import LOG_EVERY, WARMUP_STEPS, PeerSettings
from training.config.deepspeed_json import DEEPSPEED_DIR
from training.launch import count_cores

SCRIPTS = "training.benchmark.peers.scripts"
SCRIPTS_DIR = Path(__file__).with_name("scripts")
ROOT = Path(__file__).resolve().parents[3]
ZERO2_JSON = DEEPSPEED_DIR / "zero2_bf16.json"
UINT16_SIZE = 2**16
PARAMETERS_TOLERANCE = 0.05
# Fields of TrainingArguments that only say less: nothing is sent anywhere, and the log has no progress bar.
QUIET = {"logging_steps": LOG_EVERY, "disable_tqdm": True}


@dataclass(frozen=True)
class PeerLaunch:
    """A command, the variables added to its environment, and the folder that it runs in (None: here)."""

    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


class PeerSide(Protocol):
    """What Redline is compared with, or Redline itself."""

    @property
    def name(self) -> str:
        """As `--sides` takes it."""
        ...

    @property
    def what(self) -> str:
        """The setting, in words."""
        ...

    @property
    def situations(self) -> tuple[str, ...]:
        """Names of the situations that it can be measured in."""
        ...

    @property
    def same_training(self) -> bool:
        """Whether it starts from Redline's weights and reads Redline's rows in order, so that losses must agree."""
        ...

    def obstacle(self, settings: PeerSettings) -> str | None:
        """What keeps it from running here, in words."""
        ...

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """Write what this run needs to its place; its command."""
        ...

    def read(self, run: PeerRun, log: Path, peak_bytes: int) -> Measurement:
        """The result. peak_bytes: most resident memory of one of its processes, as seen from outside."""
        ...


@dataclass(frozen=True)
class RedlineSide:
    """`training/train.py` with everything measured and logged as usual."""

    name: str = "redline"
    what: str = "`training/train.py`, bf16, everything measured and logged"
    situations: tuple[str, ...] = ("pretrain", "chat", "zero2", "vocabulary", "evaluation")
    same_training: bool = True

    def obstacle(self, settings: PeerSettings) -> str | None:
        """None: it is the base of all ratios."""
        return None

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """The recipe as it is, or with DeepSpeed's launcher and JSON where there are several ranks."""
        arguments = [str(TRAIN), *run.arguments, f"training.output_dir={run.output / 'run'}"]
        if run.situation.ranks == 1:
            return PeerLaunch([sys.executable, *arguments])
        return _launch_ranks(run, [*arguments, "--deepspeed", str(ZERO2_JSON)])

    def read(self, run: PeerRun, log: Path, peak_bytes: int) -> Measurement:
        """From metrics.jsonl; the model that the run has saved is removed."""
        shutil.rmtree(run.output / "run" / "final", ignore_errors=True)
        return read_redline(run.output / "run", WARMUP_STEPS)


class ScriptSide:
    """A side that one of our scripts trains: `scripts/`."""

    def read(self, run: PeerRun, log: Path, peak_bytes: int) -> Measurement:
        """From the script's JSON."""
        return read_script(run.output / "result.json", run.count_timed_tokens())


@dataclass(frozen=True)
class StockSide(ScriptSide):
    """The stock Hugging Face Trainer. settings: fields of TrainingArguments that differ from the shared ones."""

    name: str
    what: str
    situations: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    with_tcmalloc: bool = False
    same_training: bool = True

    def obstacle(self, settings: PeerSettings) -> str | None:
        """Only tcmalloc may be missing."""
        if self.with_tcmalloc and find_tcmalloc(settings) is None:
            return "tcmalloc is not installed here, and no --tcmalloc PATH was given"
        return None

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """`scripts/stock.py`, under DeepSpeed's launcher where there are several ranks."""
        settings = {**build_trainer_settings(run), **self.settings}
        padded = ["--padded"] if run.situation.padded else []
        if run.situation.ranks > 1:
            settings["deepspeed"] = str(ZERO2_JSON)
            return _launch_ranks(run, ["--module", f"{SCRIPTS}.stock", *list_script_arguments(run, settings), *padded])
        environment = {"PYTHONPATH": _python_path()}
        if self.with_tcmalloc:
            environment["LD_PRELOAD"] = find_tcmalloc(run.settings) or ""
        command = [sys.executable, "-m", f"{SCRIPTS}.stock", *list_script_arguments(run, settings), *padded]
        return PeerLaunch(command, environment)


@dataclass(frozen=True)
class TrlSide(ScriptSide):
    """TRL's SFTTrainer, which has a memory-saving default that costs time; it is off, as on the other sides."""

    name: str = "trl"
    what: str = "TRL `SFTTrainer`, packing (`wrapped`: `bfd` needs FlashAttention), `bf16=True`"
    situations: tuple[str, ...] = ("pretrain",)
    same_training: bool = True

    def obstacle(self, settings: PeerSettings) -> str | None:
        """TRL is in requirements-dev.txt only."""
        return None if importlib.util.find_spec("trl") else "TRL is not installed: pip install trl"

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """`scripts/sft.py`."""
        settings = {**build_trainer_settings(run), "max_length": run.situation.shape(run.settings)[1]}
        command = [sys.executable, "-m", f"{SCRIPTS}.sft", *list_script_arguments(run, settings)]
        return PeerLaunch(command, {"PYTHONPATH": _python_path()})


@dataclass(frozen=True)
class LitgptSide:
    """LitGPT, which always compiles. It draws its own weights, so its loss is another one."""

    name: str = "litgpt"
    what: str = "`litgpt pretrain`, `--precision bf16-mixed` (it compiles the model), the same shape and rows"
    situations: tuple[str, ...] = ("pretrain",)
    same_training: bool = False

    def obstacle(self, settings: PeerSettings) -> str | None:
        """LitGPT needs other versions of shared packages, so it is often in an environment of its own."""
        if settings.litgpt or importlib.util.find_spec("litgpt"):
            return None
        return "LitGPT is not installed here, and no --litgpt PYTHON of another environment was given"

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """The configuration file that `litgpt pretrain --config` takes."""
        run.output.mkdir(parents=True, exist_ok=True)
        config = run.output / "pretrain.yaml"
        config.write_text(yaml.safe_dump(build_litgpt_config(run)))
        python = run.settings.litgpt or sys.executable
        return PeerLaunch(
            [python, "-m", "litgpt", "pretrain", "--config", str(config)], {"PYTHONPATH": str(SCRIPTS_DIR)}
        )

    def read(self, run: PeerRun, log: Path, peak_bytes: int) -> Measurement:
        """From the CSV of its logger; the model that it has saved is removed."""
        shutil.rmtree(run.output / "out" / "final", ignore_errors=True)
        (metrics,) = run.output.glob("out/logs/**/metrics.csv")
        return read_litgpt(metrics, WARMUP_STEPS, run.count_timed_tokens(), peak_bytes)


@dataclass(frozen=True)
class NanogptSide:
    """nanoGPT: a GPT-2 of about as many parameters, on rows that it draws from the same tokens at random."""

    name: str = "nanogpt"
    what: str = (
        "nanoGPT `train.py --device=cpu --compile=False --dtype=bfloat16` (on a CPU it ignores `dtype` and computes in "
        "float32), a GPT-2 of as many parameters within 5 %"
    )
    situations: tuple[str, ...] = ("pretrain",)
    same_training: bool = False

    def obstacle(self, settings: PeerSettings) -> str | None:
        """It is a checkout, not a package."""
        if settings.nanogpt is None:
            return "no --nanogpt CHECKOUT was given"
        if not (settings.nanogpt / "train.py").is_file():
            return f"--nanogpt {settings.nanogpt}: it has no train.py"
        if settings.vocab_size > UINT16_SIZE:
            return f"its token files are uint16, and the vocabulary size is {settings.vocab_size:,}"
        return None

    def prepare(self, run: PeerRun) -> PeerLaunch:
        """Its token files, in a folder that links to the checkout, which is not written to."""
        assert run.settings.nanogpt is not None
        data = run.output / "data" / "peers"
        data.mkdir(parents=True, exist_ok=True)
        for name in ("configurator.py", "model.py", "train.py"):
            (run.output / name).symlink_to((run.settings.nanogpt / name).resolve())
        ids = np.load(run.inputs / "train" / "ids.npy").astype(np.uint16)
        for name in ("train", "val"):
            ids.tofile(data / f"{name}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": run.model["vocab_size"]}))
        flags = [f"--{name}={value}" for name, value in build_nanogpt_flags(run).items()]
        return PeerLaunch([sys.executable, "train.py", *flags], folder=run.output)

    def read(self, run: PeerRun, log: Path, peak_bytes: int) -> Measurement:
        """From what it prints."""
        return read_nanogpt(log, WARMUP_STEPS, run.count_timed_tokens(), peak_bytes)


SIDES: tuple[PeerSide, ...] = (
    RedlineSide(),
    StockSide(
        "stock_float32", "stock `transformers.Trainer`, float32 (its default)", ("pretrain",), settings={"bf16": False}
    ),
    StockSide("stock_bf16", "stock `Trainer`, `bf16=True`", ("pretrain", "chat", "zero2", "vocabulary", "evaluation")),
    StockSide("stock_tcmalloc", "stock `Trainer`, `bf16=True`, tcmalloc preloaded", ("pretrain",), with_tcmalloc=True),
    TrlSide(),
    LitgptSide(),
    NanogptSide(),
)


def build_trainer_settings(run: PeerRun) -> dict[str, Any]:
    """Fields of TrainingArguments for the scripts."""
    here = {"output_dir": str(run.output / "out"), "use_cpu": run.settings.on_cpu}
    return {**run.situation.build_arguments(run.settings), **QUIET, **here}


def list_script_arguments(run: PeerRun, settings: Mapping[str, Any]) -> list[str]:
    """The arguments that all scripts take."""
    places = ["--inputs", str(run.inputs), "--output", str(run.output / "result.json")]
    return [*places, "--settings", json.dumps(settings), "--warmup", str(WARMUP_STEPS)]


def _launch_ranks(run: PeerRun, arguments: list[str]) -> PeerLaunch:
    """Under the deepspeed launcher. Ranks share the cores of a CPU: torch would give all of them to each."""
    environment = {"PYTHONPATH": _python_path()}
    if run.settings.on_cpu:
        threads = str(max(1, count_cores() // run.situation.ranks))
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.exists() else "deepspeed"
    command = [launcher, "--num_gpus", str(run.situation.ranks), "--master_port", port, *arguments]
    return PeerLaunch(command, environment)


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def find_tcmalloc(settings: PeerSettings) -> str | None:
    """The library that was given, or that of this machine."""
    if settings.tcmalloc:
        return settings.tcmalloc
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


def build_litgpt_config(run: PeerRun) -> dict[str, Any]:
    """The shape of the exported model, the shared arguments and the exported rows, under LitGPT's names."""
    model, shared = run.model, run.situation.build_arguments(run.settings)
    steps, seq_len, batch = run.situation.shape(run.settings)
    rate = shared["learning_rate"]
    heads = model["num_attention_heads"]
    return {
        "model_name": "Qwen2.5-0.5B",
        "model_config": {
            "name": "peers", "block_size": seq_len, "vocab_size": model["vocab_size"],
            "padded_vocab_size": model["vocab_size"], "n_layer": model["num_hidden_layers"],
            "n_embd": model["hidden_size"], "n_head": heads,
            "n_query_groups": model.get("num_key_value_heads") or heads,
            "head_size": model.get("head_dim") or model["hidden_size"] // heads,
            "intermediate_size": model["intermediate_size"], "rotary_percentage": 1.0, "parallel_residual": False,
            "bias": False, "attn_bias": model["model_type"] == "qwen2", "norm_class_name": "RMSNorm",
            "norm_eps": model["rms_norm_eps"], "mlp_class_name": "LLaMAMLP",
        },
        "out_dir": str(run.output / "out"),
        "precision": "bf16-mixed",
        "data": {"class_path": "litgpt_rows.LitgptRows", "init_args": {"path": str(run.inputs)}},
        "train": {
            "save_interval": None, "log_interval": 1, "global_batch_size": batch, "micro_batch_size": batch,
            "max_tokens": steps * batch * seq_len, "max_norm": shared["max_grad_norm"], "min_lr": rate,
            "lr_warmup_steps": 0, "tie_embeddings": model["tie_word_embeddings"], "max_seq_length": seq_len,
        },
        "eval": {"interval": 10**9, "max_iters": 1, "final_validation": False},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {
                "lr": rate, "weight_decay": shared["weight_decay"],
                "betas": [shared["adam_beta1"], shared["adam_beta2"]],
            },
        },
        "devices": 1,
        "logger_name": "csv",
        "seed": shared["seed"],
    }  # fmt: skip


def build_nanogpt_flags(run: PeerRun) -> dict[str, Any]:
    """The shared arguments under nanoGPT's names. It counts steps from 0, and the last one is `max_iters`."""
    shared = run.situation.build_arguments(run.settings)
    steps, seq_len, batch = run.situation.shape(run.settings)
    layers, width = find_gpt2_shape(run.model, seq_len)
    heads = run.model["num_attention_heads"]
    return {
        "out_dir": "out", "dataset": "peers", "eval_interval": 10**9, "eval_iters": 1, "always_save_checkpoint": False,
        "gradient_accumulation_steps": 1, "batch_size": batch, "block_size": seq_len, "n_layer": layers,
        "n_head": next(count for count in range(heads, 0, -1) if width % count == 0), "n_embd": width,
        "learning_rate": shared["learning_rate"], "max_iters": steps - 1, "decay_lr": False,
        "weight_decay": shared["weight_decay"], "beta1": shared["adam_beta1"], "beta2": shared["adam_beta2"],
        "grad_clip": shared["max_grad_norm"], "device": "cpu" if run.settings.on_cpu else "cuda", "compile": False,
        "dtype": "bfloat16",
    }  # fmt: skip


def find_gpt2_shape(model: Mapping[str, Any], seq_len: int) -> tuple[int, int]:
    """Layers and width of a GPT-2 with as many parameters within 5 %, of a width as near as possible."""
    wanted, width, vocab_size = model["parameters"], model["hidden_size"], model["vocab_size"]
    grain = max(8, width // 64 * 8)
    for step in range(16):
        for candidate in (width + grain * step, width - grain * step):
            if candidate < grain:
                continue
            layer = 12 * candidate**2 + 2 * candidate
            layers = max(1, round((wanted - (vocab_size + seq_len) * candidate) / layer))
            if abs((vocab_size + seq_len) * candidate + layers * layer - wanted) <= PARAMETERS_TOLERANCE * wanted:
                return layers, candidate
    raise UserError(f"no GPT-2 of a width near {width} has {wanted:,} parameters within {PARAMETERS_TOLERANCE:.0%}")
