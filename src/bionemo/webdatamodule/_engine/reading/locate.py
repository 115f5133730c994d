"""From numbers of samples to places in open shards, fetching and opening what is needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import distributed

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.format.fields import Place
from bionemo.webdatamodule._engine.reading.open_shards import OpenShard, OpenShards, most_open, open_shard
from bionemo.webdatamodule._engine.reading.shard_set import ShardSet
from bionemo.webdatamodule.errors import ChangedDataError, ConfigError, ShardError, WebDataModuleError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REOPEN = 3  # attempts where other processes make room in the store of remote shards


class Places:
    """The samples of some shard sets, numbered from 0 in the order of sets, shards and tars.

    It pickles, and opens nothing before it is needed.

    Args:
        sets: The sets.
        suffixes: Those that will be asked for.
        split: The split's name, for messages.

    Attributes:
        starts: int64 of shape ``(shards,)``: number of the first sample of each shard.
        ends: int64 of shape ``(shards,)``: one more than that of its last.
        n_samples: Number of samples in all sets.
        at_once: Samples that can be located at once, at most, since each might need a shard of its own open.
    """

    def __init__(self, sets: Sequence[ShardSet], suffixes: Sequence[str], *, split: str | None) -> None:
        counts = [count for found in sets for count in found.samples]
        self.ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        self.starts: NDArray[np.int64] = self.ends - counts
        self.n_samples = sum(counts)
        self._shards = [(found, place) for found in sets for place in range(len(found.paths))]
        self._suffixes = tuple(suffixes)
        self._split = split
        self._is_remote = any(found.remote is not None for found in sets)
        self._open = OpenShards()
        self.at_once = self._at_once()
        self._ahead: set[int] = set()  # shards that are being fetched in the background, or were
        self._latest = -1  # the shard that was fetched last

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
        numbers = np.searchsorted(self.ends, ids, side="right")
        rows = (ids - self.starts[numbers]).tolist()
        shards = numbers.tolist()
        needed = dict.fromkeys(shards)
        if self._is_remote:
            self._fetch([number for number in needed if number not in self._open])
        try:
            opened = {number: self._open.get(number) or self._open.open(number, self._open_shard) for number in needed}
        except ChangedDataError as error:
            raise error.located(split=self._split, **process()) from error.__cause__
        if opened:
            others = f" and {len(opened) - 1} other shards" if len(opened) > 1 else ""
            context.worker().note(f"reading {opened[shards[0]].path}{others}")
        return [(opened[number], row) for number, row in zip(shards, rows, strict=True)]

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Start to fetch shards behind URLs, by their numbers, in the background."""
        wanted = [number for number in numbers if number < len(self._shards) and number not in self._ahead]
        self._ahead.update(wanted)
        for found, places in self._by_set(wanted):
            if found.remote is not None:
                found.remote.fetch_ahead(places)

    def prefetch_samples(self, shares: Sequence[NDArray[np.int64]]) -> None:
        """Start to fetch the shards of samples, if any of them are behind URLs, in the background."""
        if self._is_remote:
            numbers = dict.fromkeys(np.searchsorted(self.ends, np.concatenate(shares), side="right").tolist())
            self.prefetch(number for number in numbers if number not in self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None, "_ahead": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = OpenShards()
        self.at_once = self._at_once()

    def _at_once(self) -> int:
        most = most_open()
        return self.n_samples if len(self._shards) <= most else most

    def _fetch(self, numbers: list[int]) -> None:
        """Fetch shards that are behind URLs, several at the same time; ahead where they are read in order."""
        for found, places in self._by_set(numbers):
            if found.remote is not None:
                found.remote.fetch_all(places)
        self._ahead.difference_update(numbers)
        for number in numbers:
            if number == self._latest + 1 and number + 1 not in numbers:
                self.prefetch([number + 1])
            self._latest = number

    def _by_set(self, numbers: Iterable[int]) -> list[tuple[ShardSet, list[int]]]:
        """Return the sets that shards are in, each with the shards' places in it."""
        groups: dict[int, tuple[ShardSet, list[int]]] = {}
        for number in numbers:
            found, place = self._shards[number]
            groups.setdefault(id(found), (found, []))[1].append(place)
        return list(groups.values())

    def _open_shard(self, number: int) -> OpenShard:
        found, place = self._shards[number]
        context.worker().note(f"opening {found.paths[place]}")
        attempts = 1 if found.remote is None else _REOPEN
        try:
            while True:
                path, stamp = found.ready(place)
                try:
                    return open_shard(path, stamp, found.index(place, stamp), self._suffixes)
                except ChangedDataError:
                    attempts -= 1
                    if not attempts:
                        raise
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
