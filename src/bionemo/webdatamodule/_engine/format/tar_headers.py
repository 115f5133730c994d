"""One tar header: its numbers, its checksum, its name, and the PAX and GNU records that may come before it.

Formats: POSIX.1-2017, ``pax``, "ustar Interchange Format" and "pax Header Block", for USTAR and PAX records;
the manual of GNU tar, "Basic Tar Format", for long names and base-256 numbers.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import numpy as np

from bionemo.webdatamodule.errors import CorruptShardError

if TYPE_CHECKING:
    import mmap

    from numpy.typing import NDArray

Tar: TypeAlias = "mmap.mmap | bytes"

BLOCK = 512
"""Headers and payloads begin at multiples of this many bytes."""

LONGEST_RECORDS = 1 << 20
"""Bytes of PAX records or of a GNU long name at most; more would only serve to fill memory."""

EXTENDING = frozenset((b"x", b"X", b"g", b"L", b"K"))
"""Kinds of headers that describe the member after them."""

_DELETE = "remove it with `tar --delete -f SHARD MEMBER`"
_SPARSE = "a sparse file"
_WITHOUT_SPARSE = "write the tar without --sparse"
_REFUSED = {
    b"1": ("a hard link to no member before it", "write the tar with --hard-dereference"),
    b"2": ("a symbolic link", "write the tar with --dereference"),
    b"3": ("a character device", _DELETE),
    b"4": ("a block device", _DELETE),
    b"5": ("a directory with content", _DELETE),
    b"6": ("a fifo", _DELETE),
    b"M": ("the rest of a file in a multi-volume archive", "write the tar without --multi-volume"),
    b"S": (_SPARSE, _WITHOUT_SPARSE),
}
_CHECKSUM = re.compile(rb"( *[0-7]+)(?:\x00 | \x00|[\x00 ])")
_PLACES = 8 ** np.arange(11)[::-1]  # of octal digits
_KINDS = np.array([kind[0] for kind in sorted(EXTENDING)], np.uint8)
_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")


def check_header(header: bytes, position: int) -> None:
    """Check the checksum of one header block: the sum of its bytes, the checksum's own eight taken as spaces.

    Adler-32 has that sum in its low half, as 1 plus the sum modulo 65521, and is the quickest way to it.

    Args:
        header: The block.
        position: Where it lies in the tar, for the message.

    Raises:
        CorruptShardError: If the checksum is wrong.
    """
    stored = checksum(header, position)
    summed = zlib.adler32(header[156:], zlib.adler32(header[:148])) & 0xFFFF
    if len(header) != BLOCK or (summed + 8 * 0x20 - 1 - stored) % 65521:
        fail(f"the header at byte {position} was changed: its checksum is wrong")


def sound_headers(headers: bytes) -> NDArray[np.bool_]:
    """Say of header blocks whether their checksums are right and written in the usual way.

    Args:
        headers: The blocks, one behind the other.

    Returns:
        bool, one for each block; :func:`check_header` decides of those that are not.
    """
    table = np.frombuffer(headers, np.uint8).reshape(-1, BLOCK)
    stored = table[:, 148:156]
    usual = ((stored[:, :6] & 0xF8) == ord("0")).all(axis=1) & (stored[:, 6] == 0) & (stored[:, 7] == ord(" "))
    summed = table.sum(axis=1, dtype=np.uint32) - stored.sum(axis=1, dtype=np.uint32) + 8 * 0x20
    sound: NDArray[np.bool_] = usual & ((stored[:, :6] & 7) @ _PLACES[-6:] == summed)
    return sound


def plain_sizes(headers: bytes) -> NDArray[np.int64]:
    """Return the sizes that header blocks give, where they are written in the usual way.

    Args:
        headers: The blocks, one behind the other.

    Returns:
        int64, one for each block; -1 where the size is written otherwise, or the header describes the next member.
    """
    table = np.frombuffer(headers, np.uint8).reshape(-1, BLOCK)
    digits, kinds = table[:, 124:135], table[:, 156]
    usual = ((digits & 0xF8) == ord("0")).all(axis=1) & ~np.isin(kinds, _KINDS)
    return np.where(usual, (digits & 7) @ _PLACES, -1)


def checksum(header: bytes, position: int) -> int:
    """Return the checksum in a header: octal digits, then a NUL, a space or one of each.

    Spaces stand for leading zeros, as Archive::Tar and tar programs older than POSIX write them, where the size is
    written so, too. Otherwise they are one changed bit away from zeros.
    """
    found = _CHECKSUM.fullmatch(header[148:156])
    if found is None or (found[1].startswith(b" ") and header[124:125] == b"0"):
        fail(f"the block at byte {position} is not a tar header")
    return int(found[1], 8)


def number(field: bytes, position: int) -> int:
    """Return the number in a header's size field: octal digits between spaces and NULs, or GNU's base 256.

    NULs alone are 0, as in GNU's volume labels.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if not any(field):
        return 0
    digits = field.split(b"\x00", 1)[0].strip(b" ")
    if not digits or digits.strip(b"01234567"):
        kind = "negative" if field[0] == 0xFF or digits.startswith(b"-") else "no number"
        fail(f"the header at byte {position} has the size {field!r}, which is {kind}")
    return int(digits, 8)


def name(header: bytes) -> bytes:
    """Return the name in a header block, with the directories that USTAR keeps apart."""
    own = header[:100].split(b"\x00", 1)[0]
    directory = header[345:500].split(b"\x00", 1)[0]
    return b"%b/%b" % (directory, own) if directory and header[257:263] == b"ustar\x00" else own


def link(header: bytes) -> bytes:
    """Return the name in a header block of the member that a hard link leads to."""
    return header[157:257].split(b"\x00", 1)[0]


class Records:
    """The PAX and GNU headers of the next member.

    Attributes:
        start: Where the first of them begins; -1 where there is none.
        name: The member's name, where they give it.
        link: The member that it is a hard link to, where they give it.
        size: Bytes of its payload, where they give it.
    """

    def __init__(self) -> None:
        self.start = -1
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.size: int | None = None

    def take(self, data: Tar | memoryview, position: int, kind: bytes, size: int) -> int:
        """Read the header at a position, and return the position behind it."""
        if size > LONGEST_RECORDS:
            fail(f"the header at byte {position} claims a name or PAX records of {size} bytes")
        body = bytes(data[position + BLOCK : position + BLOCK + size])
        if len(body) < size:
            fail(f"the PAX or GNU header at byte {position} is cut short", cut=True)
        if self.start < 0:
            self.start = position
        if kind == b"L":
            self.name = body.split(b"\x00", 1)[0]
        elif kind == b"K":
            self.link = body.split(b"\x00", 1)[0]
        else:
            self._pax(body, position, everywhere=kind == b"g")
        return position + BLOCK + padded(size)

    def _pax(self, body: bytes, position: int, *, everywhere: bool) -> None:
        at = 0
        while at < len(body):
            found = _RECORD.match(body, at)
            end = at + int(found[1]) if found else 0
            if not found or not found.end() < end <= len(body) or body[end - 1] != 0x0A:
                fail(f"the PAX records at byte {position} are damaged")
            keyword, value = found[2], body[found.end() : end - 1]
            if keyword.startswith(b"GNU.sparse.") or keyword == b"SCHILY.realsize":
                refuse(_SPARSE, self.name or b"", position, _WITHOUT_SPARSE)
            if everywhere and keyword in {b"path", b"size", b"linkpath"}:
                fail(f"the PAX header at byte {position} gives all members one {keyword.decode()}")
            if keyword == b"path":
                self.name = value
            elif keyword == b"linkpath":
                self.link = value
            elif keyword == b"size":
                if not value.isdigit() or len(value) > 19:
                    fail(f"the PAX header at byte {position} gives the size {value[:40]!r}")
                self.size = int(value)
            at = end


def member_name(data: Tar | memoryview, position: int) -> bytes:
    """Return the name of the member whose first header block begins at a position, after checking its headers.

    Raises:
        CorruptShardError: If a header there is damaged.
    """
    records = Records()
    while True:
        header = bytes(data[position : position + BLOCK])
        check_header(header, position)
        kind = header[156:157]
        if kind not in EXTENDING:
            return name(header) if records.name is None else records.name
        position = records.take(data, position, kind, number(header[124:136], position))


def padded(size: int) -> int:
    """Return the size of a payload, padded to the next header."""
    return (size + BLOCK - 1) & -BLOCK


def refuse_kind(kind: bytes, member: bytes, position: int) -> NoReturn:
    """Raise the error for a member that is not a plain file."""
    what, remedy = _REFUSED.get(kind, (f"of the unknown kind {kind!r}", _DELETE))
    refuse(what, member, position, remedy)


def refuse(what: str, member: bytes, position: int, remedy: str) -> NoReturn:
    """Raise the error for a member that a shard cannot have."""
    shown = member[:200].decode("utf-8", "backslashreplace")
    raise CorruptShardError(
        f"the member {shown!r} at byte {position} is {what}, and a shard holds plain files only; {remedy}"
    )


def fail(what: str, *, cut: bool = False) -> NoReturn:
    """Raise the error for a damaged tar."""
    raise CorruptShardError(f"{what}; the shard was cut short, copy it again" if cut else f"{what}; restore the shard")
