"""Open shards as memory maps: opened when first needed, and never more than the process may have open."""

from __future__ import annotations

import mmap
import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, check_stamp
from bionemo.webdatamodule.errors import ChangedDataError, CorruptShardError

Column: TypeAlias = tuple[memoryview, memoryview, "memoryview | None"]
"""Offsets, sizes and checksums of one suffix, whose items are Python integers."""

MOST_OPEN = 1024
"""Shards that a process has open at a time, at most; fewer where the limit on open files is low."""

_N = TypeVar("_N", bound=Hashable)
_END = 1024  # bytes of the end of an archive

_recent: OrderedDict[OpenShard, tuple[dict[Hashable, OpenShard], Hashable]] = OrderedDict()
"""All open shards of this process, least recently used first, each with where its reader keeps it.

A forked process has what its parent had open, descriptors included, and so it has the parent's list as well.
"""

_held: dict[object, int] = {}
"""How many shards each reader holds that is in the middle of its batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenShard:
    """One shard in memory, or a piece of one that is behind a URL.

    Attributes:
        path: The tar.
        map: The tar as a memory map.
        data: The same as a view, which slices without copying.
        index: Where its members lie.
        columns: For each suffix asked for its part of the index, ``None`` where no sample of the shard has it.
        states: Of a piece, uint8 for each sample: 0 where it is not there, see the module ``pieces``.
        restore: Of a piece, fetches a sample again whose bytes are damaged, by its number.
    """

    path: str
    map: mmap.mmap
    data: memoryview
    index: ShardIndex
    columns: tuple[Column | None, ...]
    states: NDArray[np.uint8] | None = None
    restore: Callable[[int], None] | None = None

    def has(self, rows: NDArray[np.int64]) -> bool:
        """Return whether samples are there."""
        return self.states is None or bool(self.states[rows].all())

    def mark(self, rows: NDArray[np.int64], state: int) -> None:
        """Note in which epoch samples were read, where that can be noted."""
        if self.states is not None and self.states.flags.writeable:
            self.states[rows] = state

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
    shard = opened(path=path, data=data, index=index, suffixes=suffixes)
    if any(data[-_END:]):
        raise CorruptShardError(f"the end of the archive {path} is damaged; restore the shard", shard=path)
    return shard


def opened(*, path: str, data: mmap.mmap, index: ShardIndex, suffixes: Sequence[str], **more: Any) -> OpenShard:
    """Return an open shard or piece.

    Args:
        path: What messages call it.
        data: Its map.
        index: Where its members lie.
        suffixes: Those that will be asked for.
        more: Further attributes.
    """
    columns = tuple(_column(index, suffix) for suffix in suffixes)
    return OpenShard(path=path, map=data, data=memoryview(data), index=index, columns=columns, **more)


class OpenShards:
    """The shards that one reader has open.

    All readers of a process share one bound, :func:`most_open`: of all their shards the least recently used
    are closed. A shard that is closed stays mapped for as long as it is read.
    """

    def __init__(self) -> None:
        self._shards: dict[Hashable, OpenShard] = {}
        weakref.finalize(self, _close_all, self._shards).atexit = False

    def get(self, number: Hashable) -> OpenShard | None:
        """Return a shard by its number, or a piece by those of shard and piece, if it is open.

        Raises:
            ChangedDataError: If its size changed.
        """
        shard = self._shards.get(number)
        if shard is not None:
            try:
                shard.check()
                _recent.move_to_end(shard)
            except ChangedDataError:
                self._shards.pop(number, None)
                _recent.pop(shard, None)
                raise
            except KeyError:  # another thread closed it just now
                pass
        return shard

    def open(self, number: _N, open_one: Callable[[_N], OpenShard]) -> OpenShard:
        """Open a shard, after closing others where there would be too many.

        Args:
            number: Number of the shard.
            open_one: Opens it.
        """
        most = most_open()
        while len(_recent) >= most:
            _, (shards, closed) = _recent.popitem(last=False)
            shards.pop(closed, None)
        shard = self._shards[number] = open_one(number)
        _recent[shard] = self._shards, number
        return shard

    def __contains__(self, number: object) -> bool:
        return number in self._shards

    def __len__(self) -> int:
        return len(self._shards)


def _close_all(shards: dict[Hashable, OpenShard]) -> None:
    for shard in list(shards.values()):
        _recent.pop(shard, None)


def most_open() -> int:
    """Return how many shards this process may have open.

    Each takes two descriptors, its own and its index's, and half of all descriptors are left to others.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, (soft - 32) // 4))


@contextmanager
def hold(n_shards: int) -> Iterator[bool]:
    """Count shards that a reader uses beyond the call that opened them, where others may close them.

    Args:
        n_shards: How many they are.

    Yields:
        Whether it may: all readers of a process together may hold a quarter of what may be open.
    """
    held = sum(list(_held.values())) + n_shards <= most_open() // 4
    token = object()
    if held:
        _held[token] = n_shards
    try:
        yield held
    finally:  # perhaps of a garbage collection in another thread, so one operation and no lock
        _held.pop(token, None)


def _column(index: ShardIndex, suffix: str) -> Column | None:
    if suffix not in index.suffixes:
        return None
    place = index.suffixes.index(suffix)
    crcs = None if index.crcs is None else _integers(index.crcs[:, place])
    return _integers(index.offsets[:, place]), _integers(index.sizes[:, place]), crcs


def _integers(array: NDArray[Any]) -> memoryview:
    """Return a view whose items are Python integers, which numpy's would only become in twice the time."""
    return memoryview(array)  # type: ignore[arg-type]  # arrays have the buffer protocol in every Python
