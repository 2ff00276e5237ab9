"""Let a trained model write.

    python -m training.generate --model runs/minigpt_quickstart/final --prompt "def read_lines(path):"

`--model` is a model or adapter directory, or a hub name in the local cache. With `--temperature 0` it is greedy, and
repeats itself exactly; otherwise `--seed` makes it repeat itself.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.generate", description="Let a trained model write.")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model or an adapter")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: greedy")
    parser.add_argument("--top_k", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust_remote_code", action="store_true")
    args = parser.parse_args(argv)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        print(args.prompt + write(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(args: argparse.Namespace) -> str:
    """The text that follows the prompt; the speed goes to stderr."""
    import torch
    from transformers import AutoTokenizer

    from training.metrics.flops import ModelFlops
    from training.models.trained import load_trained

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = load_trained(args.model, device=device, trust_remote_code=args.trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if not args.prompt:
        raise UserError("--prompt: is empty: give the text to go on from")
    inputs = tokenizer(args.prompt, return_tensors="pt", return_token_type_ids=False).to(device)
    torch.manual_seed(args.seed)
    sampling = {"do_sample": True, "temperature": args.temperature, "top_k": args.top_k}
    start = time.perf_counter()
    with torch.no_grad():
        ids = model.generate(
            **inputs,
            max_new_tokens=args.max_new_tokens,
            **(sampling if args.temperature > 0 else {"do_sample": False}),
        )[0]
    seconds = time.perf_counter() - start
    new = ids[inputs["input_ids"].shape[1] :]
    flops = ModelFlops.from_model(model).count_generation(len(ids) - len(new), len(new))
    rates = f"{len(new) / seconds:.1f} tokens/s, {flops / seconds / 1e9:.1f} GFLOP/s"
    print(f"{len(new)} tokens in {seconds:.2f} s ({rates})", file=sys.stderr)
    return tokenizer.decode(new, skip_special_tokens=True)


if __name__ == "__main__":
    sys.exit(main())
