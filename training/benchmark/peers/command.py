"""Tokens a second of Redline and of what people use instead, on the same machine.

    python -m training.benchmark peers [--sides redline stock_bf16 …] [--situations pretrain chat …] [--rounds 6]
        [--steps 40] [--seq_len 512] [--batch 4] [--model m1|m2|124m|0.5b|1.5b|RECIPE] [--chat FILE.jsonl]
        [--tcmalloc PATH] [--litgpt PYTHON] [--nanogpt CHECKOUT] [--out PAGE.md]

Rows and initial weights are exported from Redline once, and the other sides read them in the same order. Each side runs
in processes of its own, in turn over the rounds. A side that cannot run here gets a row that says why. The scripts of
the other sides are in training/benchmark/peers/scripts. Runs stay in `--work_dir` with their logs. All six sides with
6 rounds of m1 take some two hours on 2 cores. `--picture` measures nothing: it draws the cost of a token against row
length and micro-batch from pages of several runs with different `--seq_len` and `--batch`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.isolation import ProcessRunner, run_fresh
from training.benchmark.page import PACKAGES, look_at_machine, write_page
from training.benchmark.peers.inputs import PeerInputs
from training.benchmark.peers.picture import write_picture
from training.benchmark.peers.report import format_page, format_table, list_unequal
from training.benchmark.peers.running import BASE, RunSide, SituationResult, measure_situation, run_peer
from training.benchmark.peers.sides import SIDES
from training.benchmark.peers.situations import LOG_EVERY, SITUATIONS, WARMUP_STEPS, PeerSettings

QWEN2 = {"model_type": "qwen2", "tie_word_embeddings": True, "max_position_embeddings": 4096}
# Name -> vocabulary size of the tokenizer, and shape; 0.5b and 1.5b are those of Qwen2.5, with its vocabulary.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "m1": (16_384, {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
                    "num_key_value_heads": 2}),
    "m2": (16_384, {"hidden_size": 256, "intermediate_size": 832, "num_hidden_layers": 8, "num_attention_heads": 4,
                    "num_key_value_heads": 2}),
    "124m": (50_304, {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                      "num_attention_heads": 12, "num_key_value_heads": 12}),
    "0.5b": (32_768, {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                      "num_attention_heads": 14, "num_key_value_heads": 2}),
    "1.5b": (32_768, {"vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                      "num_attention_heads": 12, "num_key_value_heads": 2}),
}  # fmt: skip


def main(argv: list[str], run: ProcessRunner = run_fresh, run_side: RunSide = run_peer) -> int:
    """Measure all situations, print their tables and write the page; the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="benchmark | %(message)s", stream=sys.stderr)
    try:
        if options.picture:
            write_picture(options.picture, options.out)
            print(options.out)
            return 0
        settings = build_settings(options)
        command = shlex.join(["python", "-m", "training.benchmark", "peers", *argv])
        machine = look_at_machine(command, (*PACKAGES, "trl", "litgpt"))
        inputs = PeerInputs(settings, run)
        sides = [side for side in SIDES if side.name in options.sides]
        chosen = [one for one in SITUATIONS if one.name in options.situations]
        results = [measure_situation(situation, sides, inputs, run_side) for situation in chosen]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"error: stopped; the runs are kept in {options.work_dir}", file=sys.stderr)
        return 130
    for result in results:
        print("", result.situation.name, *format_table(result), sep="\n")
    for sentence in list_unequal(results):
        print(f"warning: {sentence}", file=sys.stderr)
    write_page(
        options.out, format_page(results, machine), {"machine": machine, "situations": as_numbers(results, settings)}
    )
    print(f"\n{options.out}")
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("peers", __doc__)
    sides, situations = [side.name for side in SIDES], [one.name for one in SITUATIONS]
    parser.add_argument("--sides", nargs="+", choices=sides, default=sides, metavar="SIDE", help=" ".join(sides))
    parser.add_argument(
        "--situations", nargs="+", choices=situations, default=situations, metavar="NAME", help=" ".join(situations)
    )
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="runs of each side (default 6)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="optimizer steps of a run (default 40)")
    parser.add_argument("--seq_len", type=int, default=512, metavar="N", help="tokens of a row (default 512)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="rows of a micro-batch (default 4)")
    parser.add_argument(
        "--model",
        default="m1",
        help="m1 (Qwen2 of 31 M parameters, default), m2 (11 M), 124m, 0.5b, 1.5b, or the path of a recipe",
    )
    parser.add_argument("--chat", type=Path, metavar="FILE", help="chat data, for the situation `chat`")
    parser.add_argument("--tcmalloc", metavar="PATH", help="library to preload (default: that of the machine)")
    parser.add_argument("--litgpt", metavar="PYTHON", help="Python of an environment with LitGPT")
    parser.add_argument("--nanogpt", type=Path, metavar="CHECKOUT", help="checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--picture", nargs="+", type=Path, metavar="PAGE.md", help="draw what these pages measured")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/peers"), help="directory for inputs and runs")
    parser.add_argument("--out", type=Path, default=Path("runs/peers.md"), metavar="PAGE.md", help="page to write")
    return parser.parse_args(argv)


def build_settings(options: argparse.Namespace) -> PeerSettings:
    """Raises UserError for numbers that cannot be measured with, and for files that are not there."""
    if BASE not in options.sides:
        raise UserError(f"--sides: {BASE} is the base of all ratios: name it, too")
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds}: name 1 or more")
    if options.steps < 2 * WARMUP_STEPS or options.steps % LOG_EVERY:
        raise UserError(
            f"--steps {options.steps}: name a multiple of {LOG_EVERY}, {2 * WARMUP_STEPS} or more: the first "
            f"{WARMUP_STEPS} are not timed"
        )
    for name in ("tcmalloc", "litgpt", "nanogpt", "chat"):
        given = getattr(options, name)
        if given is not None and not Path(given).exists():
            raise UserError(f"--{name} {given}: it does not exist")
    if options.work_dir.is_dir() and any(options.work_dir.iterdir()):
        raise UserError(f"--work_dir {options.work_dir}: it is not empty; name another directory, or remove it")
    work_dir = options.work_dir.resolve()
    recipe, vocab_size = choose_recipe(options.model, work_dir)
    import torch

    return PeerSettings(
        recipe=("--config", str(recipe)),
        vocab_size=vocab_size,
        steps=options.steps,
        seq_len=options.seq_len,
        batch=options.batch,
        rounds=options.rounds,
        work_dir=work_dir,
        on_cpu=not torch.cuda.is_available(),
        chat=options.chat.resolve() if options.chat else None,
        tcmalloc=options.tcmalloc,
        litgpt=options.litgpt,
        nanogpt=options.nanogpt.resolve() if options.nanogpt else None,
    )


def choose_recipe(model: str, work_dir: Path) -> tuple[Path, int]:
    """The recipe of `--model`, written to `work_dir` for a preset, and the vocabulary size of a trained tokenizer."""
    if model in MODELS:
        vocab_size, shape = MODELS[model]
        work_dir.mkdir(parents=True, exist_ok=True)
        recipe = work_dir / f"{model}.yaml"
        recipe.write_text(yaml.safe_dump({"model": {"config": {**QWEN2, **shape}}}))
        return recipe, vocab_size
    if not Path(model).is_file():
        raise UserError(f"--model {model}: name one of {', '.join(MODELS)}, or the path of a recipe")
    from training.config import load_config

    return Path(model).resolve(), load_config(["--config", model]).config.tokenizer.vocab_size


def as_numbers(results: Sequence[SituationResult], settings: PeerSettings) -> list[dict[str, Any]]:
    """All numbers, for the JSON beside the page. shape: steps, tokens of a row, rows of a micro-batch."""
    return [
        {
            "name": result.situation.name,
            "shape": result.situation.shape(settings),
            "measured": {side: [asdict(one) for one in runs] for side, runs in result.measured.items()},
            "not measured": result.obstacles,
        }
        for result in results
    ]
