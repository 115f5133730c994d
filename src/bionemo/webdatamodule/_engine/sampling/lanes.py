"""Lanes: several places of a shuffled line of pieces that are read side by side.

Pieces are permuted over the whole data set and laid in a line; the line is cut into lanes whose lengths differ by one
sample at most. Places of an epoch take the lanes in turn: place ``m`` is position ``m // lanes`` of lane
``m % lanes``. Within a piece samples are shuffled. So a batch draws from as many pieces as there are lanes, and a
rank that reads some of the lanes needs only their pieces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, key
from bionemo.webdatamodule._engine.sampling.pieces import Pieces

_ROUNDS = 20
_SMALL = 4  # halvings
_U1, _U2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_STEPS = (np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _U2).tolist()
_U32, _U63 = np.uint64(32), np.uint64(63)


class Line:
    """One pass over a data set in lanes. Memory is a few numbers a piece, and finding a place is a binary search.

    Args:
        pieces: The pieces of the data set.
        lanes: Number of lanes.
        seed: From :func:`~bionemo.webdatamodule._engine.sampling.permutation.key`; another one gives another order.
        shift: Lane that is the first of those that are longer by one.
    """

    def __init__(self, pieces: Pieces, lanes: int, seed: bytes, *, shift: int = 0) -> None:
        order = Permutation(len(pieces.firsts) - 1, key("pieces", seed.hex()))(np.arange(len(pieces.firsts) - 1))
        self.n = int(pieces.firsts[-1])
        self._firsts = pieces.firsts[order]  # first sample of the pieces, as they lie in the line
        self._places = np.append(0, np.cumsum(pieces.firsts[order + 1] - self._firsts))
        self._seed = np.uint64(int.from_bytes(seed[:8], "little"))
        self._lengths = lane_lengths(self.n, lanes, shift)
        self._starts = np.cumsum(self._lengths) - self._lengths
        # Lanes begin at different places of a piece, so that new pieces are wanted evenly from step to step.
        behind = np.searchsorted(self._places, self._starts, side="right")
        whole = self._places[np.minimum(behind, len(order))] - self._starts
        self._turns = (whole + (_spread(lanes) * (self.n / max(1, len(order)))).astype(np.int64)) % np.maximum(
            self._lengths, 1
        )

    def segments(self, lanes: Ids, positions: Ids) -> tuple[Ids, Ids, Ids]:
        """Return for positions of lanes the runs of samples that are shuffled together.

        Args:
            lanes: (k,) lanes.
            positions: (k,) positions in them.

        Returns:
            The first sample of each run, its length, and the place in it, (k,) each.
        """
        start, turn = self._starts[lanes], self._turns[lanes]
        stop = start + self._lengths[lanes]
        begin = start + turn  # where the lane begins; it ends there, too
        places = begin + positions
        wrapped = places >= stop
        places = places - self._lengths[lanes] * wrapped
        piece = np.searchsorted(self._places, places, side="right") - 1
        low, high = np.maximum(self._places[piece], start), np.minimum(self._places[piece + 1], stop)
        low = np.where(~wrapped & (low < begin), begin, low)
        high = np.where(wrapped & (high > begin), begin, high)
        length, inside = high - low, places - low
        # The first piece of a lane is cut into small parts, so that a first batch needs little, and its last piece
        # likewise, since the last batches of an epoch may be divided among ranks in another way.
        opens = ~wrapped & (low == begin)
        closes = ~opens & (high == np.where(turn > 0, begin, stop)) & (wrapped | (turn == 0))
        lower, upper = _halved(np.where(closes, length - 1 - inside, inside), length, opens | closes)
        lower, upper = np.where(closes, length - upper, lower), np.where(closes, length - lower, upper)
        first = self._firsts[piece] + low - self._places[piece] + lower
        return first, upper - lower, inside - lower

    def __call__(self, lanes: Ids, positions: Ids) -> Ids:
        """Return the samples at positions of lanes."""
        first, length, inside = self.segments(lanes, positions)
        return first + _shuffled(inside, length, first.view(np.uint64) * _U1 + self._seed)


def lane_lengths(n: int, lanes: int, shift: int = 0) -> Ids:
    """Return the positions of each lane: ``n`` dealt in turn, beginning with lane ``shift``."""
    each, more = divmod(n, lanes)
    return each + ((np.arange(lanes) - shift) % lanes < more).astype(np.int64)


def listed(first: int, stop: int, low: int, high: int, lanes: int) -> Ids:
    """Return some places of a batch in the order in which ranks divide it: lane by lane.

    Args:
        first: First place of the batch.
        stop: The place behind its last.
        low: Where the part begins, counted from the beginning of the batch.
        high: Where it ends.
        lanes: Number of lanes; 0 for none.
    """
    index = np.arange(low, high)
    if not lanes:
        return first + index
    full, more = divmod(stop - first, lanes)
    longer = more * (full + 1)  # places in lanes that have one more
    behind = index - longer
    lane = np.where(behind < 0, index // (full + 1), more + behind // max(1, full))
    turn = np.where(behind < 0, index % (full + 1), behind % max(1, full))
    return first + turn * lanes + lane


def _halved(inside: Ids, length: Ids, small: NDArray[np.bool_]) -> tuple[Ids, Ids]:
    """Return which part of a run each place is in: all of it, or where asked 1/16, 1/16, 1/8, 1/4 or 1/2."""
    lower, upper = np.zeros_like(length), length
    for halving in range(1, _SMALL + 1):
        half = length >> halving
        upper = np.where(small & (inside < half), half, upper)
        lower = np.where(small & (inside >= half), np.maximum(lower, half), lower)
    return lower, upper


def _spread(lanes: int) -> NDArray[np.float64]:
    """Return numbers from 0 to 1, evenly spread over any run of lanes: van der Corput's sequence."""
    left, found, base = np.arange(lanes), np.zeros(lanes), 0.5
    while left.any():
        found += base * (left & 1)
        left >>= 1
        base /= 2
    return found


def _shuffled(places: Ids, lengths: Ids, keys: NDArray[np.uint64]) -> Ids:
    """Return where places go in keyed permutations of their lengths, each element in one of its own.

    A swap-or-not network (Hoang, Morris, Rogaway, "An enciphering scheme based on a card shuffle", 2012):
    in each round places are paired by a keyed reflection, and a keyed bit of the pair says whether it is swapped.

    Args:
        places: (k,), each from 0 to its length - 1.
        lengths: (k,), below 2**32.
        keys: (k,), equal where the permutation is.
    """
    lengths, here = lengths.view(np.uint64), places.view(np.uint64)
    for step in _STEPS:
        mixed = _mix(keys + np.uint64(step))
        other = ((mixed >> _U32) * lengths >> _U32) + lengths - here
        other -= lengths * (other >= lengths)
        swap = _mix(np.maximum(here, other) + mixed) >> _U63
        here = np.where(swap, other, here)
    return here.view(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = values * _U1
    values ^= values >> _U32
    values *= _U2
    values ^= values >> _U32
    return values
