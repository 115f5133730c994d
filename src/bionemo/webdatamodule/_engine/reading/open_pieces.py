"""Pieces of remote shards in memory: fetched, mapped, and fetched again where they were damaged or removed."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, opened
from bionemo.webdatamodule._engine.storage.remote.fetch import Fetcher, Need
from bionemo.webdatamodule._engine.storage.remote.pieces import Piece
from bionemo.webdatamodule.errors import ChangedDataError, RemoteError

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
    """

    def __init__(self, shards: Sequence[tuple[ShardSet, int]], suffixes: Sequence[str], opened: OpenShards) -> None:
        found = [None if held.remote is None else (held.remote, number) for held, number in shards]
        self.fetcher = Fetcher(found, suffixes=suffixes, workers=context.worker().count)
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
        for _ in range(_ATTEMPTS):
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
            self.fetcher.load({shard for shard, _ in missing})
            pieces = {key: self.fetcher.piece(*key) for key in missing}
            self.fetcher.fetch([(pieces[key], rows) for key, rows in missing.items()])
            for key, piece in pieces.items():
                with contextlib.suppress(FileNotFoundError, ValueError):  # removed by another process
                    ready_one = self._open.open(key, lambda _, piece=piece: self._map(piece))  # type: ignore[misc]
                    if ready_one.has(missing[key]):
                        ready[key] = ready_one
        else:
            raise RemoteError(
                f"pieces of {len(wanted) - len(ready)} shards are removed from the cache before they are read; "
                "give a larger cache_size"
            )
        for key, rows in wanted.items():
            ready[key].mark(rows, self.fetcher.mark)
            self.fetcher.reached(*key)
        return ready

    def follow(self, needs: Iterable[Need], epoch: int) -> None:
        """See :meth:`.Fetcher.follow`."""
        self.fetcher.follow(needs, epoch)

    def _map(self, piece: Piece) -> OpenShard:
        with open(piece.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != piece.file_bytes:
                raise FileNotFoundError(piece.path)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        states: memoryview | mmap.mmap = memoryview(data)[piece.states_at :]
        with (
            contextlib.suppress(OSError),
            open(piece.path, "r+b") as writable,
        ):  # a cache that is read-only has no marks
            states = mmap.mmap(writable.fileno(), piece.n_samples, offset=piece.states_at)
            os.utime(piece.path)

        def restore(row: int) -> None:
            self.fetcher.restore(piece, row)

        return opened(
            path=self.fetcher.name(piece),
            data=data,
            index=piece.index,
            suffixes=self._suffixes,
            states=np.frombuffer(states, np.uint8),
            restore=restore,
        )


def needs_of(
    runs: Iterable[NDArray[np.int64] | range],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> Iterable[Need]:
    """Yield what must be fetched for samples that will be read, in the order of need.

    Args:
        runs: Numbers of samples that will be read together; a ``range`` is fetched as it is, and for numbers in any
            order the pieces that hold them, once.
        starts: Number of the first sample of each shard.
        ends: One more than that of its last.
        lengths: Samples of a piece of each shard; 0 for shards of this machine.
    """
    known: set[tuple[int, int]] = set()
    for run in runs:
        if isinstance(run, range):
            first = run.start
            while first < run.stop:
                shard = int(np.searchsorted(ends, first, side="right"))
                last = min(run.stop, int(ends[shard]))
                if lengths[shard]:
                    yield Need(shard=shard, first=first - int(starts[shard]), last=last - int(starts[shard]))
                first = last
            continue
        shards = np.searchsorted(ends, run, side="right")
        there = lengths[shards] > 0
        shards, rows = shards[there], (run - starts[shards])[there]
        for shard, place in dict.fromkeys(zip(shards.tolist(), (rows // lengths[shards]).tolist(), strict=True)):
            if (shard, place) not in known:
                known.add((shard, place))
                length, size = int(lengths[shard]), int(ends[shard] - starts[shard])
                yield Need(shard=shard, first=place * length, last=min(size, (place + 1) * length))
