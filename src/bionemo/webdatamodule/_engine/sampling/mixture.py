"""Drawing from several sources in fixed proportions, in an order that can be entered anywhere."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, groups, key
from bionemo.webdatamodule.errors import PlanError

_BLOCK = 256  # positions that hold the sources in exact proportion; small enough to be worked out on every entry


def apportion(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many of ``total`` samples each source gives: the largest-remainder (Hamilton) method.

    Args:
        total: Samples of an epoch.
        weights: One positive number a source; only their proportions count.

    Returns:
        Positive counts that sum to ``total``.

    Raises:
        PlanError: If a weight is not a positive number, or a source would give nothing.
    """
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise PlanError(f"source {number} has the weight {weight!r}; weights are positive numbers")
    whole = sum(map(Fraction, weights))
    quotas = [total * Fraction(weight) / whole for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda k: (counts[k] - quotas[k], k))
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    if 0 in counts:
        number = counts.index(0)
        raise PlanError(
            f"source {number} with weight {weights[number]!r} gives no sample to an epoch of {total}; "
            "raise n_samples or leave the source out"
        )
    return tuple(counts)


def draws(counts: tuple[int, ...], places: Ids, seed: str) -> tuple[Ids, Ids]:
    """Return which source each place of an epoch draws from, and the number of the draw from that source.

    Any 256 places in a row from a multiple of 256 on hold each source in proportion, give or take one,
    in random order, and a source's draws are numbered in the order of the places:
    so it is read completely before its samples repeat.

    Args:
        counts: Draws of each source in an epoch, positive.
        places: (k,) int64 positions in the epoch.
        seed: What the order depends on.

    Returns:
        Sources and draws, (k,) int64 each.
    """
    sources, numbers = np.empty_like(places), np.empty_like(places)
    blocks = places // _BLOCK
    for block, here in groups(blocks):
        inside = places[here] - block * _BLOCK
        block_sources, block_draws = _block(counts, block, seed)
        sources[here], numbers[here] = block_sources[inside], block_draws[inside]
    return sources, numbers


@functools.lru_cache(maxsize=4096)  # one or two for each lane
def _block(counts: tuple[int, ...], block: int, seed: str) -> tuple[Ids, Ids]:
    """Work out one block: Bresenham's even spread, source by source, then a shuffle of the block.

    The first source takes every place where ``place * count // total`` steps up;
    the remaining places are counted again, and the next source takes its part of those.
    Products are taken from Python's integers before numpy's, so that no length overflows.
    """
    left, at = sum(counts), block * _BLOCK
    free = np.arange(min(_BLOCK, left - at))
    sources = np.empty(len(free), dtype=np.int64)
    before = []
    for number, count in enumerate(counts):
        drawn, fraction = divmod(at * count, left)
        steps = np.diff((fraction + np.arange(len(free) + 1) * count) // left) > 0
        sources[free[steps]] = number
        before.append(drawn)
        at, left, free = at - drawn, left - count, free[~steps]
    sources = sources[Permutation(len(sources), key("block", seed, block))(np.arange(len(sources)))]
    numbers = np.empty_like(sources)
    for number, first in enumerate(before):
        here = np.flatnonzero(sources == number)
        numbers[here] = first + np.arange(len(here))
    return sources, numbers
