"""Open shards as memory maps: opened when first needed, and never more than the process may have open."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from bionemo.webdatamodule.errors import ChangedDataError, CorruptShardError
from bionemo.webdatamodule.shards.cache import Stamp, check_stamp
from bionemo.webdatamodule.shards.index import ShardIndex

Column: TypeAlias = tuple[memoryview, memoryview, "memoryview | None"]
"""Offsets, sizes and checksums of one suffix, whose items are Python integers."""

MOST_OPEN = 1024
"""Shards open at a time, at most; fewer where the limit on open files is low."""

_END = 1024  # bytes of the end of an archive


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenShard:
    """One shard in memory.

    Attributes:
        path: The tar.
        map: The tar as a memory map.
        data: The same as a view, which slices without copying.
        index: Where its members lie.
        columns: For each suffix asked for its part of the index, ``None`` where no sample of the shard has it.
    """

    path: str
    map: mmap.mmap
    data: memoryview
    index: ShardIndex
    columns: tuple[Column | None, ...]

    def check(self) -> None:
        """Check that the file still has all its bytes, since reading beyond its end would kill the process.

        Raises:
            ChangedDataError: If its size changed.
        """
        now = self.map.size()
        if now != len(self.data):
            raise ChangedDataError(
                f"{self.path} was changed while it was read: it has {now} bytes, had {len(self.data)}; start again",
                shard=self.path,
            )


def open_shard(path: str, stamp: Stamp, index: ShardIndex, suffixes: Sequence[str]) -> OpenShard:
    """Map a shard into memory.

    Args:
        path: The tar.
        stamp: The state that it must be in.
        index: Where its members lie.
        suffixes: Those that will be asked for.

    Raises:
        ChangedDataError: If the file was removed or changed.
        CorruptShardError: If the archive has no end.
    """
    try:
        with open(path, "rb") as file:
            check_stamp(path, stamp, file.fileno())
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ChangedDataError(f"{path} is gone since the data were set up; start again", shard=path) from error
    shard = OpenShard(
        path=path,
        map=data,
        data=memoryview(data),
        index=index,
        columns=tuple(_column(index, suffix) for suffix in suffixes),
    )
    if any(data[-_END:]):
        raise CorruptShardError(f"the end of the archive {path} is damaged; restore the shard", shard=path)
    return shard


class OpenShards:
    """The shards that are open, least recently used first.

    A shard that falls out stays mapped for as long as somebody reads it.

    Args:
        open_one: Opens a shard by its number.

    Attributes:
        most: How many are open, at most.
    """

    def __init__(self, open_one: Callable[[int], OpenShard]) -> None:
        self._open_one = open_one
        self._shards: dict[int, OpenShard] = {}
        self.most = most_open()

    def __getitem__(self, number: int) -> OpenShard:
        shard = self._shards.pop(number, None)
        if shard is None:
            while len(self._shards) >= self.most:
                del self._shards[next(iter(self._shards))]
            shard = self._open_one(number)
        else:
            shard.check()
        self._shards[number] = shard
        return shard

    def __contains__(self, number: object) -> bool:
        return number in self._shards

    def __len__(self) -> int:
        return len(self._shards)


def most_open() -> int:
    """Return how many shards may be open: each takes two descriptors, and half of them are left to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, (soft - 32) // 4))


def _column(index: ShardIndex, suffix: str) -> Column | None:
    if suffix not in index.suffixes:
        return None
    place = index.suffixes.index(suffix)
    crcs = None if index.crcs is None else _integers(index.crcs[:, place])
    return _integers(index.offsets[:, place]), _integers(index.sizes[:, place]), crcs


def _integers(array: NDArray[Any]) -> memoryview:
    """Return a view whose items are Python integers, which numpy's would only become in twice the time."""
    return memoryview(array)  # type: ignore[arg-type]  # arrays have the buffer protocol in every Python
