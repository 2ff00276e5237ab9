"""Suggests a known word for a misspelled one (`did you mean X?`), if the two are very similar.

A wrong suggestion is worse than none (`--lr` does not mean `--r`), so only typing errors are corrected: one edit in
words of four or more letters, two in words of twelve or more. An edit inserts, deletes or changes a letter, or swaps
two adjacent ones (optimal string alignment). A long prefix of exactly one known word counts as an abbreviation of it.
"""

from collections.abc import Iterable

LETTERS_FOR_EDITS = (4, 12)  # least length of the longer word for one edit, and for two
LETTERS_OF_A_BEGINNING = 8


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `: did you mean X?`, or "" if no known word is similar."""
    near = find_near(word, known)
    return f": did you mean {near}?" if near else ""


def find_near(word: str, known: Iterable[str]) -> str | None:
    """Return the most similar known word within the allowed edits, ignoring case; ties go by alphabet."""
    known = list(known)
    best: tuple[int, str] | None = None
    for candidate in known:
        length = max(len(word), len(candidate))
        allowed = sum(length >= least for least in LETTERS_FOR_EDITS)
        if abs(len(word) - len(candidate)) > allowed:
            continue
        edits = count_edits(word.lower(), candidate.lower())
        if edits <= allowed and (best is None or (edits, candidate) < best):
            best = (edits, candidate)
    longer = [candidate for candidate in known if candidate.startswith(word)]
    if best is None and len(longer) == 1 and len(word) >= LETTERS_OF_A_BEGINNING:
        return longer[0]
    return best[1] if best else None


def count_edits(a: str, b: str) -> int:
    """Return the optimal string alignment distance of two words."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            edits = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                edits = min(edits, before[j - 2] + 1)
            row.append(edits)
        before, last = last, row
    return last[-1]
