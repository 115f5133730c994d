"""Brings samples of pieces into their files: by ranges, verified, and at once visible to other processes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.storage.remote.pieces import (
    ABSENT,
    PRESENT,
    Piece,
    all_read,
    are_sound,
    extents,
    read_states,
    runs_of,
    write_at,
)
from bionemo.webdatamodule._engine.storage.remote.shards import Remote
from bionemo.webdatamodule._engine.storage.shard_cache import lock, try_lock, unlock
from bionemo.webdatamodule.errors import RemoteError

_log = logging.getLogger("bionemo.webdatamodule")

_PART = 8 << 20  # bytes of one request, at most
_BUSY = 2  # threads that handle what has come at a time, since they share the interpreter with the training loop
_SPARE = 1 << 12  # bytes by which reused memory may shrink


class Transfer:
    """Brings samples of pieces into their files.

    Args:
        remote: Returns the set of a shard, and its number there.
        arrived: Is called when samples of a shard came and have their checksums: with the shard, the first, and the one
            behind the last.
        count: Is called with the bytes and the requests of each reading.

    Attributes:
        mark: What readers leave at samples that they read in this epoch, which the cache needs no more.
        busy: Is held where the interpreter is needed for long.
    """

    def __init__(
        self,
        remote: Callable[[int], tuple[Remote, int]],
        *,
        arrived: Callable[[int, int, int], None] | None,
        count: Callable[[int, int], None],
    ) -> None:
        self.mark = PRESENT
        self.busy = threading.Semaphore(_BUSY)
        self._remote = remote
        self._arrived = arrived
        self._count = count
        self._memory = Memory()

    def bring(self, piece: Piece, rows: range | NDArray[np.int64], *, wait: bool, again: bool = False) -> bool:
        """Fetch samples of a piece that are not in its file.

        Args:
            piece: The piece.
            rows: Numbers of the samples in it.
            wait: Wait while another thread or process fetches samples of the piece.
            again: Fetch them although they are there.

        Returns:
            Whether they are there now; otherwise another fetches samples of the piece.

        Raises:
            RemoteError: If they cannot be fetched, or are damaged there.
            ChangedDataError: If the shard has no checksums and was replaced.
        """
        with self._locked(piece, wait=wait) as descriptor:
            if descriptor is not None:
                self._fill(descriptor, piece, rows, again=again)
            return descriptor is not None

    def is_done(self, path: str) -> bool:
        """Return whether all samples of a piece file were read in this epoch."""
        with contextlib.suppress(OSError):
            return self.mark != PRESENT and all_read(path, self.mark)
        return False

    def note_damage(self, piece: Piece, what: str) -> None:
        """Log that a piece is fetched again."""
        _log.warning("a piece of %s %s and is fetched again", self.name(piece), what)

    @contextlib.contextmanager
    def _locked(self, piece: Piece, *, wait: bool) -> Iterator[int | None]:
        """Yield the descriptor of a piece file with its lock held, or ``None`` where another holds it."""
        with self._remote(piece.shard)[0].cache.writing():
            descriptor = _created(piece.path)
            try:
                if wait:
                    lock(descriptor)
                elif not try_lock(descriptor):
                    yield None
                    return
                size = os.fstat(descriptor).st_size
                if size != piece.file_bytes:
                    if size:  # for a new file, this would make ext4 write it to the disk when it is closed
                        os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, piece.file_bytes)
                yield descriptor
            finally:
                unlock(descriptor)
                os.close(descriptor)

    def _fill(self, descriptor: int, piece: Piece, rows: range | NDArray[np.int64], *, again: bool) -> None:
        """Fetch samples of a piece that are not in its file."""
        remote, number = self._remote(piece.shard)
        with self.busy:
            states = read_states(descriptor, piece)
            wanted = np.asarray(rows, np.int64)
            runs = list(runs_of(wanted if again else wanted[states[wanted] == ABSENT], piece))
        for first, last in runs:
            found = extents(piece, first, last)
            remote.cache.make_room(sum(end - begin for begin, end in found), self.is_done)
            begin, end = found[0][0], found[-1][1]
            for attempt in range(2):
                with self._memory.of(end - begin) as data:
                    with remote.directory.unchanged(piece.name, remote.shards[number].version):
                        self._read(piece, found, data)
                    with self.busy:
                        sound = are_sound(piece, first, last, data, begin)
                        if sound:
                            for start, stop in found:
                                write_at(descriptor, data[start - begin : stop - begin], start)
                if sound:
                    break
                if attempt:
                    raise RemoteError(
                        f"bytes {piece.begin + begin} to {piece.begin + end} do not have the checksums "
                        "of the shard's index; it was replaced or damaged there: restore it, or run "
                        "`webdatamodule convert` with --check",
                        shard=self.name(piece),
                        **remote.directory.store.where,
                    )
                self.note_damage(piece, "came damaged")
            write_at(descriptor, bytes([PRESENT]) * (last - first), piece.states_at + first)
            if self._arrived is not None and piece.index.crcs is not None:
                self._arrived(piece.shard, piece.first + first, piece.first + last)

    def _read(self, piece: Piece, found: Sequence[tuple[int, int]], data: memoryview) -> None:
        """Fetch byte ranges of a piece; ``data`` begins where the first of them does."""
        directory, origin = self._remote(piece.shard)[0].directory, found[0][0]
        parts = [(part, min(part + _PART, end)) for begin, end in found for part in range(begin, end, _PART)]
        for some in _grouped(parts):
            absolute = [(piece.begin + begin, piece.begin + end) for begin, end in some]
            directory.read(piece.name, absolute, [data[begin - origin : end - origin] for begin, end in some])
            self._count(sum(end - begin for begin, end in some), len(some))

    def name(self, piece: Piece) -> str:
        """Return what messages call the shard of a piece."""
        remote, number = self._remote(piece.shard)
        return remote.path(number)


class Memory(threading.local):
    """Memory of each thread for what comes, used again unless a part of it is still held."""

    def __init__(self) -> None:
        self._data = bytearray()

    def of(self, n_bytes: int) -> memoryview:
        """Return memory, whatever it holds."""
        with contextlib.suppress(BufferError):  # an attempt that was given up may still write into it
            del self._data[-1:]
            if len(self._data) >= n_bytes:
                return memoryview(self._data)[:n_bytes]
        self._data = bytearray(n_bytes + _SPARE)
        return memoryview(self._data)[:n_bytes]


def is_there(piece: Piece, rows: range | NDArray[np.int64]) -> bool:
    """Return whether samples of a piece are in its file."""
    try:
        with open(piece.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != piece.file_bytes:
                return False
            return bool((read_states(file.fileno(), piece)[np.asarray(rows, np.int64)] != ABSENT).all())
    except OSError:
        return False


def _created(path: str) -> int:
    """Return a descriptor of a file, which is made where it is not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _grouped(parts: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield byte ranges in groups that are read by one operation on the store."""
    some: list[tuple[int, int]] = []
    for part in parts:
        some.append(part)
        if sum(end - begin for begin, end in some) >= _PART:
            yield some
            some = []
    if some:
        yield some
