"""`did you mean X?`, only where X is nearly what was written.

A suggestion that means something else is worse than none (`--lr` is not `--r`), so the distance is that of slips of
the pen: one edit from four letters on, two from twelve. An edit inserts, drops or changes a letter, or swaps two
neighbours (optimal string alignment). A long beginning that only one known word has is taken for a word cut short.
"""

from collections.abc import Iterable

LETTERS_FOR_EDITS = (4, 12)  # least length of the longer word for one edit, for two
LETTERS_OF_A_BEGINNING = 8


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing when no known word is nearly this one."""
    near = find_near(word, known)
    return f": did you mean {near}?" if near else ""


def find_near(word: str, known: Iterable[str]) -> str | None:
    """The known word that differs least, case aside, within the edits that its length allows; ties by alphabet."""
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
    """Optimal string alignment distance."""
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
