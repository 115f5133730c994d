"""The places of samples in open shards; shards are fetched and opened on demand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import distributed

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.format.index import ShardIndex
from bionemo.webdatamodule._engine.reading.fields import Located, Place
from bionemo.webdatamodule._engine.reading.ledger import SOUND, Ledger
from bionemo.webdatamodule._engine.reading.open_pieces import OpenPieces, needs_of
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, most_open, open_shard, opened
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote.counters import Counters
from bionemo.webdatamodule._engine.storage.remote.pieces import PIECE_BYTES, Cut
from bionemo.webdatamodule.errors import ChangedDataError, ConfigError, ShardError, WebDataModuleError, count

if TYPE_CHECKING:
    from numpy.typing import NDArray

_AT_ONCE = 16  # indexes that are read at a time
_EMPTY = ShardIndex(
    tar_bytes=0,
    suffixes=(),
    offsets=np.zeros((0, 0), np.int64),
    sizes=np.zeros((0, 0), np.int64),
    crcs=None,
    headers=np.zeros(0, np.int64),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """A shard set that has more fields of samples.

    Attributes:
        found: The set.
        rows: int64 of shape ``(n,)``: the number there of each sample, -1 where it is not there.
    """

    found: ShardSet
    rows: NDArray[np.int64]


class Places:
    """The samples of some shard sets, numbered from 0 in the order of sets, shards and tars.

    Each sample may have a place in further sets as well, which are joined to them.

    It pickles, and opens nothing before it is needed.

    Args:
        sets: The sets.
        suffixes: Those that will be asked for.
        split: The split's name, for messages.
        chosen: The samples that count, where these are not all: sorted, int64 of shape ``(k,)``. They are numbered
            from 0, and the others are not there.
        joined: Further sets with fields of these samples.
        own: Whether these sets have any of the suffixes.

    Attributes:
        starts: int64 of shape ``(shards,)``: number of the first sample of each shard that is not joined.
        ends: int64 of shape ``(shards,)``: one more than that of its last.
        n_samples: Number of samples.
        is_remote: Whether any shard is behind a URL.
        columns: Number of each suffix in what the shards are opened for.
        at_once: Samples that can be located at once, at most, since each might need a shard of its own open.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        suffixes: Sequence[str],
        *,
        split: str | None,
        chosen: NDArray[np.int64] | None = None,
        joined: Sequence[Joined] = (),
        own: bool = True,
    ) -> None:
        everything = (*sets, *(side.found for side in joined))
        counts = [count for found in everything for count in found.samples]
        self._stored_ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        self._stored_starts: NDArray[np.int64] = self._stored_ends - counts
        self._n_own = sum(len(found.paths) for found in sets)  # shards that are not joined
        self.starts, self.ends = self._stored_starts[: self._n_own], self._stored_ends[: self._n_own]
        n_stored = sum(found.n_samples for found in sets)
        self._chosen, self._joined = chosen, bool(joined)
        # For each side that has fields the number of each sample among all that are stored; None where it is the same.
        self._sides = [chosen] if own else []
        if chosen is not None:
            self.starts, self.ends = np.searchsorted(chosen, self.starts), np.searchsorted(chosen, self.ends)
        self.n_samples = n_stored if chosen is None else len(chosen)
        for side in joined:
            self._sides.append(np.where(side.rows < 0, -1, side.rows + n_stored))
            n_stored += side.found.n_samples
        self._shards = [(found, place) for found in everything for place in range(len(found.paths))]
        self._suffixes = tuple(suffixes)
        self.columns = range(len(self._suffixes))
        self._split = split
        self.is_remote = any(found.remote is not None for found in everything)
        self._open = OpenShards()
        self._counters = Counters() if self.is_remote else None
        self.ledger: Ledger | None = None
        self._piece_bytes = PIECE_BYTES
        self._cuts: Sequence[Cut | None] = ()
        self._pieces: OpenPieces | None = None
        self.at_once = self._at_once()

    def locate(self, ids: NDArray[np.int64]) -> Sequence[Place]:
        """Return where each sample is, with its shard opened.

        Raises:
            ConfigError: If there is no such sample.
            ShardError: If a shard cannot be opened, or was changed.
        """
        return self._located(self._stored(ids, self._chosen))

    def sides(self, ids: NDArray[np.int64]) -> list[Sequence[Place]]:
        """Return where the fields of each sample are: in its own sets, if they have any, and in each joined set.

        Raises:
            WebDataModuleError: As :meth:`locate`.
        """
        if not self._joined:
            return [self.locate(ids)]
        stored = np.concatenate([self._stored(ids, numbers) for numbers in self._sides])
        there = stored >= 0
        if there.all():
            places = self._located(stored)
        else:
            found, data = iter(self._located(stored[there])), memoryview(b"")
            nowhere = opened(path="", place="", data=data, file=None, index=_EMPTY, suffixes=self._suffixes)
            places = [next(found) if present else (nowhere, 0) for present in there.tolist()]
        return [places[side * len(ids) : (side + 1) * len(ids)] for side in range(len(self._sides))]

    def lengths(self) -> NDArray[np.int64]:
        """Return the bytes of the only field of each sample by the indexes alone; -1 where the sample lacks it.

        The field must lie on one side.

        Raises:
            ShardError: If an index cannot be read.
        """
        own = self._sides[0] is self._chosen
        shards = self._shards[: self._n_own] if own else self._shards[self._n_own :]
        with futures.ThreadPoolExecutor(_AT_ONCE) as pool:  # those of remote shards are fetched
            found = list(pool.map(self._lengths_in, shards))
        stored = np.concatenate([np.zeros(0 if own else int(self._stored_ends[self._n_own - 1]), np.int64), *found])
        numbers = self._sides[0]
        return stored if numbers is None else np.where(numbers < 0, -1, stored[numbers])

    def _lengths_in(self, shard: tuple[ShardSet, int]) -> NDArray[np.int64]:
        found, number = shard
        try:
            index = found.index(number)
        except WebDataModuleError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        if self._suffixes[0] not in index.suffixes:
            return np.full(index.n_samples, -1)
        column = index.suffixes.index(self._suffixes[0])
        lengths: NDArray[np.int64] = np.where(index.offsets[:, column] < 0, -1, index.sizes[:, column])
        return lengths

    def _stored(self, ids: NDArray[np.int64], numbers: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the numbers of samples among all that are stored."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_samples:
            raise ConfigError(
                f"samples {ids.min()} to {ids.max()} are asked for; there are {self.n_samples}", split=self._split
            )
        return ids if numbers is None else numbers[ids]

    def _located(self, ids: NDArray[np.int64]) -> Sequence[Place]:
        """Return where stored samples are."""
        numbers = np.searchsorted(self._stored_ends, ids, side="right")
        if self.is_remote:
            return self._locate_pieces(numbers, ids - self._stored_starts[numbers])
        rows = (ids - self._stored_starts[numbers]).tolist()
        shards = numbers.tolist()
        try:
            found = self._open.get_all(dict.fromkeys(shards), self._open_shard)
        except ChangedDataError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        if found:
            others = f" and {count(len(found) - 1, 'other shard')}" if len(found) > 1 else ""
            context.worker().note(f"reading {found[shards[0]].path}{others}")
        return Located(list(map(found.__getitem__, shards)), rows)

    def follow(
        self,
        runs: Iterable[NDArray[np.int64] | range],
        epoch: int = 0,
        *,
        piece_bytes: int = PIECE_BYTES,
        divided: bool = False,
    ) -> None:
        """Fetch remote samples before they are read, in the background; it returns at once.

        Behind each run come the pieces that have fields of its samples in sets that are joined.

        Args:
            runs: What will be read, in order: numbers of samples, whose pieces are fetched whole, or ranges of them.
                They are taken as needed.
            epoch: Number of the epoch.
            piece_bytes: Bytes of a piece of what is not joined.
            divided: Whether all workers follow the same runs.
        """
        if self.is_remote:
            if piece_bytes != self._piece_bytes:
                self._piece_bytes, self._pieces, self._open = piece_bytes, None, OpenShards()
                self.at_once = self._at_once()
            needs = needs_of(self._stored_runs(runs), self._stored_starts, self._stored_ends, self._cuts)
            self._here().fetcher.follow(needs, epoch, divided=divided)

    def _stored_runs(self, runs: Iterable[NDArray[np.int64] | range]) -> Iterator[NDArray[np.int64] | range]:
        """Yield the numbers of samples among all that are stored, in each set that has fields of them."""
        for run in runs:
            picked = slice(run.start, run.stop) if isinstance(run, range) else run
            for numbers in self._sides:
                stored = run if numbers is None else numbers[picked]
                yield stored if isinstance(stored, range) else stored[stored >= 0]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_pieces": None, "_cuts": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = OpenShards()
        self.at_once = self._at_once()

    def _at_once(self) -> int:
        most = most_open()
        self._cuts = [  # None for shards of this machine
            None
            if found.remote is None
            else found.remote.cut(place, self._piece_bytes if number < self._n_own else PIECE_BYTES)
            for number, (found, place) in enumerate(self._shards)
        ]
        n_open = sum(1 if cut is None else cut.pieces for cut in self._cuts)
        return self.n_samples if n_open <= most else max(1, most // len(self._sides))

    def _here(self) -> OpenPieces:
        """Return the pieces of this process; a forked one opens its own."""
        if self._pieces is None or self._pieces.pid != os.getpid():
            self._pieces = OpenPieces(
                self._shards,
                self._suffixes,
                self._open,
                cuts=self._cuts,
                arrived=self._arrived,
                counters=self._counters,
            )
        return self._pieces

    def _arrived(self, shard: int, first: int, stop: int) -> None:
        """Note that samples of a shard came and are sound."""
        if self.ledger is not None:
            bounds = np.array([first, stop]) + self._stored_starts[shard]
            first, stop = (bounds if self._chosen is None else np.searchsorted(self._chosen, bounds)).tolist()
            states = self.ledger.states[first:stop]
            states[states == 0] = SOUND

    def _locate_pieces(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> Sequence[Place]:
        """Return where samples are, some of them in pieces of remote shards."""
        keys, in_piece = [], []
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            cut = self._cuts[shard]
            place = -1 if cut is None else cut.place(row)
            keys.append((shard, place))
            in_piece.append(row if cut is None else row - cut.bounds(place)[0])
        groups: dict[tuple[int, int], list[int]] = {}
        for key, row in zip(keys, in_piece, strict=True):
            groups.setdefault(key, []).append(row)
        try:
            found = self._here().get({key: np.array(group) for key, group in groups.items() if key[1] >= 0})
            for key in groups:
                if key[1] < 0:
                    found[key] = self._open.get(key[0]) or self._open.open(key[0], self._open_shard)
        except WebDataModuleError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        return [(found[key], row) for key, row in zip(keys, in_piece, strict=True)]

    def _open_shard(self, number: int) -> OpenShard:
        found, place = self._shards[number]
        context.worker().note(f"opening {found.paths[place]}")
        try:
            path, stamp = found.ready(place)
            return open_shard(path, stamp, found.index(place, stamp), self._suffixes)
        except WebDataModuleError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        except OSError as error:
            raise ShardError(
                f"{found.paths[place]} cannot be read: {error.strerror}", split=self._split, **process()
            ) from error


def process() -> dict[str, Any]:
    """Return the worker and rank that this process is, as far as it is one, for errors."""
    worker = context.worker()
    joined = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if joined else os.environ.get("RANK")
    return {"worker": worker.number if worker.count else None, "rank": rank}
