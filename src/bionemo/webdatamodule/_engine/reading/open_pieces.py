"""Pieces of remote shards in memory: fetched, mapped, and fetched again where they were damaged or removed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.format.mapping import mapped
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, close_removed, opened
from bionemo.webdatamodule._engine.storage.remote.fetch import Fetcher, Need
from bionemo.webdatamodule._engine.storage.remote.pieces import Cut, Piece
from bionemo.webdatamodule.errors import ChangedDataError, RemoteError, count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bionemo.webdatamodule._engine.reading.shard_set import ShardSet

_ATTEMPTS = 5  # where other processes remove pieces, to make room or by hand


class OpenPieces:
    """The pieces of the remote shards of one reader, in one process.

    Args:
        shards: The set of each shard and its number there.
        suffixes: The fields that will be read.
        opened: Where the reader keeps what is open.
        more: More of :class:`.Fetcher`.
    """

    def __init__(
        self, shards: Sequence[tuple[ShardSet, int]], suffixes: Sequence[str], opened: OpenShards, **more: Any
    ) -> None:
        found = [None if held.remote is None else (held.remote, number) for held, number in shards]
        worker = context.worker()
        self._let_go = partial(close_removed, sorted({each[0].cache.root for each in found if each is not None}))
        self.fetcher = Fetcher(
            found, suffixes=suffixes, worker=worker.number, workers=worker.count, let_go=self._let_go, **more
        )
        self.pid = os.getpid()
        self._suffixes = suffixes
        self._open = opened

    def get(self, wanted: dict[tuple[int, int], NDArray[np.int64]]) -> dict[tuple[int, int], OpenShard]:
        """Return pieces with samples that are there.

        Args:
            wanted: For a shard and the number of a piece in it the numbers of samples in the piece.

        Raises:
            RemoteError: If they cannot be fetched.
        """
        ready: dict[tuple[int, int], OpenShard] = {}
        for attempt in range(_ATTEMPTS):
            missing: dict[tuple[int, int], NDArray[np.int64]] = {}
            for key, rows in wanted.items():
                if key in ready:
                    continue
                with contextlib.suppress(ChangedDataError):
                    shard = self._open.get(key)
                    if shard is not None and shard.has(rows):
                        ready[key] = shard
                        continue
                missing[key] = rows
            if not missing:
                break
            self._let_go()
            self.fetcher.load({shard for shard, _ in missing})
            self.fetcher.fetch(list(missing.items()), again=attempt > 0)
            pieces = {key: self.fetcher.piece(*key) for key in missing}
            for key, piece in pieces.items():
                self._open.close(key)
                with contextlib.suppress(FileNotFoundError, ValueError):  # removed by another process
                    ready_one = self._open.open(key, lambda _, piece=piece: self._map(piece))  # type: ignore[misc]
                    if ready_one.has(missing[key]):
                        ready[key] = ready_one
            if len(ready) == len(wanted):
                break
        else:
            raise RemoteError(
                f"pieces of {count(len(wanted) - len(ready), 'shard')} are removed from the cache before they are "
                "read; give a larger cache_size"
            )
        for key, rows in wanted.items():
            ready[key].mark(rows, self.fetcher.transfer.mark)
        self.fetcher.reached(wanted)
        return ready

    def _map(self, piece: Piece) -> OpenShard:
        descriptor, writable = _opened(piece.path)
        try:
            found = os.fstat(descriptor)
            if found.st_size != piece.file_bytes:
                raise FileNotFoundError(piece.path)
            data = mapped(descriptor)  # without a descriptor to ask for its size: that costs a call for each batch
            states = data[piece.states_at :]
            with contextlib.suppress(OSError):  # a cache that is read-only has no marks
                if writable:
                    states = mapped(descriptor, size=piece.n_samples, offset=piece.states_at, writable=True)
                    os.utime(descriptor)
        finally:
            os.close(descriptor)

        def restore(row: int) -> None:
            self.fetcher.restore(piece, row)

        return opened(
            path=self.fetcher.transfer.name(piece),
            place=piece.path,
            data=data,
            file=None,
            index=piece.index,
            suffixes=self._suffixes,
            states=np.frombuffer(states, np.uint8),
            inode=found.st_ino,
            restore=restore,
        )


def _opened(path: str) -> tuple[int, bool]:
    """Return a descriptor of a file, and whether it can be written."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), True
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False


def needs_of(
    runs: Iterable[NDArray[np.int64] | range],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    cuts: Sequence[Cut | None],
) -> Iterable[Need]:
    """Yield what must be fetched for samples that will be read, in the order of need.

    Args:
        runs: Numbers of samples that will be read together; a ``range`` is fetched as it is, and for numbers in any
            order the pieces that hold them, once.
        starts: Number of the first sample of each shard.
        ends: One more than that of its last.
        cuts: How each shard is cut into pieces; ``None`` for shards of this machine.
    """
    known: set[tuple[int, int]] = set()
    for run in runs:
        if isinstance(run, range):
            first = run.start
            while first < run.stop:
                shard = int(np.searchsorted(ends, first, side="right"))
                last = min(run.stop, int(ends[shard]))
                if cuts[shard] is not None:
                    yield Need(shard=shard, first=first - int(starts[shard]), last=last - int(starts[shard]))
                first = last
            continue
        shards = np.searchsorted(ends, run, side="right")
        for shard, row in zip(shards.tolist(), (run - starts[shards]).tolist(), strict=True):
            cut = cuts[shard]
            place = -1 if cut is None else cut.place(row)
            if cut is not None and (shard, place) not in known:
                known.add((shard, place))
                begin, stop = cut.bounds(place)
                yield Need(shard=shard, first=begin, last=stop)
