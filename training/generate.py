"""Let a trained model write.

    python -m training.generate --model runs/minigpt_quickstart/final --prompt "def read_lines(path):"
    python -m training.generate --model runs/chats/final --chat --prompt "What is 7 times 8?"
    python -m training.generate --model runs/chats/final --chat                       a conversation, on a terminal
    python -m training.generate --model runs/chats/final --chat --prompts questions.jsonl --batch_size 8 > answers.jsonl

`--model` is a directory of a model or an adapter. Text streams to stdout as it is written;
the speed goes to stderr. `--chat` puts the prompt into the model's chat template and lets the assistant answer.
`--prompts` takes a .txt file (a prompt a line) or JSON lines with `prompt` or `messages`, and writes JSON lines. With
`--temperature 0` it is greedy, and repeats itself exactly; otherwise `--seed` makes it repeat itself.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.errors import UserError
from training.inference.prompts import Messages, Prompt, check_prompt, read_prompts

if TYPE_CHECKING:
    from training.inference.answering import Answerer


@with_exit_code
def main(argv: Sequence[str] | None = None) -> int:
    """Generate text; the exit code."""
    args = _parse(argv)
    for name in ("transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # theirs to follow
    _run(args)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    count = _number(int, lambda value: value > 0, "a number above 0")
    parser = CommandParser(prog=program_name("training.generate"), description="Let a trained model write.")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model or an adapter")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--prompt", help="left out with --chat on a terminal: a conversation")
    given.add_argument("--prompts", type=Path, help=".txt: a prompt a line; .jsonl: `prompt` or `messages` a line")
    parser.add_argument("--chat", action="store_true", help="prompts are a user's messages, by the chat template")
    parser.add_argument("--system", help="system message, with --chat")
    parser.add_argument("--max_new_tokens", type=count, help="default 128, of a chat 1024")
    parser.add_argument(
        "--temperature", type=_number(float, lambda t: 0 <= t < math.inf, "0 or more"), default=0.8, help="0: greedy"
    )
    parser.add_argument("--top_k", type=_number(int, lambda k: k >= 0, "0 or more"), default=50, help="0: all")
    parser.add_argument(
        "--top_p", type=_number(float, lambda p: 0 < p <= 1, "above 0 and at most 1"), default=1.0, help="1: all"
    )
    parser.add_argument("--batch_size", type=count, default=8, help="prompts of --prompts at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust_remote_code", action="store_true")
    return parser.parse_args(argv)


def _number(convert: Callable[[str], Any], is_good: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """A reader of an argument that refuses what is not `what`."""

    def read(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not is_good(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


def _run(args: argparse.Namespace) -> None:
    """All errors of the arguments are reported before torch is loaded."""
    if args.system is not None and not args.chat:
        raise UserError("--system: is for --chat")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    prompts: list[Prompt] = []
    if args.prompts is not None:
        prompts = read_prompts(args.prompts, chat=args.chat, system=system)
    elif args.prompt is not None:
        prompts = [check_prompt(args.prompt, "--prompt", chat=args.chat, system=system)]
    elif not (args.chat and sys.stdin.isatty()):
        raise UserError(
            "--prompt: give the text to continue, or --prompts FILE (or --chat on a terminal for a conversation)"
        )
    from training.inference.answering import Answerer

    answerer = Answerer.load(args)
    if args.prompts is not None:
        answerer.answer_all(prompts, args.batch_size)
    elif prompts:
        answerer.stream(prompts[0])
    else:
        _talk(answerer, system)


def _talk(answerer: Answerer, system: Messages) -> None:
    """A conversation; an empty line or the end of the input ends it."""
    messages = list(system)
    print("An empty line ends the conversation.", file=sys.stderr)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": answerer.stream(messages)})


if __name__ == "__main__":
    sys.exit(run_command(main, prints=True))
