"""Shuffling that stays local: shards are permuted, then samples within windows of a few shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, groups, key


class BlockPermutation:
    """A permutation of the samples of many shards that reads only a few shards at a time.

    The shards are put in a random order and cut into windows of ``window`` shards;
    inside a window all samples are shuffled together.
    Memory is a few numbers a shard, and finding a place is a binary search.
    :func:`mixing` tells how near this comes to a full shuffle.

    Args:
        shards: Samples of each shard, in the order of the data set.
        window: Shards that are shuffled together, at least 1.
        seed: From :func:`~bionemo.webdatamodule._engine.sampling.permutation.key`; another one gives another order.
    """

    def __init__(self, shards: Sequence[int], window: int, seed: bytes) -> None:
        sizes = np.asarray(shards, dtype=np.int64)
        order = Permutation(len(sizes), key("shards", seed.hex()))(np.arange(len(sizes)))
        self.n = int(sizes.sum())
        self._seed = seed.hex()
        self._starts = (np.cumsum(sizes) - sizes)[order]  # first sample id of the shards, in reading order
        self._places = np.concatenate([[0], np.cumsum(sizes[order])])  # first place of each, and the end
        self._windows = np.append(self._places[:-1:window], self.n)
        self._latest: tuple[int, Permutation] | None = None

    def __call__(self, places: Ids) -> Ids:
        """Return the sample ids at these places.

        Args:
            places: (k,) int64, each from 0 to n - 1.

        Returns:
            (k,) int64, a new array.
        """
        found = np.empty_like(places)
        windows = np.searchsorted(self._windows, places, side="right") - 1
        for number, here in groups(windows):
            start = int(self._windows[number])
            found[here] = self._within(number)(places[here] - start) + start
        shards = np.searchsorted(self._places, found, side="right") - 1
        found += self._starts[shards] - self._places[shards]
        return found

    def _within(self, number: int) -> Permutation:
        """Return the permutation of a window; the latest is kept, since windows are read one after another."""
        latest = self._latest
        if latest is None or latest[0] != number:
            size = int(self._windows[number + 1] - self._windows[number])
            latest = self._latest = number, Permutation(size, key("window", self._seed, number))
        return latest[1]


def mixing(order: Ids) -> float:
    """Return how well an order mixes: 1 for a full shuffle, 0 for none, for windows about their part of the whole.

    It is the mean distance, in the order, of samples that lie side by side on disk,
    over the distance ``(n + 1) / 3`` that a uniform shuffle gives on average.

    Args:
        order: (n,) every id from 0 to n - 1 once.
    """
    n = len(order)
    if n < 2:
        return 1.0
    places = np.empty(n, dtype=np.int64)
    places[order] = np.arange(n)
    distance = float(np.abs(np.diff(places)).mean())
    return max(0.0, (distance - 1) / ((n + 1) / 3 - 1)) if n > 2 else 1.0
