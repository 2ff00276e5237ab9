"""Lists the members of a JSON object, by key and start of the value, in one pass and in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from data_prep.read.files import read_blocks
from data_prep.read.json_array import MEMBER_KEY
from data_prep.read.json_scan import split_elements

HEAD_BYTES = 2**16
MAX_MEMBERS = 1000


@dataclass
class Member:
    """A member of an object.

    start, line: byte offset and line at which its value begins.
    head: the first bytes of the value.
    """

    key: str
    start: int
    line: int
    head: bytes

    @property
    def opens(self) -> bytes:
        """The value's first byte: `[`, `{`, `"`, …"""
        return self.head[:1]

    @property
    def first(self) -> bytes:
        """The first byte of the value's first element."""
        return self.head[1:].lstrip()[:1]


@dataclass
class Outline:
    """The members of an object.

    members: the first MAX_MEMBERS; count: the number of all.
    all_objects: whether every value is an object.
    next_byte: the first byte after the object that is not white space; b"" if there is none.
    """

    members: list[Member] = field(default_factory=list)
    count: int = 0
    all_objects: bool = True
    next_byte: bytes = b""

    def find(self, test: Callable[[Member], bool]) -> list[str]:
        """Keys of the members that pass the test."""
        return [member.key for member in self.members if test(member)]


def outline_object(blocks: Iterable[bytes], offset: int, line: int) -> Outline:
    """List the members of an object; the blocks start after its bracket, at byte `offset` on line `line`."""
    outline = Outline()
    head, start, at_line, is_over = b"", offset, line, False
    for piece, end in split_elements(blocks):
        if is_over:
            outline.next_byte = outline.next_byte or piece.lstrip()[:1]
            if outline.next_byte:
                break
            continue
        head += piece[: HEAD_BYTES - len(head)]
        offset += len(piece) + len(end)
        line += piece.count(b"\n")
        if end:
            _add_member(outline, head, start, at_line)
            head, start, at_line = b"", offset, line
        is_over = end in (b"}", b"]")
    if not is_over:
        _add_member(outline, head, start, at_line)
    return outline


def _add_member(outline: Outline, head: bytes, start: int, line: int) -> None:
    key = MEMBER_KEY.match(head)
    if key is None:
        return
    member = Member(key[1].decode(errors="replace"), start + key.end(), line + key[0].count(b"\n"), head[key.end() :])
    outline.count += 1
    outline.all_objects = outline.all_objects and member.opens == b"{"
    if len(outline.members) < MAX_MEMBERS:
        outline.members.append(member)


def read_from(file: BinaryIO, offset: int) -> Iterator[bytes]:
    """Read blocks of a file, starting at byte `offset` of the decompressed data."""
    for block in read_blocks(file):
        if offset < len(block):
            yield block[offset:]
        offset = max(0, offset - len(block))
