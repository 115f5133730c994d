"""From numbers of samples to places in open shards, fetching and opening what is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import distributed

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.reading.fields import Place
from bionemo.webdatamodule._engine.reading.ledger import SOUND, Ledger
from bionemo.webdatamodule._engine.reading.open_pieces import OpenPieces, needs_of
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, most_open, open_shard
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule._engine.storage.remote.counters import Counters
from bionemo.webdatamodule._engine.storage.remote.pieces import PIECE_BYTES, Cut
from bionemo.webdatamodule.errors import ChangedDataError, ConfigError, ShardError, WebDataModuleError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Places:
    """The samples of some shard sets, numbered from 0 in the order of sets, shards and tars.

    It pickles, and opens nothing before it is needed.

    Args:
        sets: The sets.
        suffixes: Those that will be asked for.
        split: The split's name, for messages.
        chosen: The samples that count, where these are not all: sorted, int64 of shape ``(k,)``. They are numbered
            from 0, and the others are not there.

    Attributes:
        starts: int64 of shape ``(shards,)``: number of the first sample of each shard.
        ends: int64 of shape ``(shards,)``: one more than that of its last.
        n_samples: Number of samples in all sets.
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
    ) -> None:
        counts = [count for found in sets for count in found.samples]
        self._chosen = chosen
        self._stored_ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        self._stored_starts: NDArray[np.int64] = self._stored_ends - counts
        self.starts, self.ends = self._stored_starts, self._stored_ends
        if chosen is not None:
            self.starts, self.ends = np.searchsorted(chosen, self.starts), np.searchsorted(chosen, self.ends)
        self.n_samples = sum(counts) if chosen is None else len(chosen)
        self._shards = [(found, place) for found in sets for place in range(len(found.paths))]
        self._suffixes = tuple(suffixes)
        self.columns = range(len(self._suffixes))
        self._split = split
        self.is_remote = any(found.remote is not None for found in sets)
        self._open = OpenShards()
        self._counters = Counters() if self.is_remote else None
        self.ledger: Ledger | None = None
        self._piece_bytes = PIECE_BYTES
        self._cuts: Sequence[Cut | None] = ()
        self._pieces: OpenPieces | None = None
        self.at_once = self._at_once()

    def locate(self, ids: NDArray[np.int64]) -> list[Place]:
        """Return where each sample is, with its shard opened.

        Raises:
            ConfigError: If there is no such sample.
            ShardError: If a shard cannot be opened, or was changed.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.n_samples:
            raise ConfigError(
                f"samples {ids.min()} to {ids.max()} are asked for; there are {self.n_samples}", split=self._split
            )
        if self._chosen is not None:
            ids = self._chosen[ids]
        numbers = np.searchsorted(self._stored_ends, ids, side="right")
        if self.is_remote:
            return self._locate_pieces(numbers, ids - self._stored_starts[numbers])
        rows = (ids - self._stored_starts[numbers]).tolist()
        shards = numbers.tolist()
        try:
            opened = self._open.get_all(dict.fromkeys(shards), self._open_shard)
        except ChangedDataError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        if opened:
            others = f" and {len(opened) - 1} other shards" if len(opened) > 1 else ""
            context.worker().note(f"reading {opened[shards[0]].path}{others}")
        return [(opened[number], row) for number, row in zip(shards, rows, strict=True)]

    def follow(
        self,
        runs: Iterable[NDArray[np.int64] | range],
        epoch: int = 0,
        *,
        piece_bytes: int = PIECE_BYTES,
        divided: bool = False,
    ) -> None:
        """Fetch remote samples before they are read, in the background; it returns at once.

        Args:
            runs: What will be read, in order: numbers of samples, whose pieces are fetched whole, or ranges of them.
                They are taken as needed.
            epoch: Number of the epoch.
            piece_bytes: Bytes of a piece.
            divided: Whether all workers follow the same runs.
        """
        if self.is_remote:
            if piece_bytes != self._piece_bytes:
                self._piece_bytes, self._pieces, self._open = piece_bytes, None, OpenShards()
                self.at_once = self._at_once()
            if self._chosen is not None:
                runs = (
                    self._chosen[run.start : run.stop] if isinstance(run, range) else self._chosen[run] for run in runs
                )
            needs = needs_of(runs, self._stored_starts, self._stored_ends, self._cuts)
            self._here().fetcher.follow(needs, epoch, divided=divided)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_pieces": None, "_cuts": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = OpenShards()
        self.at_once = self._at_once()

    def _at_once(self) -> int:
        most = most_open()
        self._cuts = [  # None for shards of this machine
            None if found.remote is None else found.remote.cut(place, self._piece_bytes)
            for found, place in self._shards
        ]
        n_open = sum(1 if cut is None else cut.pieces for cut in self._cuts)
        return self.n_samples if n_open <= most else most

    def _here(self) -> OpenPieces:
        """Return the pieces of this process; a forked one opens its own."""
        if self._pieces is None or self._pieces.pid != os.getpid():
            self._pieces = OpenPieces(
                self._shards,
                self._suffixes,
                self._open,
                piece_bytes=self._piece_bytes,
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

    def _locate_pieces(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Place]:
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
