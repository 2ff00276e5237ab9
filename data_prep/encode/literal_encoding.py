"""Encodes documents whose text contains special tokens: these become ordinary text, those of a chat template tokens.

A copy of the tokenizer does not recognise special tokens. In a chat, each special token of the template is replaced by
a stand-in, a private-use character that the copy knows as an added token with the same rules. So a document is encoded
in one piece, and the rest of its text is split and merged as usual.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from data_prep.encode.loss_runs import Ids, Offsets
from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.render.control_tokens import ControlTokens
from data_prep.render.documents import Document


class LiteralEncoder:
    """Finds the documents that need literal encoding, and encodes them one at a time with HF tokenizers (slow)."""

    def __init__(self, tokenizer: LoadedTokenizer):
        self._tokenizer = tokenizer
        self._control = ControlTokens(tuple(tokenizer.control_tokens))

    def find(self, documents: Sequence[Document], ids: Ids, offsets: Offsets) -> dict[int, str]:
        """Find documents of an encoded batch whose text contains special tokens; return the first token by number."""
        found = {
            i: document.text[slice(*document.spelled[0])] for i, document in enumerate(documents) if document.spelled
        }
        places = np.flatnonzero(self._is_control[ids]) if len(ids) else np.empty(0, np.int64)
        for i in np.unique(np.searchsorted(offsets, places, side="right") - 1).tolist():
            # The special token can also be that of an unknown character, which is not in the text.
            if not documents[i].is_chat and (token := self._control.find(documents[i].text)):
                found[i] = token
        return dict(sorted(found.items()))

    def encode(self, document: Document) -> tuple[Ids, Offsets]:
        """Return the ids of a document, and the characters [start, end) of each, shapes (tokens,) and (tokens, 2)."""
        if not document.is_chat:
            encoding = self._plain.encode(document.text, add_special_tokens=False)
            return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
        text, sizes = self._replace_written(document)
        encoding = self._with_stand_ins.encode(text, add_special_tokens=False)
        origin = np.concatenate([[0], np.cumsum(sizes)])
        ids = [self._stand_ins.get(number, number) for number in encoding.ids]
        return np.array(ids, np.int32), origin[np.array(encoding.offsets, np.int64).reshape(-1, 2)]

    def _replace_written(self, document: Document) -> tuple[str, NDArray[np.int64]]:
        """Replace the template's special tokens by stand-ins.

        Returns the text, and for each of its characters the number of original characters, shape (characters,).
        """
        pieces: list[str] = []
        sizes: list[int] = []
        at = 0
        for start, end in [*document.spelled, (len(document.text), len(document.text))]:
            self._replace_in(document.text[at:start], pieces, sizes)
            pieces.append(document.text[start:end])
            sizes += [1] * (end - start)
            at = end
        return "".join(pieces), np.array(sizes, np.int64)

    def _replace_in(self, text: str, pieces: list[str], sizes: list[int]) -> None:
        at = 0
        for found in self._control.pattern.finditer(text) if self._control.pattern else ():
            pieces += [text[at : found.start()], self._control.stand_in(found[0])]
            sizes += [1] * (found.start() - at) + [len(found[0])]
            at = found.end()
        pieces.append(text[at:])
        sizes += [1] * (len(text) - at)

    @cached_property
    def _is_control(self) -> NDArray[np.bool_]:
        mask = np.zeros(self._tokenizer.vocab_size, np.bool_)
        mask[list(self._tokenizer.control_tokens.values())] = True
        return mask

    @cached_property
    def _plain(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._tokenizer.backend.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _with_stand_ins(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._tokenizer.backend.to_str())
        copy.encode_special_tokens = True
        known = {token.content: token for token in self._tokenizer.backend.get_added_tokens_decoder().values()}
        copy.add_tokens([self._copy_rules(known[token]) for token in self._control.tokens])
        return copy

    def _copy_rules(self, token: AddedToken) -> AddedToken:
        rules = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        return AddedToken(self._control.stand_in(token.content), normalized=False, special=False, **rules)

    @cached_property
    def _stand_ins(self) -> dict[int, int]:
        """Ids of the special tokens by the id of their stand-in."""
        known = self._with_stand_ins.get_vocab(with_added_tokens=True)
        tokens = self._tokenizer.control_tokens.items()
        return {known[self._control.stand_in(token)]: number for token, number in tokens}
