"""Chooses the chat template of a store: that of the recipe, else that of the tokenizer, else ChatML.

Syntax errors of the template are reported here, so that no record is blamed for them.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.errors import UserError
from data_prep.options import OnDropped, SpecialInText
from data_prep.parse.kinds import Shape
from data_prep.render.chat import ChatTemplate
from data_prep.render.chatml import CHATML
from data_prep.render.control_tokens import ControlTokens

logger = logging.getLogger("redline.data")

CHATML_NAME = {CHATML: "ChatML"}
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")


def read_template(option: str | None) -> str | None:
    """Read the template that the recipe names; None if it names none. Raises UserError when it cannot be read."""
    if option is None:
        return None
    if option == "chatml":
        return CHATML
    try:
        return Path(option).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template: {option} is neither chatml nor a readable Jinja file ({error})") from None


def build_template(
    source: str, tokenizer: LoadedTokenizer, on_dropped: OnDropped, in_text: SpecialInText
) -> ChatTemplate:
    """Build the chat template with the options of a recipe.

    If `source` is the tokenizer's own template and the tokenizer also has one named `tool_use`, that one renders
    conversations with tools, as in transformers.
    """
    control = ControlTokens(tuple(tokenizer.control_tokens))
    is_own = source == tokenizer.chat_template
    own = "the tokenizer's own chat template" if is_own else "the chat template"
    name = CHATML_NAME.get(source, own)
    chat = ChatTemplate(source, tokenizer.special_tokens, control, on_dropped, in_text, name)
    if not is_own or tokenizer.tool_template is None:
        return chat
    return replace(chat, with_tools=replace(chat, source=tokenizer.tool_template, name=f"{own} tool_use"))


def choose_template(option: str | None, tokenizer: LoadedTokenizer, shapes: Sequence[Shape]) -> str:
    """Choose the template, and log it if a source has conversations. Raises UserError when it is not valid Jinja."""
    template = read_template(option)
    found = template or tokenizer.chat_template or CHATML
    if all(shape.kind == "text" for shape in shapes):
        return found
    is_own = template is None and tokenizer.chat_template is not None
    origin = "data.chat_template" if template else "the tokenizer's own" if is_own else "ChatML"
    tools = ", tool_use for conversations with tools" if is_own and tokenizer.tool_template else ""
    logger.info("chat template: %s%s", origin, tools)
    where = f"tokenizer.path: {tokenizer.directory}" if is_own else f"data.chat_template: {option}"
    for template in (found, tokenizer.tool_template if is_own else None):
        if template and (fault := ChatTemplate(template, tokenizer.special_tokens).find_fault()):
            raise UserError(f"{where}: the chat template is not valid Jinja ({fault})")
    marks = [mark for mark in CHATML_MARKS if mark in found]
    if split := [mark for mark in marks if len(tokenizer.backend.encode(mark, add_special_tokens=False).ids) != 1]:
        what = f"{' and '.join(split)} of the chat template {'is' if len(split) == 1 else 'are'}"
        logger.warning("%s split into several tokens by %s, in every turn", what, tokenizer.directory)
    return found
