"""Fetches pieces of remote shards before they are needed, in the order of need, with many connections at once."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.log import decided
from bionemo.webdatamodule._engine.storage.remote.counters import Counters
from bionemo.webdatamodule._engine.storage.remote.pieces import WORTH_A_REQUEST, Cut, Piece, mark_of
from bionemo.webdatamodule._engine.storage.remote.retry import in_background, is_ending, one_thread
from bionemo.webdatamodule._engine.storage.remote.shards import Remote
from bionemo.webdatamodule._engine.storage.remote.transfer import Transfer, is_there
from bionemo.webdatamodule._engine.storage.shard_cache import FULL
from bionemo.webdatamodule.errors import RemoteError

_log = logging.getLogger("bionemo.webdatamodule")

CONNECTIONS = 32
"""Requests that the processes of one rank have under way, at most."""

AHEAD = 256 << 20
"""Bytes that one process fetches before they are needed, at most."""

_FIRST = 16 << 20  # bytes that are fetched ahead at first: more would only delay the first batch
_LEAD = 4  # and later, as a multiple of the bytes that were reached, up to AHEAD
_UNDER_WAY = 8 << 20  # bytes under way at first, later half of those reached: what comes next shares the link with them
_GROWTH = 4  # of what is fetched at once, as a multiple of the plan before it
_TOGETHER = 64 << 20  # bytes of the plan within which parts of a piece are fetched at once, at most
_REPORT = 30.0  # seconds between two lines of the log


@dataclass(frozen=True, kw_only=True)
class Need:
    """Samples that will be read: those from ``first`` to ``last - 1`` of a shard."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """Samples of a piece to fetch.

    Attributes:
        shard: Number of the shard.
        place: Number of the piece in it.
        rows: Numbers of the samples in the piece.
        number: Its place in the plan; -1 where a reader waits for what no plan announced.
        n_bytes: Bytes of the samples, about.
        behind: Bytes of the plan before it.
        done: Is set when they are there, or cannot be fetched.
    """

    shard: int
    place: int
    rows: range | NDArray[np.int64]
    number: int = -1
    n_bytes: int = 0
    behind: int = 0
    done: futures.Future[None] = field(default_factory=futures.Future)

    @property
    def key(self) -> tuple[int, int]:
        """The piece."""
        return self.shard, self.place

    def holds(self, rows: NDArray[np.int64]) -> bool:
        """Return whether it fetches any of some samples, where it is of a plan."""
        return isinstance(self.rows, range) and bool(((rows >= self.rows.start) & (rows < self.rows.stop)).any())


class Fetcher:
    """Fetches pieces for one process.

    Its threads live while there is something to fetch.

    Args:
        shards: For each shard its set and its number there; ``None`` for shards of this machine.
        suffixes: The fields that will be read.
        cuts: How each shard is cut into pieces; ``None`` for shards of this machine.
        worker: This process's number among those that follow the same plan.
        workers: Processes among which the connections, and the pieces of a plan that all follow, are divided.
        arrived: Is called when samples of a shard came and have their checksums: with the shard, the first, and the one
            behind the last.
        counters: Count what is fetched.
        let_go: Closes what this process has open of what was removed from the cache; with ``is_full=True`` all of it.

    Attributes:
        transfer: Brings samples into the files of pieces.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Remote, int] | None],
        *,
        suffixes: Sequence[str],
        cuts: Sequence[Cut | None],
        worker: int = 0,
        workers: int = 1,
        arrived: Callable[[int, int, int], None] | None = None,
        counters: Counters | None = None,
        let_go: Callable[..., None] = lambda **_: None,
    ) -> None:
        self._shards = shards
        self._let_go = let_go
        self._counters = Counters() if counters is None else counters
        self._suffixes = frozenset(suffixes)
        self._worker, self._workers = worker, max(1, workers)
        self._cuts = cuts
        self._most = max(2, CONNECTIONS // self._workers)
        room = min((found[0].cache.size for found in shards if found is not None), default=0)
        self._ahead_limit = max(1, min(AHEAD, room // 4))
        self._lock = threading.Lock()
        self._indexes: dict[int, futures.Future[tuple[ShardIndex, list[int]]]] = {}
        self._urgent: deque[_Task] = deque()
        self._planned: Iterator[_Task] = iter(())
        self._divided = False  # whether other workers follow the same plan
        self._queue: deque[_Task] = deque()  # of the plan, taken and not begun
        self._taken: deque[_Task] = deque()  # of the plan, taken and not reached by the reader
        self._known: dict[tuple[int, int], list[_Task]] = {}  # the same by piece
        self._put_off: set[_Task] = set()  # whose pieces were being filled
        self._n_threads = 0
        self._under_way = 0  # bytes of the plan that are being fetched
        self._ahead = 0  # bytes that were taken and not reached yet
        self._reached = 0  # bytes of the plan that were reached
        self.transfer = Transfer(self._remote, arrived=arrived, count=self._count)
        self._started = self._reported = time.monotonic()

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
        first, stop = self._pieces(shard).bounds(place)
        return replace(remote.piece(number, first, stop, index, columns), shard=shard)

    def follow(self, needs: Iterable[Need], epoch: int, *, divided: bool = False) -> None:
        """Fetch ahead what will be needed, in this order, instead of what was said before.

        Args:
            needs: Runs of samples; they are taken one after the other, as bytes and connections permit.
            epoch: Number of the epoch, which decides what the cache needs no more.
            divided: Whether all workers follow the same needs, so that each fetches its part of them.
        """
        with self._lock:
            self._planned = self._tasks(needs)
            self._divided = divided
            self.transfer.mark = mark_of(epoch)
            self._ahead = 0
            self._reached = 0
            self._known = {}
            self._put_off.clear()
            self._taken.clear()
            self._queue.clear()
        self._work()

    def fetch(self, wanted: Sequence[tuple[tuple[int, int], NDArray[np.int64]]], *, again: bool = False) -> None:
        """Return when samples of pieces are there, or another process removed them again.

        Args:
            wanted: Pieces, each by the numbers of its shard and of the piece there, and numbers of samples in them.
            again: Whether they are not there although they were fetched.

        Raises:
            RemoteError: If they cannot be fetched, or kept.
        """
        started = time.monotonic()
        with self._lock:
            for _ in range(self._workers * (len(wanted) + 1)):  # what is needed first is what the plan has first
                far = self._ahead >= 2 * self._ahead_limit
                if far or all(key in self._known for key, _ in wanted) or not self._take():
                    break
            tasks = {task for key, rows in wanted for task in self._serving(key, rows, again=again)}
            new = [task for task in tasks if task.number < 0]
            self._urgent.extend(new)
        self._work()
        try:
            for task in tasks:
                task.done.result()
        finally:
            with self._lock:
                if new:
                    self._urgent = deque(task for task in self._urgent if task not in tasks)
                self._counters.add(self._worker, waited=time.monotonic() - started)
        self._report()

    def restore(self, piece: Piece, row: int) -> None:
        """Fetch a sample again whose bytes in the cache were damaged.

        Raises:
            RemoteError: If it cannot be fetched, or is damaged there too.
        """
        self.transfer.note_damage(piece, "was damaged in the cache")
        self.transfer.bring(piece, range(row, row + 1), wait=True, again=True)

    def reached(self, wanted: Mapping[tuple[int, int], NDArray[np.int64]]) -> None:
        """Note that samples of pieces are being read now, so that what comes behind them may be fetched."""
        with self._lock:
            numbers = [
                task.number for key, rows in wanted.items() for task in self._known.get(key, ()) if task.holds(rows)
            ]
            while numbers and self._taken and self._taken[0].number <= max(numbers):
                task = self._taken.popleft()
                self._ahead -= task.n_bytes
                self._reached += task.n_bytes
                self._known[task.key].remove(task)
                if not self._known[task.key]:
                    del self._known[task.key]
        if numbers:
            self._work()

    def _serving(self, key: tuple[int, int], rows: NDArray[np.int64], *, again: bool) -> list[_Task]:
        """Return what to wait for until samples are there; called with the lock held."""
        known = [task for task in self._known.get(key, ()) if task.holds(rows)]
        own = [task for task in known if self._is_own(task) and not (again and task.done.done())]
        if own:
            return own
        others = [task for task in known if not task.done.done()]  # another worker fetches it, or will
        return [replace(task, number=-1) for task in others] or [_Task(shard=key[0], place=key[1], rows=rows)]

    def _is_own(self, task: _Task) -> bool:
        """Return whether this worker fetches it: a piece is one worker's, since its file is locked meanwhile."""
        return not self._divided or sum(task.key) % self._workers == self._worker

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

    def _pieces(self, shard: int) -> Cut:
        found = self._cuts[shard]
        assert found is not None  # noqa: S101 - for the type checker: pieces are of remote shards
        return found

    def _tasks(self, needs: Iterable[Need]) -> Iterator[_Task]:
        """Yield the pieces that hold what is needed."""
        numbers, behind = itertools.count(), 0
        for need in needs:
            remote, number = self._remote(need.shard)
            shard, cut = remote.shards[number], self._pieces(need.shard)
            for place in range(cut.place(need.first), cut.place(need.last - 1) + 1):
                first, stop = cut.bounds(place)
                rows = range(max(0, need.first - first), min(stop, need.last) - first)
                n_bytes = shard.bytes * len(rows) // max(1, shard.samples)
                yield _Task(
                    shard=need.shard,
                    place=place,
                    rows=rows,
                    number=next(numbers),
                    n_bytes=n_bytes,
                    behind=behind,
                )
                behind += n_bytes

    def _work(self) -> None:
        """Start a thread if it may be of use; it starts the next one, since each start takes a while."""
        with self._lock:
            tasks = self._next() if self._n_threads < self._most else []
            if not tasks:
                return
            self._n_threads += 1
        try:
            in_background(partial(self._run, tasks))
        except RuntimeError:  # no thread can be started: another one does it, or this one
            with self._lock:
                alone = self._n_threads == 1
                if not alone:
                    self._n_threads -= 1
                    self._under_way -= _bytes_of(tasks)
                    (self._queue if tasks[0].number >= 0 else self._urgent).extendleft(reversed(tasks))
            if alone:
                self._run(tasks)

    def _next(self) -> list[_Task]:
        """Return what to fetch next, parts of one piece that lie side by side; called with the lock held."""
        if is_ending():
            return []
        if self._urgent:
            return [self._urgent.popleft()]
        limit = min(self._ahead_limit, max(_FIRST, _LEAD * self._reached))
        while not self._queue and self._ahead < limit:
            if not self._take():
                break
        if not self._queue or not self._may_begin(self._queue[0]):
            return []
        together = [first] = [self._queue.popleft()]
        end = first.behind + min(_GROWTH * first.behind, _TOGETHER)  # the first batch is not to wait for later ones
        while self._ahead < limit and self._taken and self._taken[-1].behind < end and self._take():
            pass
        for task in self._known.get(first.key, ()):
            if task.number > first.number and task.behind < end and task.rows[0] == together[-1].rows[-1] + 1:
                with contextlib.suppress(ValueError):  # it was begun before
                    self._queue.remove(task)
                    together.append(task)
        self._under_way += _bytes_of(together)
        return together

    def _may_begin(self, task: _Task) -> bool:
        """Return whether a task of the plan may be begun now; called with the lock held."""
        most = max(_UNDER_WAY, self._reached // 2) // (self._workers if self._divided else 1)
        return not self._under_way or self._under_way + task.n_bytes <= most

    def _take(self) -> bool:
        """Take what comes next in the plan, and return whether there is more; called with the lock held."""
        try:
            task = next(self._planned, None)
        except Exception as error:  # noqa: BLE001 - the plan raises where it is read as well
            _log.debug("fetching ahead: %s: %s", type(error).__name__, error)
            task = None
        if task is None:
            return False
        self._ahead += task.n_bytes
        self._taken.append(task)
        self._known.setdefault(task.key, []).append(task)
        if self._is_own(task):
            self._queue.append(task)
        return True

    def _run(self, tasks: list[_Task]) -> None:
        with one_thread():
            while tasks:
                self._work()
                self._try(tasks)
                with self._lock:
                    self._under_way -= _bytes_of(tasks)
                    tasks = self._next()
                    if not tasks:
                        self._n_threads -= 1

    def _try(self, tasks: list[_Task]) -> None:
        """Fetch tasks that lie side by side, or put them off while another thread or process fills their piece."""
        error: BaseException | None = None
        done = True
        try:
            rows = range(tasks[0].rows[0], tasks[-1].rows[-1] + 1) if tasks[1:] else tasks[0].rows
            wait = tasks[0].number < 0 or not self._put_off.isdisjoint(tasks)
            done = self._do(replace(tasks[0], rows=rows), wait=wait)
        except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
            error = raised
        with self._lock:
            if not done:  # others come first, and next time it waits
                self._put_off.update(tasks)
                place = min(len(self._queue), self._most)
                for task in reversed(tasks):
                    self._queue.insert(place, task)
                return
            self._put_off.difference_update(tasks)
        for task in tasks:
            with contextlib.suppress(futures.InvalidStateError):  # two wait for what another worker fetches
                task.done.set_result(None) if error is None else task.done.set_exception(error)

    def _do(self, task: _Task, *, wait: bool) -> bool:
        """Fetch what of a task is not there.

        Args:
            task: The task.
            wait: Wait while another thread or process fills the piece.

        Returns:
            Whether it is there now; otherwise another fills the piece, perhaps with other samples.
        """
        self._index(task.shard)  # which may be a request
        with self.transfer.busy:
            piece = self.piece(*task.key)
            if is_there(piece, task.rows):
                return True
        try:
            done = self.transfer.bring(piece, task.rows, wait=wait)
        except RemoteError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL
            if not full or not self._remote(task.shard)[0].cache.free(piece.n_bytes, self.transfer.is_done):
                raise
            self._let_go(is_full=True)
            return self.transfer.bring(piece, task.rows, wait=wait)
        self._let_go()
        return done

    def _count(self, n_bytes: int, n_requests: int) -> None:
        with self._lock:
            self._counters.add(self._worker, n_bytes=n_bytes, n_requests=n_requests)

    def _report(self) -> None:
        """Log what was fetched, now and then."""
        now = time.monotonic()
        if now - self._reported >= _REPORT:
            self._reported = now
            found, seconds = self._counters.total(), max(1e-9, now - self._started)
            decided(
                "remote shards: %.1f MB in %d requests, %.1f MB/s, waited %.1f of %.1f s",
                *(found.n_bytes / 1e6, found.n_requests, found.n_bytes / 1e6 / seconds, found.waited, seconds),
            )


def _bytes_of(tasks: Iterable[_Task]) -> int:
    return sum(task.n_bytes for task in tasks)


def _columns(index: ShardIndex, suffixes: frozenset[str]) -> list[int]:
    """Return the suffixes of a shard that its pieces keep: all, unless those asked for are less than half of it."""
    wanted = [number for number, suffix in enumerate(index.suffixes) if suffix in suffixes]
    sizes = index.sizes.sum(axis=0)
    mean = sizes.sum() / max(1, index.n_samples)
    saves = sizes[wanted].sum() * 2 < sizes.sum() and mean > WORTH_A_REQUEST
    return wanted if saves else list(range(len(index.suffixes)))
