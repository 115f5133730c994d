"""Fields in open shards: their bytes, their checksums, and the key of a sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

from bionemo.webdatamodule._engine.format.checksum import crc32
from bionemo.webdatamodule._engine.format.mapping import expect
from bionemo.webdatamodule._engine.format.tar_headers import (
    BLOCK,
    EXTENDING,
    Records,
    check_header,
    member_name,
    number,
    padded,
    plain_sizes,
    sound_headers,
)
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard
from bionemo.webdatamodule._engine.storage.remote.urls import is_url
from bionemo.webdatamodule.errors import CorruptShardError, MissingFieldError
from bionemo.webdatamodule.names import decode_key, split_member

_NEAR = 1 << 14  # bytes between fields that are read with them

Place: TypeAlias = tuple[OpenShard, int]
"""Where a sample is: the shard, and its number in it."""


@dataclass(eq=False, slots=True)
class Located(Sequence[Place]):
    """Where samples are, without an object for each.

    Attributes:
        shards: The shard of each.
        rows: Its number in it.
    """

    shards: list[OpenShard]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, where: int) -> Place: ...
    @overload
    def __getitem__(self, where: slice) -> Located: ...

    def __getitem__(self, where: int | slice) -> Place | Located:
        if isinstance(where, slice):
            return Located(self.shards[where], self.rows[where])
        return self.shards[where], self.rows[where]

    def __iter__(self) -> Iterator[Place]:
        return zip(self.shards, self.rows, strict=True)


def field_views(places: Iterable[Place], column: int) -> list[memoryview]:
    """Return the bytes of one field of each sample, without copying.

    Args:
        places: Where the samples are.
        column: Which of the suffixes that the shards were opened for.

    Raises:
        MissingFieldError: If a sample lacks the field.
    """
    views: list[memoryview] = []
    add = views.append
    for shard, row in places:
        found = shard.columns[column]
        if found is None or (start := found[0][row]) < 0:
            raise _missing(shard, row)
        add(shard.data[start : start + found[1][row]])
    return views


def sound_views(places: Sequence[Place], column: int) -> list[memoryview]:
    """Return the bytes of one field of each sample as :func:`field_views` does, compared with their checksums.

    Args:
        places: Where the samples are.
        column: Which of the suffixes that the shards were opened for.

    Raises:
        MissingFieldError: If a sample lacks the field.
        CorruptShardError, RemoteError: As :func:`check_fields`.
    """
    views: list[memoryview] = []
    headers: list[memoryview] = []
    expected: list[int | None] = []
    for shard, row in places:
        found = shard.columns[column]
        if found is None or (start := found[0][row]) < 0:
            raise _missing(shard, row)
        _, sizes, crcs = found
        data = shard.data
        views.append(data[start : start + sizes[row]])
        headers.append(data[start - BLOCK : start])
        expected.append(None if crcs is None else crcs[row])
    if _are_sound(views, b"".join(headers), expected):
        return views
    for place in places:
        check_fields(place, (column,))
    return field_views(places, column)


def _are_sound(views: Sequence[memoryview], headers: bytes, expected: Sequence[int | None]) -> bool:
    """Say whether fields pass as :func:`check_fields` has it; that decides where they do not.

    Args:
        views: Their bytes.
        headers: The header block before each.
        expected: The checksum of each; ``None`` in foreign shards, which have none.
    """
    if len(headers) != BLOCK * len(views) or not sound_headers(headers).all():
        return False
    if None not in expected:
        return list(map(crc32, views)) == expected
    sizes = plain_sizes(headers).tolist()
    return all(
        len(view) == size if checksum is None else crc32(view) == checksum
        for view, size, checksum in zip(views, sizes, expected, strict=True)
    )


def expect_fields(places: Iterable[Place], columns: Iterable[int]) -> None:
    """Have fields of samples, with their headers, read from the disk in the background.

    Args:
        places: Where the samples are; those that follow one another in a shard are read at once.
        columns: Which of the suffixes that the shards were opened for.
    """
    parts: list[tuple[OpenShard, int, int]] = []
    for (shard, row), column in itertools.product(places, columns):
        found = shard.columns[column]
        if found is None or (start := found[0][row]) < 0:
            continue
        stop = start + found[1][row]
        if parts and parts[-1][0] is shard and 0 <= start - parts[-1][2] <= _NEAR:
            start = parts.pop()[1]
        parts.append((shard, start, stop))
    for shard, start, stop in parts:
        expect(shard.data[max(0, start - BLOCK) : stop])


def has_field(place: Place, column: int) -> bool:
    """Return whether a sample has the field of a suffix that shards were opened for."""
    found = place[0].columns[column]
    return found is not None and found[0][place[1]] >= 0


def check_fields(place: Place, columns: Iterable[int]) -> None:
    """Compare fields of a sample, and the header of each, with their checksums.

    Payloads in foreign shards have none; there the size in each header is compared with the index,
    which may be of another state of the file. What was damaged in the cache of remote shards is fetched again.

    Raises:
        CorruptShardError: If bytes were changed.
        RemoteError: If they were changed where they come from, or cannot be fetched.
    """
    shard, row = place
    columns = tuple(columns)
    try:
        _compare(shard, row, columns)
    except CorruptShardError:
        if shard.restore is None:
            raise
        shard.restore(row)
        _compare(shard, row, columns)


def _compare(shard: OpenShard, row: int, columns: Iterable[int]) -> None:
    for column in columns:
        found = shard.columns[column]
        if found is None or (start := found[0][row]) < 0:
            continue
        _, sizes, crcs = found
        if crcs is not None and crc32(shard.data[start : start + sizes[row]]) != crcs[row]:
            raise CorruptShardError("the field was changed: its checksum is wrong; restore the shard")
        header = bytes(shard.data[start - BLOCK : start])
        check_header(header, start - BLOCK)
        if crcs is None and (header[124:135] != b"%011o" % sizes[row] or header[156:157] in EXTENDING):
            _check_size(shard, row, start - BLOCK, sizes[row])


def key_of(place: Place) -> str:
    """Return the key of a sample, from its first member's header.

    Raises:
        CorruptShardError: If the header is damaged.
    """
    shard, row = place
    parts = split_member(member_name(shard.data, int(shard.index.headers[row])))
    if parts is None:
        raise CorruptShardError("the sample's name has no key; restore the shard")
    return decode_key(parts[0])


def suffixes_of(place: Place) -> Sequence[str]:
    """Return the suffixes that a sample has."""
    index = place[0].index
    return [suffix for suffix, offset in zip(index.suffixes, index.offsets[place[1]], strict=True) if offset >= 0]


def _missing(shard: OpenShard, row: int) -> MissingFieldError:
    return MissingFieldError(f"the sample has only the suffixes {', '.join(suffixes_of((shard, row)))}")


def _check_size(shard: OpenShard, row: int, header: int, size: int) -> None:
    """Check that the member whose own header is at a position has a size, however that is written.

    PAX records may give it, so all headers are read from the sample's first on.
    """
    position = min(header, int(shard.index.headers[row]))  # what a hard link leads to lies before the sample
    records = Records()
    while position <= header:
        block = bytes(shard.data[position : position + BLOCK])
        check_header(block, position)
        kind, written = block[156:157], number(block[124:136], position)
        if kind in EXTENDING:
            position = records.take(shard.data, position, kind, written)
            continue
        if records.size is not None:
            written = records.size
        if position == header and written == size:
            return
        position += BLOCK + padded(written)
        records = Records()
    other = "write a manifest with `webdatamodule index`" if is_url(shard.path) else "touch it to have it indexed again"
    raise CorruptShardError(
        f"the header at byte {header} is not what it was when the shard was indexed; restore the shard, or {other}"
    )
