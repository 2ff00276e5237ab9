"""Prompts of `training.generate`: a text, or the messages of a conversation, checked before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from data_prep.errors import UserError

Messages = list[dict[str, Any]]
Prompt: TypeAlias = str | Messages


def check_prompt(value: Any, where: str, *, chat: bool, system: Messages) -> Prompt:
    """The prompt in `value` (text or messages), with `system` before it in a chat. Raises UserError naming `where`."""
    if isinstance(value, str):
        if not value.strip() if chat else not value:
            raise UserError(f"{where}: is empty: give the text to continue")
        return [*system, {"role": "user", "content": value}] if chat else value
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        raise UserError(f'{where}: neither a text nor messages like {{"role": "user", "content": "…"}}')
    if not chat:
        raise UserError(f"{where}: messages need --chat, which puts them into the model's chat template")
    return value if value[0]["role"] == "system" else [*system, *value]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def read_prompts(path: Path, *, chat: bool, system: Messages) -> list[Prompt]:
    """Prompts of a file: JSON lines (.jsonl, .json) with `prompt` or `messages`, of any other a text a line; empty
    lines are passed over. Raises UserError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path} cannot be read ({error})") from None
    is_json = path.suffix in (".jsonl", ".json", ".ndjson")
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"--prompts: {path} line {number}"
            value = _read_object(line, where) if is_json else line
            prompts.append(check_prompt(value, where, chat=chat, system=system))
    if not prompts:
        raise UserError(f"--prompts: {path} holds no prompt")
    return prompts


def _read_object(line: str, where: str) -> Any:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error.msg})") from None
    if isinstance(value, dict):
        for key in ("messages", "prompt"):
            if key in value:
                return value[key]
    raise UserError(f"{where}: an object with `prompt` or `messages` is wanted")
