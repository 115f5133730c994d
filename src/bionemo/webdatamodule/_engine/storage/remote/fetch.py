"""Fetches pieces of remote shards before they are needed, in the order of need, with many connections at once."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.remote.pieces import (
    ABSENT,
    PRESENT,
    WORTH_A_REQUEST,
    Piece,
    all_read,
    extents,
    is_sound,
    mark_of,
    read_states,
    runs_of,
    write_at,
)
from bionemo.webdatamodule._engine.storage.remote.shards import Remote
from bionemo.webdatamodule._engine.storage.shard_cache import FULL, lock, try_lock, unlock
from bionemo.webdatamodule.errors import RemoteError

_log = logging.getLogger("bionemo.webdatamodule")

CONNECTIONS = 32
"""Requests that the processes of one rank have under way, at most."""

AHEAD = 256 << 20
"""Bytes that one process fetches before they are needed, at most."""

_PART = 8 << 20  # bytes of one request, at most
_REPORT = 30.0  # seconds between two lines of the log


@dataclass(frozen=True, kw_only=True)
class Need:
    """Samples that will be read: those from ``first`` to ``last - 1`` of a shard."""

    shard: int
    first: int
    last: int


@dataclass(kw_only=True)
class Progress:
    """What one process fetched so far.

    Attributes:
        n_bytes: Bytes that came.
        n_requests: Requests for them.
        waited: Seconds for which reading waited for them.
        again: Pieces that were fetched again since their bytes were damaged.
        started: When it began, by ``time.monotonic``.
    """

    n_bytes: int = 0
    n_requests: int = 0
    waited: float = 0.0
    again: int = 0
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        seconds = max(1e-9, time.monotonic() - self.started)
        return (
            f"{self.n_bytes / 1e6:.1f} MB in {self.n_requests} requests, "
            f"{self.n_bytes / 1e6 / seconds:.1f} MB/s, waited {self.waited:.1f} of {seconds:.1f} s"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """Samples of a piece to fetch; ``done`` is set where a reader waits for them."""

    shard: int
    place: int
    rows: range | NDArray[np.int64]
    done: futures.Future[None] | None = None


class Fetcher:
    """Fetches pieces for one process.

    Its threads live while there is something to fetch.

    Args:
        shards: For each shard its set and its number there; ``None`` for shards of this machine.
        suffixes: The fields that will be read.
        workers: Processes among which the connections are divided.

    Attributes:
        progress: What was fetched.
    """

    def __init__(
        self, shards: Sequence[tuple[Remote, int] | None], *, suffixes: Sequence[str], workers: int = 1
    ) -> None:
        self._shards = shards
        self.progress = Progress()
        self.mark = PRESENT
        self._suffixes = frozenset(suffixes)
        self._most = max(2, CONNECTIONS // max(1, workers))
        room = min((found[0].cache.size for found in shards if found is not None), default=0)
        self._ahead_limit = max(1, min(AHEAD, room // 4))
        self._lock = threading.Lock()
        self._indexes: dict[int, futures.Future[tuple[ShardIndex, list[int]]]] = {}
        self._urgent: deque[_Task] = deque()
        self._planned: Iterator[_Task] = iter(())
        self._n_threads = 0
        self._ahead = 0  # bytes that were planned and not reached yet
        self._waiting: dict[tuple[int, int], int] = {}  # bytes planned of pieces that were not reached yet
        self._reported = time.monotonic()

    def load(self, shards: Iterable[int]) -> None:
        """Read the indexes of several shards at the same time."""
        missing = [shard for shard in shards if shard not in self._indexes]
        if len(missing) > 1:
            with futures.ThreadPoolExecutor(min(len(missing), self._most)) as pool:
                list(pool.map(self._index, missing))

    def piece(self, shard: int, place: int) -> Piece:
        """Return a piece of a shard."""
        index, columns = self._index(shard)
        remote, number = self._remote(shard)
        return replace(remote.piece(number, place, index, columns), shard=shard)

    def follow(self, needs: Iterable[Need], epoch: int) -> None:
        """Fetch ahead what will be needed, in this order, instead of what was said before.

        Args:
            needs: Runs of samples; they are taken one after the other, as bytes and connections permit.
            epoch: Number of the epoch, which decides what the cache needs no more.
        """
        with self._lock:
            self._planned = self._tasks(needs)
            self.mark = mark_of(epoch)
            self._ahead = 0
            self._waiting = {}
        self._work()

    def fetch(self, wanted: Sequence[tuple[Piece, NDArray[np.int64]]]) -> None:
        """Return when samples of pieces are there.

        Raises:
            RemoteError: If they cannot be fetched, or kept.
        """
        started = time.monotonic()
        tasks: dict[_Task, futures.Future[None]] = {}
        for piece, rows in wanted:
            done: futures.Future[None] = futures.Future()
            place = piece.first // self._length(piece.shard)
            tasks[_Task(shard=piece.shard, place=place, rows=rows, done=done)] = done
        with self._lock:
            self._urgent.extend(tasks)
        self._work()
        try:
            for done in tasks.values():
                done.result()
        finally:
            with self._lock:
                self._urgent = deque(task for task in self._urgent if task not in tasks)
                self.progress.waited += time.monotonic() - started
        self._report()

    def restore(self, piece: Piece, row: int) -> None:
        """Fetch a sample again whose bytes in the cache were damaged.

        Raises:
            RemoteError: If it cannot be fetched, or is damaged there too.
        """
        self._damaged(piece, "was damaged in the cache")
        with self._locked(piece, wait=True) as descriptor:
            if descriptor is not None:
                self._fill(descriptor, piece, range(row, row + 1), again=True)

    def reached(self, shard: int, place: int) -> None:
        """Note that a piece is being read now, so that further ones may be fetched."""
        with self._lock:
            n_bytes = self._waiting.pop((shard, place), 0)
            self._ahead -= n_bytes
        if n_bytes:
            self._work()

    def _index(self, shard: int) -> tuple[ShardIndex, list[int]]:
        """Return the index of a shard and the columns that its pieces keep; it is read once."""
        with self._lock:
            found = self._indexes.get(shard)
            mine = found is None
            if found is None:
                found = self._indexes[shard] = futures.Future()
        if mine:
            try:
                remote, number = self._remote(shard)
                index = remote.index(number)
                found.set_result((index, _columns(index, self._suffixes)))
            except BaseException as error:  # noqa: BLE001 - all who wait get it
                with self._lock:
                    del self._indexes[shard]
                found.set_exception(error)
        return found.result()

    def _remote(self, shard: int) -> tuple[Remote, int]:
        found = self._shards[shard]
        assert found is not None  # noqa: S101 - for the type checker: pieces are of remote shards
        return found

    def _length(self, shard: int) -> int:
        remote, number = self._remote(shard)
        return remote.samples_per_piece(number)

    def name(self, piece: Piece) -> str:
        """Return what messages call the shard of a piece."""
        remote, number = self._remote(piece.shard)
        return remote.path(number)

    def _tasks(self, needs: Iterable[Need]) -> Iterator[_Task]:
        """Yield the pieces that hold what is needed."""
        for need in needs:
            length = self._length(need.shard)
            for place in range(need.first // length, (need.last - 1) // length + 1):
                first, last = max(0, need.first - place * length), min(length, need.last - place * length)
                yield _Task(shard=need.shard, place=place, rows=range(first, last))

    def _work(self) -> None:
        """Start threads, as many as may be of use."""
        while True:
            with self._lock:
                task = self._next() if self._n_threads < self._most else None
                if task is None:
                    return
                self._n_threads += 1
            threading.Thread(target=self._run, args=(task,), name="webdatamodule-fetch", daemon=True).start()

    def _next(self) -> _Task | None:
        """Return what to fetch next; called with the lock held."""
        if self._urgent:
            return self._urgent.popleft()
        if self._ahead >= self._ahead_limit:
            return None
        try:
            task = next(self._planned, None)
        except Exception as error:  # noqa: BLE001 - the plan raises where it is read as well
            _log.debug("fetching ahead: %s: %s", type(error).__name__, error)
            task = None
        if task is not None:
            remote, number = self._remote(task.shard)
            shard = remote.shards[number]
            n_bytes = shard.bytes * len(task.rows) // max(1, shard.samples)
            key = task.shard, task.place
            self._waiting[key] = self._waiting.get(key, 0) + n_bytes
            self._ahead += n_bytes
        return task

    def _run(self, task: _Task | None) -> None:
        while task is not None:
            try:
                self._do(task)
                if task.done is not None:
                    task.done.set_result(None)
            except BaseException as error:  # noqa: BLE001 - the caller that waits gets it
                if task.done is not None:
                    task.done.set_exception(error)
                else:  # the reader that needs it tries again, and raises
                    _log.debug("fetching ahead: %s: %s", type(error).__name__, error)
            with self._lock:
                task = self._next()
                if task is None:
                    self._n_threads -= 1

    def _do(self, task: _Task) -> None:
        """Fetch what of a task is not there."""
        piece = self.piece(task.shard, task.place)
        if _is_there(piece, task.rows):
            return
        try:
            self._fetch(piece, task)
        except RemoteError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
            if not full or not self._remote(task.shard)[0].cache.free(piece.n_bytes, self._is_done):
                raise
            self._fetch(piece, task)

    def _fetch(self, piece: Piece, task: _Task) -> None:
        with self._locked(piece, wait=task.done is not None) as descriptor:
            if descriptor is not None:
                self._fill(descriptor, piece, task.rows)

    @contextlib.contextmanager
    def _locked(self, piece: Piece, *, wait: bool) -> Iterator[int | None]:
        """Yield the descriptor of a piece file with its lock held, or ``None`` where another process holds it."""
        with self._remote(piece.shard)[0].cache.writing():
            os.makedirs(os.path.dirname(piece.path), mode=0o700, exist_ok=True)
            descriptor = os.open(piece.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if wait:
                    lock(descriptor)
                elif not try_lock(descriptor):
                    yield None
                    return
                if os.fstat(descriptor).st_size != piece.file_bytes:
                    os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, piece.file_bytes)
                yield descriptor
            finally:
                unlock(descriptor)
                os.close(descriptor)

    def _fill(self, descriptor: int, piece: Piece, rows: range | NDArray[np.int64], *, again: bool = False) -> None:
        """Fetch samples of a piece that are not in its file."""
        states = read_states(descriptor, piece)
        wanted = np.asarray(rows, np.int64)
        absent = wanted if again else wanted[states[wanted] == ABSENT]
        remote, _ = self._remote(piece.shard)
        for first, last in runs_of(absent, piece):
            found = extents(piece, first, last)
            remote.cache.make_room(sum(end - begin for begin, end in found), self._is_done)
            for attempt in range(2):
                self._copy(descriptor, piece, found)
                if _is_sound_on_disk(descriptor, piece, first, last):
                    break
                if attempt:
                    raise RemoteError(
                        f"bytes {piece.begin + found[0][0]} to {piece.begin + found[-1][1]} do not have the checksums "
                        "of the shard's index; it was replaced or damaged there: restore it, or convert again",
                        shard=self.name(piece),
                    )
                self._damaged(piece, "came damaged")
            write_at(descriptor, bytes([PRESENT]) * (last - first), piece.states_at + first)

    def _copy(self, descriptor: int, piece: Piece, found: Sequence[tuple[int, int]]) -> None:
        """Fetch byte ranges of a piece into its file."""
        parts = [(part, min(part + _PART, end)) for begin, end in found for part in range(begin, end, _PART)]
        together: list[tuple[int, int]] = []
        for number, part in enumerate(parts):
            together.append(part)
            if number + 1 == len(parts) or sum(end - begin for begin, end in together) >= _PART:
                memory = [memoryview(bytearray(end - begin)) for begin, end in together]
                absolute = [(piece.begin + begin, piece.begin + end) for begin, end in together]
                self._remote(piece.shard)[0].directory.read(piece.name, absolute, memory)
                for (begin, _), data in zip(together, memory, strict=True):
                    write_at(descriptor, data, begin)
                with self._lock:
                    self.progress.n_bytes += sum(end - begin for begin, end in together)
                    self.progress.n_requests += len(together)
                together = []

    def _damaged(self, piece: Piece, what: str) -> None:
        with self._lock:
            self.progress.again += 1
        _log.warning("a piece of %s %s and is fetched again", self.name(piece), what)

    def _is_done(self, path: str) -> bool:
        """Return whether all samples of a piece file were read in this epoch."""
        with contextlib.suppress(OSError):
            return self.mark != PRESENT and all_read(path, self.mark)
        return False

    def _report(self) -> None:
        """Log what was fetched, now and then."""
        now = time.monotonic()
        if now - self._reported >= _REPORT:
            self._reported = now
            decided("remote shards: %s", self.progress)


def _columns(index: ShardIndex, suffixes: frozenset[str]) -> list[int]:
    """Return the suffixes of a shard that its pieces keep: all, unless those asked for are less than half of it."""
    wanted = [number for number, suffix in enumerate(index.suffixes) if suffix in suffixes]
    sizes = index.sizes.sum(axis=0)
    mean = sizes.sum() / max(1, index.n_samples)
    saves = sizes[wanted].sum() * 2 < sizes.sum() and mean > WORTH_A_REQUEST
    return wanted if saves else list(range(len(index.suffixes)))


def _is_there(piece: Piece, rows: range | NDArray[np.int64]) -> bool:
    """Return whether samples of a piece are in its file."""
    try:
        with open(piece.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != piece.file_bytes:
                return False
            return bool((read_states(file.fileno(), piece)[np.asarray(rows, np.int64)] != ABSENT).all())
    except OSError:
        return False


def _is_sound_on_disk(descriptor: int, piece: Piece, first: int, last: int) -> bool:
    """Return whether samples in a piece file have their checksums."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        return all(is_sound(piece, row, view, 0) for row in range(first, last))
