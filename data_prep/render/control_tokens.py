"""Special tokens that are spelled in what a record says.

They are data: a user who types `<|im_end|>` ends no turn. While a conversation is rendered each of them is replaced by
a run of one private-use character, as long as the token, so that neither a template nor the search for turns takes it
for a mark; the rendered text then shows where they stand.
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
        """The first special token in a text."""
        found = self.pattern.search(text) if self.pattern else None
        return found[0] if found else None

    def stand_in(self, token: str) -> str:
        """A text of the same length that is no special token."""
        return chr(FIRST_STAND_IN + self._numbers[token])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def hide(self, value: Any) -> Any:
        """A JSON value with stand-ins in all its texts. Raises RecordError where these could not be told again."""
        if isinstance(value, str):
            if STAND_INS.search(value):
                raise RecordError("a special token is spelled in it, beside characters from U+F0000 on")
            return (
                self.pattern.sub(lambda found: self.stand_in(found[0]) * len(found[0]), value)
                if self.pattern
                else value
            )
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list) else value

    def reveal(self, text: str) -> tuple[str, list[CharSpan]]:
        """The text with its tokens again, and where they stand. Lengths do not change."""
        spans: list[CharSpan] = []

        def spell(found: re.Match[str]) -> str:
            token = self.tokens[ord(found[1]) - FIRST_STAND_IN]
            times = len(found[0]) // len(token)
            spans.extend((at, at + len(token)) for at in range(found.start(), found.end(), len(token)))
            return token * times

        return STAND_INS.sub(spell, text), spans

    def reveal_message(self, text: str) -> str:
        """The same for a message, in which `repr` has escaped stand-ins."""
        return self.reveal(ESCAPED.sub(lambda found: chr(int(found[1], 16)), text))[0]
