"""Detects the delimiter of a CSV or TSV file from its first rows; delimiters within quotes do not count.

Excel writes semicolons in countries with a decimal comma; other programs write tabs or bars. A delimiter fits if the
header has two or more fields and the rows have as many. So a comma within numbers or texts does not fit. The delimiter
that belongs to the file suffix is preferred if it fits, or if no other fits.
"""

import csv
import io
import re
from functools import lru_cache

from data_prep.read.files import BOM, READ_ERRORS, open_binary

CANDIDATES = (",", ";", "\t", "|")
SNIFFED_BYTES = 64 * 2**10
SNIFFED_ROWS = 100
FITTING_SHARE = 0.9
EXCEL_MARK = re.compile(r'"?sep=(.)"?\r?$')


def default_delimiter(format: str) -> str:
    """Return the delimiter that belongs to a format."""
    return "\t" if format == "tsv" else ","


@lru_cache(maxsize=256)
def sniff_delimiter(path: str, format: str) -> str:
    """Detect the delimiter, one character. Excel's `sep=;` line has priority.

    A file that cannot be read gets the default; the reader reports the error.
    """
    try:
        with open_binary(path) as file:
            data = file.read(SNIFFED_BYTES)
    except READ_ERRORS:
        return default_delimiter(format)
    text = data.removeprefix(BOM).decode(errors="replace")
    if mark := EXCEL_MARK.match(text.partition("\n")[0]):
        return mark[1]
    if len(data) == SNIFFED_BYTES:
        text = text[: text.rfind("\n") + 1]
    own = default_delimiter(format)
    fits = {delimiter: _measure_fit(text, delimiter) for delimiter in CANDIDATES}
    if fits[own] >= FITTING_SHARE:
        return own
    best = max(fits, key=lambda delimiter: fits[delimiter])
    return best if fits[best] >= FITTING_SHARE else own


def _measure_fit(text: str, delimiter: str) -> float:
    """Return the share of the first rows that have as many fields as the header; 0 if the header has only one."""
    widths: list[int] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if row:
                widths.append(len(row))
            if len(widths) > SNIFFED_ROWS:
                break
    except csv.Error:
        pass
    if len(widths) < 2 or widths[0] < 2:
        return float(bool(widths) and widths[0] > 1)
    return sum(width == widths[0] for width in widths[1:]) / (len(widths) - 1)
