"""Fields in open shards: their bytes, their checksums, and the key of a sample."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from bionemo.webdatamodule.errors import CorruptShardError, MissingFieldError
from bionemo.webdatamodule.shards.headers import BLOCK, check_header, member_name, split_name
from bionemo.webdatamodule.shards.maps import OpenShard

Place: TypeAlias = tuple[OpenShard, int]
"""Where a sample is: the shard, and its number in it."""


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
        if found is None:
            raise _missing(shard, row)
        offsets, sizes, _ = found
        start = offsets[row]
        if start < 0:
            raise _missing(shard, row)
        add(shard.data[start : start + sizes[row]])
    return views


def check_fields(place: Place, columns: Iterable[int]) -> None:
    """Compare fields of a sample, and the header of each, with their checksums.

    Foreign shards have none for payloads, and their headers were checked when they were indexed.

    Raises:
        CorruptShardError: If bytes were changed.
    """
    shard, row = place
    for column in columns:
        found = shard.columns[column]
        if found is None or found[2] is None or found[0][row] < 0:
            continue
        start = found[0][row]
        if zlib.crc32(shard.data[start : start + found[1][row]]) != found[2][row]:
            raise CorruptShardError("the field was changed: its checksum is wrong; restore the shard")
        check_header(shard.map[start - BLOCK : start], start - BLOCK)


def key_of(place: Place) -> str:
    """Return the key of a sample, from its first member's header.

    Raises:
        CorruptShardError: If the header is damaged.
    """
    shard, row = place
    parts = split_name(member_name(shard.map, int(shard.index.headers[row])))
    if parts is None:
        raise CorruptShardError("the sample's name has no key; restore the shard")
    return parts[0].decode("utf-8", "surrogateescape")


def suffixes_of(place: Place) -> Sequence[str]:
    """Return the suffixes that a sample has."""
    index = place[0].index
    return [suffix for suffix, offset in zip(index.suffixes, index.offsets[place[1]], strict=True) if offset >= 0]


def _missing(shard: OpenShard, row: int) -> MissingFieldError:
    return MissingFieldError(f"the sample has only the suffixes {', '.join(suffixes_of((shard, row)))}")
