"""From numbers of samples to places in open shards, fetching and opening what is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import distributed

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.reading.fields import Place
from bionemo.webdatamodule._engine.reading.open_pieces import OpenPieces, needs_of
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, most_open, open_shard
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
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
        self._lengths = np.array(  # samples of a piece; 0 for shards of this machine
            [found.remote.samples_per_piece(place) if found.remote else 0 for found, place in self._shards], np.int64
        )
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
        needed = dict.fromkeys(shards)
        try:
            opened = {number: self._open.get(number) or self._open.open(number, self._open_shard) for number in needed}
        except ChangedDataError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        if opened:
            others = f" and {len(opened) - 1} other shards" if len(opened) > 1 else ""
            context.worker().note(f"reading {opened[shards[0]].path}{others}")
        return [(opened[number], row) for number, row in zip(shards, rows, strict=True)]

    def follow(self, runs: Iterable[NDArray[np.int64] | range], epoch: int = 0) -> None:
        """Fetch remote samples before they are read, in the background; it returns at once.

        Args:
            runs: What will be read, in order: numbers of samples, whose pieces are fetched whole, or ranges of them.
                They are taken as needed.
            epoch: Number of the epoch.
        """
        if self.is_remote:
            if self._chosen is not None:
                runs = (
                    self._chosen[run.start : run.stop] if isinstance(run, range) else self._chosen[run] for run in runs
                )
            self._here().follow(needs_of(runs, self._stored_starts, self._stored_ends, self._lengths), epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_pieces": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = OpenShards()
        self.at_once = self._at_once()

    def _at_once(self) -> int:
        most = most_open()
        lengths = np.where(self._lengths > 0, self._lengths, max(1, self.n_samples))
        n_open = int((-(-(self._stored_ends - self._stored_starts) // lengths)).sum())
        return self.n_samples if n_open <= most else most

    def _here(self) -> OpenPieces:
        """Return the pieces of this process; a forked one opens its own."""
        if self._pieces is None or self._pieces.pid != os.getpid():
            self._pieces = OpenPieces(self._shards, self._suffixes, self._open)
        return self._pieces

    def _locate_pieces(self, shards: NDArray[np.int64], rows: NDArray[np.int64]) -> list[Place]:
        """Return where samples are, some of them in pieces of remote shards."""
        lengths = self._lengths[shards]
        places = np.where(lengths > 0, rows // np.maximum(lengths, 1), -1)
        in_piece = (rows - np.maximum(places, 0) * lengths).tolist()
        keys = list(zip(shards.tolist(), places.tolist(), strict=True))
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
