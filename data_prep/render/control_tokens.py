"""Handles special tokens that are written in the text of a record.

Such a token is data: a user who types `<|im_end|>` does not end a turn. Before a conversation is rendered, each of them
is replaced by a stand-in of the same length, a repeated private-use character. So neither the template nor the search
for turns treats it as a special token, and the rendered text shows where it is.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_prep.parse.kinds import RecordError
from data_prep.render.rendering import CharSpan

FIRST_STAND_IN = 0xF0000
ESCAPED = re.compile(r"\\U(000f[0-9a-f]{4})")
STAND_INS = re.compile(r"([\U000f0000-\U000ffffd])\1*")


@dataclass(frozen=True)
class ControlTokens:
    """The special tokens of a tokenizer."""

    tokens: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Matches any special token; None when there is none."""
        longest_first = sorted((token for token in self.tokens if token), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def find(self, text: str) -> str | None:
        """Return the first special token in a text; None if there is none."""
        found = self.pattern.search(text) if self.pattern else None
        return found[0] if found else None

    def stand_in(self, token: str) -> str:
        """Return the character whose repetition replaces a token."""
        return chr(FIRST_STAND_IN + self._numbers[token])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def hide(self, value: Any) -> Any:
        """Replace the special tokens in all texts of a JSON value by stand-ins.

        Raises RecordError when a text already contains characters that could be stand-ins.
        """
        if isinstance(value, str):
            if STAND_INS.search(value):
                raise RecordError(
                    "it contains a special token and private-use characters from U+F0000 on, which replace special "
                    "tokens during rendering: remove these characters"
                )
            return (
                self.pattern.sub(lambda found: self.stand_in(found[0]) * len(found[0]), value)
                if self.pattern
                else value
            )
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def reveal(self, text: str) -> tuple[str, list[CharSpan]]:
        """Put the tokens back into a rendered text; return it and the spans of the tokens. Lengths do not change."""
        spans: list[CharSpan] = []

        def spell(found: re.Match[str]) -> str:
            token = self.tokens[ord(found[1]) - FIRST_STAND_IN]
            times = len(found[0]) // len(token)
            spans.extend((at, at + len(token)) for at in range(found.start(), found.end(), len(token)))
            return token * times

        return STAND_INS.sub(spell, text), spans

    def reveal_message(self, text: str) -> str:
        """Put the tokens back into an error message, where `repr` has escaped the stand-ins."""
        return self.reveal(ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))[0]
