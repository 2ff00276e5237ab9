"""A loaded model that answers prompts on stdout: one as it writes, or many as JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoTokenizer, TextStreamer
from transformers.utils.logging import disable_progress_bar

from data_prep.errors import UserError
from training.inference.prompts import Prompt
from training.metrics.flops import ModelFlops
from training.models.trained import load_trained
from training.models.writing import Sampling, Written, count_free_positions, render_prompt, write

TEXT_TOKENS = 128
CHAT_TOKENS = 1024


@dataclass(frozen=True)
class Answerer:
    """A model with its tokenizer, and how it writes."""

    model: Any
    tokenizer: Any
    sampling: Sampling

    @classmethod
    def load(cls, args: argparse.Namespace) -> Answerer:
        """From the arguments of `training.generate`. Raises UserError when model or tokenizer cannot be loaded, or has
        no chat template for `--chat`."""
        disable_progress_bar()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_trained(args.model, device=device, trust_remote_code=args.trust_remote_code)
        try:
            tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"{args.model}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
        if args.chat and not tokenizer.chat_template:
            raise UserError(f"{args.model}: no chat template: leave out --chat, and give the prompt as plain text")
        limit = args.max_new_tokens or (CHAT_TOKENS if args.chat else TEXT_TOKENS)
        return cls(model, tokenizer, Sampling(limit, args.temperature, args.top_k, args.top_p, args.seed))

    def stream(self, prompt: Prompt) -> str:
        """Prints what the model writes after `prompt` as it comes, a text with its prompt; returns it."""
        ids, sampling = self._encode(prompt)
        if isinstance(prompt, str):
            print(prompt, end="", flush=True)
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        start = time.perf_counter()
        [written] = write(self.model, [ids], sampling, streamer)
        self._tell_speed(ids, written, time.perf_counter() - start)
        return self._decode(written)

    def answer_all(self, prompts: Sequence[Prompt], batch_size: int) -> None:
        """Print a JSON line for each prompt, in order: the prompt, `text`, and `stopped` (it ended at a stop token)."""
        for begin in range(0, len(prompts), batch_size):
            batch = prompts[begin : begin + batch_size]
            encoded = [self._encode(prompt) for prompt in batch]
            sampling = min((sampling for _, sampling in encoded), key=lambda each: each.max_new_tokens)
            answers = write(self.model, [ids for ids, _ in encoded], sampling)
            for prompt, written in zip(batch, answers, strict=True):
                key = "prompt" if isinstance(prompt, str) else "messages"
                line = {key: prompt, "text": self._decode(written), "stopped": written.stopped}
                print(json.dumps(line, ensure_ascii=sys.stdout.encoding.lower() != "utf-8"), flush=True)
            done = begin + len(batch)
            print(f"{done} of {len(prompts)} prompts", file=sys.stderr)

    def _encode(self, prompt: Prompt) -> tuple[list[int], Sampling]:
        """Its ids, and how to write after them within the positions of the model."""
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt).input_ids
        else:
            try:
                ids = render_prompt(self.tokenizer, prompt)
            except Exception as error:  # a template is a program of someone else's: it may raise anything
                raise UserError(f"the chat template refuses the messages: {' '.join(str(error).split())}") from None
        free, sampling = count_free_positions(self.model, len(ids)), self.sampling
        if free == 0:
            raise UserError(f"the prompt takes {len(ids)} tokens, and the model has no more positions: shorten it")
        limit = sampling.max_new_tokens if free is None else min(sampling.max_new_tokens, free)
        return ids, replace(sampling, max_new_tokens=limit)

    def _decode(self, written: Written) -> str:
        return self.tokenizer.decode(written.ids, skip_special_tokens=True)

    def _tell_speed(self, ids: list[int], written: Written, seconds: float) -> None:
        count = len(written.ids)
        flops = ModelFlops.from_model(self.model).count_generation(len(ids), count)
        rates = f"{count / seconds:.1f} tokens/s, {flops / seconds / 1e9:.1f} GFLOP/s"
        end = "" if written.stopped else ", stopped by the length limit"
        print(f"{count} tokens in {seconds:.2f} s ({rates}){end}", file=sys.stderr)
