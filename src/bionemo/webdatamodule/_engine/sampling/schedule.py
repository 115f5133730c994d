"""Mixtures whose weights change with the samples drawn, in an order that can be entered anywhere."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.sampling.mixture import draws
from bionemo.webdatamodule._engine.sampling.permutation import Ids, groups
from bionemo.webdatamodule.errors import PlanError, count

Points: TypeAlias = tuple[tuple[int, tuple[float, ...]], ...]
"""Places from 0 on, rising, and the weights of all sources there; in between weights change linearly."""

_BLOCK = range(1, 257)  # positions with proportions of their own, while these change
_LANE_BLOCK = range(8, 33)  # of them where there are lanes, which all change at once
_BLOCKS = 8  # between two points, where that is possible
_MOST_BLOCKS = 1 << 14  # longer blocks where a schedule is longer
_PERIOD = 1 << 20  # positions, behind the last point


def check(points: Points, samples: Sequence[int]) -> None:
    """Check a schedule.

    Args:
        points: The schedule.
        samples: How many samples each source has.

    Raises:
        PlanError: If its places do not rise from 0, weights are not proportions, or an empty source has a weight.
    """
    places = [place for place, _ in points]
    if places[0] != 0 or any(after <= before for before, after in itertools.pairwise(places)):
        raise PlanError(f"a mixture that changes begins at step 0, and its steps rise; got {places}")
    for place, weights in points:
        if len(weights) != len(samples):
            raise PlanError(
                f"the mixture at {place} has {count(len(weights), 'weight')} for {count(len(samples), 'source')}"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise PlanError(f"the mixture at {place} has the weights {weights}; they are from 0 on, and not all 0")
        for number, weight in enumerate(weights):
            if weight and not samples[number]:
                raise PlanError(f"source {number} has 0 samples; there is nothing to draw from it")


def shares(points: Points, places: Ids) -> NDArray[np.float64]:
    """Return the part of each source at some places, (places, sources)."""
    known = np.array([weights for _, weights in points], dtype=np.float64)
    known /= known.sum(axis=1, keepdims=True)
    at = [place for place, _ in points]
    return np.stack([np.interp(places, at, column) for column in known.T], axis=1)


def block_of(points: Points, lanes: int) -> int:
    """Return how many samples of all lanes together have the same proportions while these change."""
    return lanes * _length(points, lanes)


def scheduled_draws(points: Points, lanes: int, lane: int, positions: Ids, seed: int) -> tuple[Ids, Ids]:
    """Return which source each position of a lane draws from, and the number of the draw from it in that lane.

    Args:
        points: The schedule.
        lanes: Number of lanes, which take places in turn; 1 for none.
        lane: The lane.
        positions: (k,) positions in the lane, over all epochs.
        seed: Any integer.

    Returns:
        Sources and draws, (k,) each.
    """
    length, table = _table(points, lanes)
    end = length * (len(table) - 1)
    sources, numbers = np.empty_like(positions), np.empty_like(positions)
    moving = np.where(positions < end, positions // length, len(table) - 1 + (positions - end) // _PERIOD)
    for block, here in groups(moving):
        if block < len(table) - 1:
            first, counts, before = block * length, table[block + 1] - table[block], table[block]
        else:
            period = block - len(table) + 1
            first, counts = end + period * _PERIOD, _apportioned(points[-1][1], _PERIOD)
            before = table[-1] + period * counts
        drawn = np.flatnonzero(counts)
        words = f"schedule/{seed}/{lane}/{block}"
        found, number = draws(tuple(counts[drawn].tolist()), positions[here] - first, words)
        sources[here] = drawn[found]
        numbers[here] = before[drawn[found]] + number
    return sources, numbers


@functools.lru_cache(maxsize=8)
def _table(points: Points, lanes: int) -> tuple[int, Ids]:
    """Return the positions of a block, and the draws of each source before each block up to the last point.

    What a block cannot give in whole samples is carried to the next.
    """
    length = _length(points, lanes)
    blocks = -(-points[-1][0] // (lanes * length))
    middles = (np.arange(blocks) * length + length // 2) * lanes
    wanted = np.cumsum(shares(points, middles) * length, axis=0) if blocks else np.zeros((0, len(points[0][1])))
    table = np.zeros((blocks + 1, len(points[0][1])), dtype=np.int64)
    for block in range(blocks):
        quota = np.maximum(wanted[block] - table[block], 0)
        counts = np.floor(quota).astype(np.int64)
        over = int(counts.sum()) - length
        for source in np.argsort(counts - quota, kind="stable")[: max(0, -over)]:
            counts[source] += 1
        if over > 0:
            counts[counts.argmax()] -= over
        elif (missing := length - int(counts.sum())) > 0:
            counts[quota.argmax()] += missing
        table[block + 1] = table[block] + counts
    return length, table


def _length(points: Points, lanes: int) -> int:
    """Return the positions of a block: fewer where the weights change faster."""
    last = -(-points[-1][0] // lanes)
    shortest = min((after - before for (before, _), (after, _) in itertools.pairwise(points)), default=0)
    allowed = _BLOCK if lanes == 1 else _LANE_BLOCK
    wanted = max(allowed[0], min(allowed[-1], shortest // (_BLOCKS * lanes)))
    return wanted * max(1, -(-last // (wanted * _MOST_BLOCKS)))


@functools.lru_cache(maxsize=64)
def _apportioned(weights: tuple[float, ...], total: int) -> Ids:
    """Return the number of draws of each source, by the largest remainder; 0 for the weight 0."""
    whole = sum(map(Fraction, weights))
    quotas = [total * Fraction(weight) / whole for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda k: (counts[k] - quotas[k], k))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return np.array(counts, dtype=np.int64)
