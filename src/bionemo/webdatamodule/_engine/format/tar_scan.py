"""The strict walk over the headers of a tar: each is checked, and unsupported members raise an error."""

from __future__ import annotations

import re
import struct
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format import tar_headers
from bionemo.webdatamodule._engine.format.tar_headers import BLOCK, EXTENDING, Records, Tar, fail
from bionemo.webdatamodule.errors import CorruptShardError

_USUAL_END = 22 * BLOCK  # zeros at the end of a tar at most: two blocks, filled up to a record of twenty
_RECORDS = [BLOCK << power for power in range(5, 12)]  # sizes of larger records (-b), up to 1 MiB

_SIZE_AND_KIND = struct.Struct("124x11s21xc")
_ONLY_TIMES = re.compile(rb"(?:\d\d (?:mtime|atime|ctime)=-?\d+(?:\.\d+)?\n)+")  # what wds.ShardWriter writes
_CHUNK = 4096  # headers checked together
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "mv SHARD SHARD.gz && gunzip SHARD.gz"),
    b"BZh": ("bzip2", "mv SHARD SHARD.bz2 && bunzip2 SHARD.bz2"),
    b"\xfd7zXZ": ("xz", "mv SHARD SHARD.xz && unxz SHARD.xz"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "mv SHARD SHARD.zst && unzstd --rm SHARD.zst"),
}
_OTHER_FORMATS = {b"PK\x03\x04": "zip", b"<": "a page of HTML or XML"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """The plain files of a tar, in its order.

    Attributes:
        names: The name of each, as the bytes in the tar.
        headers: int64: where its first header block begins, PAX and GNU blocks included.
        offsets: int64: where its payload begins.
        sizes: int64: bytes of its payload.
    """

    names: list[bytes]
    headers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def walk(data: Tar) -> Members:  # noqa: C901, PLR0912, PLR0915 - calls would double the cost of a hop
    """Return the members of a tar, after checking every header and what follows the last member.

    Checked are checksum, size and format of each header, that payloads end inside the file,
    that the archive has an end and that only zeros follow it. Directories and volume labels are passed over.
    A hard link has the payload of the member before it that it names. Names may be absolute or hold ``..``, since
    nothing is unpacked.

    One Python loop hops from header to header and notes where they are;
    what is the same for all of them is then checked with numpy, thousands at once.

    Args:
        data: The whole tar.

    Raises:
        CorruptShardError: If it is damaged, no tar, or has members that are not plain files.
    """
    _check_beginning(data)
    total = len(data)
    blocks, mains, firsts, sizes = array("q"), array("q"), array("q"), array("q")
    names: dict[int, bytes] = {}  # of members whose own header does not hold the name, by number
    links: dict[int, bytes] = {}  # of hard links what they link to, by number
    unpack, only_times = _SIZE_AND_KIND.unpack_from, _ONLY_TIMES.fullmatch
    records: Records | None = None
    first = -1  # the first header block of the member, where it has several
    position = end = 0
    while position < total:
        octal, kind = unpack(data, position)
        try:
            size = int(octal, 8)  # takes more than a header may hold, which _check_headers finds
        except ValueError:
            if not any(data[position : position + BLOCK]):
                break
            size = -1
        if size < 0:
            size = tar_headers.number(bytes(data[position + 124 : position + 136]), position)
        blocks.append(position)
        end = position + BLOCK + ((size + 511) & -512)
        if kind in EXTENDING:
            if kind != b"x" or end > total or not only_times(data, position + BLOCK, position + BLOCK + size):
                records = records or Records()
                records.take(data, position, kind, size)
            first = position if first < 0 else first
        else:
            if kind == b"1" and not size:
                header = bytes(data[position : position + BLOCK])
                links[len(mains)] = records.link if records and records.link is not None else tar_headers.link(header)
                kind = b"0"
            if kind != b"0" and (kind not in b"7\x00" or _is_directory(data, position)):
                if kind not in b"5V\x00D" or (size and kind != b"D"):
                    written = bytes(data[position : position + BLOCK])
                    member = (records.name if records else None) or tar_headers.name(written)
                    tar_headers.refuse_kind(kind, member, position)
            else:
                if records:
                    if records.size is not None:
                        size = records.size
                        end = position + BLOCK + tar_headers.padded(size)
                    if records.name is not None:
                        names[len(mains)] = records.name
                if end > total:
                    break
                mains.append(position)
                firsts.append(first if first >= 0 else position)
                sizes.append(size)
            first, records = -1, None
        if end > total:
            break
        position = end
    if end > total:
        fail(f"the header at byte {position} claims {size} bytes, {total - position - BLOCK} are left", cut=True)
    if position >= total or first >= 0:
        fail("the end of the archive is missing", cut=True)
    grid = np.frombuffer(data, np.uint8).reshape(-1, BLOCK)
    _check_end(grid, position)
    _check_headers(grid, np.frombuffer(blocks, np.int64))
    positions = np.frombuffer(mains, np.int64) if mains else np.empty(0, np.int64)
    members = Members(
        names=_names(grid, positions, names),
        headers=np.array(firsts, np.int64),
        offsets=positions + BLOCK,
        sizes=np.array(sizes, np.int64),
    )
    _link(members, links)
    return members


def _link(members: Members, links: dict[int, bytes]) -> None:
    """Give hard links the payload of what they link to."""
    if not links:
        return
    known: dict[bytes, int] = {}
    for number, name in enumerate(members.names):
        if number in links:
            target = known.get(_spelled(links[number]))
            if target is None:
                tar_headers.refuse_kind(b"1", name, int(members.offsets[number]) - BLOCK)
            members.offsets[number], members.sizes[number] = members.offsets[target], members.sizes[target]
        known[_spelled(name)] = number


def _spelled(name: bytes) -> bytes:
    return name.removeprefix(b"./").lstrip(b"/")


def _check_beginning(data: Tar) -> None:
    if data[257:262] != b"ustar":
        for magic, kind in _OTHER_FORMATS.items():
            if data[: len(magic)] == magic:
                fail(f"it is {kind}, not a plain tar")
        for magic, (kind, command) in _COMPRESSED.items():
            if data[: len(magic)] == magic:
                raise CorruptShardError(
                    f"it is compressed with {kind}, and samples are read at any place of a shard; "
                    f"unpack it with `{command}`"
                )
    if len(data) % BLOCK:
        fail(f"its {len(data)} bytes are not a multiple of {BLOCK}", cut=True)


def _check_end(grid: NDArray[np.uint8], position: int) -> None:
    """Check that zeros follow the last member, at least two blocks and at most what fills a record."""
    left = grid.size - position
    if left < 2 * BLOCK:
        fail("the end of the archive is missing", cut=True)
    for row in range(position // BLOCK, len(grid), _CHUNK):
        if grid[row : row + _CHUNK].any():
            fail(f"something follows the end of the archive at byte {position}: lost members, or another tar")
    if position == 0:
        fail("it is all zeros: an empty tar, or a file that was never filled")
    if left > _USUAL_END and not any(grid.size % size == 0 and left < size + 2 * BLOCK for size in _RECORDS):
        raise CorruptShardError(
            f"{left} zeros follow the last member at byte {position}. If the rest was lost, restore the shard; "
            f"if tar wrote large records (-b), cut them off with `truncate -s {position + 2 * BLOCK} SHARD`"
        )


def _check_headers(grid: NDArray[np.uint8], blocks: NDArray[np.int64]) -> None:
    """Check checksum, size and format of all tar_headers."""
    weights = 8 ** np.arange(5, -1, -1, dtype=np.int64)
    for start in range(0, len(blocks), _CHUNK):
        positions = blocks[start : start + _CHUNK]
        rows = grid[positions // BLOCK]
        field = rows[:, 148:156]
        digits = field[:, :6].astype(np.int64) - 48
        usual = ((digits >= 0) & (digits < 8)).all(axis=1) & (field[:, 6] == 0) & (field[:, 7] == 0x20)
        stored = digits @ weights
        for row in np.flatnonzero(~usual).tolist():
            stored[row] = tar_headers.checksum(rows[row].tobytes(), int(positions[row]))
        found = rows.sum(axis=1, dtype=np.int64) - field.sum(axis=1, dtype=np.int64) + 8 * 0x20
        if (found != stored).any():
            at = positions[(found != stored).argmax()]
            fail(f"the header at byte {at} was changed: its checksum is wrong")
        size = rows[:, 124:136]
        usual = ((size[:, :11] & 0xF8) == 0x30).all(axis=1) & ((size[:, 11] & 0xDF) == 0)
        for row in np.flatnonzero(~usual).tolist():
            tar_headers.number(size[row].tobytes(), int(positions[row]))
        magic = np.ascontiguousarray(rows[:, 257:263]).view("S6").ravel()
        known = (magic == b"ustar") | (magic == b"ustar ") | (magic == b"")  # POSIX, GNU, and before either
        if not known.all():
            fail(f"the header at byte {positions[known.argmin()]} is of an unknown tar format")


def _names(grid: NDArray[np.uint8], mains: NDArray[np.int64], recorded: dict[int, bytes]) -> list[bytes]:
    """Return all members' names."""
    names: list[bytes] = []
    for start in range(0, len(mains), _CHUNK):
        rows = grid[mains[start : start + _CHUNK] // BLOCK]
        part = np.ascontiguousarray(rows[:, :100]).view("S100").ravel().tolist()
        for row in np.flatnonzero(rows[:, 345]).tolist():  # directories are kept apart
            part[row] = tar_headers.name(rows[row].tobytes())
        if b"\x00" in b"".join(part):  # numpy takes NULs off the end only
            part = [name.split(b"\x00", 1)[0] for name in part]
        names += part
    for member, name in recorded.items():
        names[member] = name
    if b"" in names:
        fail(f"the member at byte {mains[names.index(b'')]} has no name")
    return names


def _is_directory(data: Tar, position: int) -> bool:
    """Return whether a header of the time before USTAR stands for a directory."""
    return tar_headers.name(bytes(data[position : position + BLOCK])).endswith(b"/")
