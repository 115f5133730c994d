"""Open shards as memory maps, opened on demand, within the limits of the process."""

from __future__ import annotations

import functools
import mmap
import os
import resource
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.format.mapping import expect, mapped, release
from bionemo.webdatamodule._engine.storage.index_cache import Stamp, check_stamp
from bionemo.webdatamodule._engine.storage.remote.pieces import PRESENT
from bionemo.webdatamodule._engine.storage.shard_cache import last_eviction
from bionemo.webdatamodule.errors import ChangedDataError, CorruptShardError

Column: TypeAlias = tuple[memoryview, memoryview, "memoryview | None"]
"""Offsets, sizes and checksums of one suffix, whose items are Python integers."""

MOST_OPEN = 100_000
"""Shards that a process has open at a time, at most; fewer where the kernel allows a process few maps."""

MAPS = "/proc/sys/vm/max_map_count"
"""What says how many maps the kernel allows a process."""

KEPT = 256 << 20
"""Bytes of pieces that were removed from their cache while they are read, and stay open all the same, at most."""

LARGE = 1 << 24
"""Bytes of a field whose memory is not kept beside its value."""

_N = TypeVar("_N", bound=Hashable)
_END = 1024  # bytes of the end of an archive
_AROUND = 1 << 17  # bytes that Linux reads around one that is needed, where nothing is asked for
_LOOKUPS = 1000  # sizes of files without a descriptor that are looked up in a second, at most
_USUAL_MAPS = 65530  # the kernel's default

_recent: OrderedDict[OpenShard, tuple[dict[Hashable, OpenShard], Hashable]] = OrderedDict()
"""All open shards of this process, each with where its reader keeps it; the first is the next that may be closed.

A forked process has what its parent had open, descriptors included, and so it has the parent's list as well.
"""

_evictions: dict[str, int] = {}
"""For the root of each cache what :func:`.last_eviction` returned when removed pieces were last closed."""

_held: dict[object, int] = {}
"""How many shards each reader holds that is in the middle of its batches."""


@dataclass(kw_only=True, eq=False, slots=True)
class OpenShard:
    """One shard in memory, or a piece of one that is behind a URL.

    Attributes:
        path: What messages call it.
        place: The file.
        data: The tar as a memory map, which slices without copying.
        file: The same with a descriptor of its own, which gives the size of the file at any time; ``None`` where
            many shards are open. Then the size is looked up by the path, and not every time, since that takes longer
            than reading a small sample.
        index: Where its members lie.
        columns: For each suffix asked for its part of the index, ``None`` where no sample of the shard has it.
        states: Of a piece, uint8 for each sample: 0 where it is not there, see the module ``pieces``.
        inode: Of a piece, the number of its file.
        restore: Of a piece, fetches a sample again whose bytes are damaged, by its number.
        checked: When the size was last looked up by the path.
        used: Whether it was used since it was opened or last spared, see :meth:`OpenShards.open`.
    """

    path: str
    place: str
    data: memoryview
    file: mmap.mmap | None
    index: ShardIndex
    columns: tuple[Column | None, ...]
    states: NDArray[np.uint8] | None = None
    inode: int = 0
    restore: Callable[[int], None] | None = None
    checked: float = 0.0
    used: bool = True

    def has(self, rows: NDArray[np.int64]) -> bool:
        """Return whether samples are there."""
        return self.states is None or bool(self.states[rows].all())

    def is_read(self) -> bool:
        """Return whether it is a piece all of whose samples were read in one epoch."""
        return self.states is not None and PRESENT < self.states.min() == self.states.max()

    def is_removed(self) -> bool:
        """Return whether it is a piece whose file was removed or replaced, so that only maps keep it on the disk."""
        if self.states is None:
            return False
        try:
            return os.stat(self.place).st_ino != self.inode
        except OSError:
            return True

    def mark(self, rows: NDArray[np.int64], state: int) -> None:
        """Note in which epoch samples were read, where that can be noted."""
        if self.states is not None and self.states.flags.writeable:
            self.states[rows] = state

    def release(self, row: int) -> None:
        """Let the memory of a sample's large fields go; it is read from the file again where it is needed."""
        for column in self.columns:
            if column is not None and column[1][row] >= LARGE and column[0][row] >= 0:
                release(self.data[column[0][row] : column[0][row] + column[1][row]])

    def check(self) -> None:
        """Check that the file still has all its bytes, since reading beyond its end would kill the process.

        Raises:
            ChangedDataError: If its size changed.
        """
        if self.file is not None:
            found = self.file.size()
        elif (now := time.monotonic()) < self.checked + _trusted():
            return
        else:
            self.checked = now
            try:
                found = os.stat(self.place).st_size
            except FileNotFoundError:  # what is mapped stays
                return
        if found != len(self.data):
            raise ChangedDataError(
                f"{self.path} was changed while it was read: it has {found} bytes, had {len(self.data)}; start again",
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
        descriptor = os.open(path, os.O_RDONLY)
        try:
            check_stamp(path, stamp, descriptor)
            data, own = mapped_file(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise ChangedDataError(f"{path} is gone since the data were set up; start again", shard=path) from error
    shard = opened(path=path, place=path, data=data, file=own, index=index, suffixes=suffixes)
    if len(data) > _AROUND:
        expect(data[-_END:])  # or what lies before the end would be read with it
    if data[-_END:].tobytes().strip(b"\0"):
        raise CorruptShardError(f"the end of the archive {path} is damaged; restore the shard", shard=path)
    return shard


def opened(*, index: ShardIndex, suffixes: Sequence[str], **more: Any) -> OpenShard:
    """Return an open shard or piece.

    Args:
        index: Where its members lie.
        suffixes: Those that will be asked for.
        more: All other attributes.
    """
    columns = tuple(_column(index, suffix) for suffix in suffixes)
    return OpenShard(index=index, columns=columns, **more)


def mapped_file(descriptor: int) -> tuple[memoryview, mmap.mmap | None]:
    """Map an open file, and return the map, with a descriptor of its own while few shards are open."""
    if len(_recent) < most_descriptors():
        file = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        return memoryview(file), file
    return mapped(descriptor), None


class OpenShards:
    """The shards that one reader has open.

    All readers of a process share one bound, :func:`most_open`: of all their shards those that were not used lately
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
            self._check(number, shard)
            shard.used = True
        return shard

    def get_all(self, numbers: Iterable[_N], open_one: Callable[[_N], OpenShard]) -> dict[_N, OpenShard]:
        """Return shards by their numbers, after opening those that are not open.

        Args:
            numbers: Numbers of shards.
            open_one: Opens one.

        Raises:
            ChangedDataError: If the size of one changed.
        """
        # With many shards most samples are alone in theirs, so what is done here counts.
        shards, trusted = self._shards, time.monotonic() - _trusted()
        found: dict[_N, OpenShard] = {}
        for number in numbers:
            shard = shards.get(number)
            if shard is None:
                shard = self.open(number, open_one)
            elif shard.file is not None or shard.checked < trusted:
                self._check(number, shard)
            shard.used = True
            found[number] = shard
        return found

    def open(self, number: _N, open_one: Callable[[_N], OpenShard]) -> OpenShard:
        """Open a shard, after closing others where there would be too many.

        The one that was opened or spared first is closed, but it is spared once where it was used since. This is the
        clock algorithm (F. J. Corbató, "A Paging Experiment with the Multics System", 1968), and keeps about what the
        order of use would keep, without a note of every use.

        Args:
            number: Number of the shard.
            open_one: Opens it.
        """
        most = most_open()
        while len(_recent) >= most:
            try:
                oldest, (shards, closed) = _recent.popitem(last=False)
            except KeyError:  # other threads closed them
                break
            if oldest.used:
                oldest.used = False
                _recent[oldest] = shards, closed
            elif shards.get(closed) is oldest:
                shards.pop(closed, None)
        made = open_one(number)
        shard = self._shards.setdefault(number, made)
        if shard is made:  # or another thread was faster
            _recent[shard] = self._shards, number
        return shard

    def close(self, number: Hashable) -> None:
        """Close a shard, if it is open."""
        shard = self._shards.pop(number, None)
        if shard is not None:
            _recent.pop(shard, None)

    def _check(self, number: Hashable, shard: OpenShard) -> None:
        try:
            shard.check()
        except ChangedDataError:
            self._shards.pop(number, None)
            _recent.pop(shard, None)
            raise

    def __contains__(self, number: object) -> bool:
        return number in self._shards

    def __len__(self) -> int:
        return len(self._shards)


def _close_all(shards: dict[Hashable, OpenShard]) -> None:
    for shard in list(shards.values()):
        _recent.pop(shard, None)


def close_removed(roots: Iterable[str], *, is_full: bool = False) -> None:
    """Close the pieces of this process that were removed from caches, since their bytes stay on the disk until then.

    Where nothing was removed since the last call, that takes one system call for each cache. Pieces that are being
    read stay open, or they would be fetched again for the next batch; of these, the ones that were opened last, up to
    :data:`KEPT` bytes.

    Args:
        roots: Directories of the caches.
        is_full: Whether a disk is full, so that all are closed at once.
    """
    now = {root: last_eviction(root) for root in roots}
    if not is_full and now.items() <= _evictions.items():
        return
    _evictions.update(now)  # before they are looked at, so that what is removed meanwhile is seen by the next call
    kept = 0
    for shard in reversed(list(_recent)):  # other threads may open and close some
        if not shard.is_removed():
            continue
        if not is_full and not shard.is_read() and kept + len(shard.data) <= KEPT:
            kept += len(shard.data)
            continue
        shards, number = _recent.pop(shard, ({}, None))
        if shards.get(number) is shard:
            shards.pop(number, None)


def most_open() -> int:
    """Return how many shards this process may have open.

    Each takes two maps, its own and its index's, and a fifth of all maps is left to others.
    """
    return min(MOST_OPEN, max(1, _most_maps() * 2 // 5))


def _trusted() -> float:
    """Return for how many seconds the size of a file without a descriptor is taken as known."""
    return len(_recent) / _LOOKUPS


def most_descriptors() -> int:
    """Return for how many shards this process may keep a descriptor; half of all are left to others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(0, (soft - 32) // 2)


@functools.cache
def _most_maps() -> int:
    try:
        with open(MAPS, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _USUAL_MAPS


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
