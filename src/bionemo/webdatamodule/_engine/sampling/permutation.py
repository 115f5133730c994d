"""Keyed permutations of any length that are never written down: each place is computed when it is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
"""Numbers of samples, int64 of shape ``(k,)``."""

_ROUNDS = 6
_TABLE = 4096  # up to here a sorted table is as quick to make as a few batches, and free of any bias
_SCALAR = 8  # up to here plain integers are quicker than numpy's call overhead
_LONGEST = 1 << 62
_MASK = (1 << 64) - 1
_MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, so no bit is lost, and of good avalanche
_U1, _U2, _U32 = np.uint64(_MIX_1), np.uint64(_MIX_2), np.uint64(32)


def key(*parts: int | str) -> bytes:
    """Return 48 bytes that depend on these parts alone: no platform, process or environment comes in.

    Args:
        *parts: What the key is for, such as ``("pass", seed, source, number)``; integers of any size.
    """
    words = "/".join(f"{type(part).__name__[0]}{part}" for part in parts)
    return hashlib.blake2b(words.encode(), digest_size=8 * _ROUNDS, person=b"webdatamodule").digest()


def groups(numbers: Ids) -> Iterator[tuple[int, Ids | slice]]:
    """Yield each number that occurs, and where: an index for arrays as long as ``numbers``.

    Args:
        numbers: (k,) int64, such as the window or the pass that each of k places is in.
    """
    if not numbers.size:
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low == high:  # the usual case: a share lies in one window, one pass
        yield low, slice(None)
        return
    order = np.argsort(numbers, kind="stable")
    steps = np.flatnonzero(np.diff(numbers[order])) + 1
    for here in np.split(order, steps):
        yield int(numbers[here[0]]), here


class Permutation:
    """A permutation of ``0 … n - 1`` in constant memory, with constant time to find what stands at a place.

    Long ones are a six-round Feistel network over ``ceil(sqrt(n))`` rows and as many columns as it takes:
    each half moves the other around its ring by a keyed hash, which can be undone, so nothing comes twice.
    The few cells beyond ``n`` are sent through again until they land inside (cycle walking, Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).
    On a few thousand cells such a network favours some orders, so short permutations sort by a keyed hash instead.

    Args:
        n: Length, 1 to 2**62.
        key: 48 bytes from :func:`key`; another key gives another order.
    """

    __slots__ = ("_columns", "_keys", "_pairs", "_rows", "_table", "n")

    def __init__(self, n: int, key: bytes) -> None:
        if not 1 <= n <= _LONGEST:
            raise ValueError(f"a permutation has 1 to 2**62 places, not {n}")
        self.n = n
        self._rows = math.isqrt(n - 1) + 1
        self._columns = -(-n // self._rows)
        self._keys = tuple(int.from_bytes(key[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
        self._pairs = tuple(zip(self._keys[::2], self._keys[1::2], strict=True))
        self._table = _sorted_by_hash(n, *self._keys[:2]) if n <= _TABLE else None

    def at(self, place: int) -> int:
        """Return what stands at a place, ``0 <= place < n``."""
        if self._table is not None:
            return int(self._table[place])
        rows, columns = self._rows, self._columns
        while True:
            row, column = divmod(place, columns)
            for even, odd in self._pairs:
                row = (row + _hash(column, even, rows)) % rows
                column = (column + _hash(row, odd, columns)) % columns
            place = row * columns + column
            if place < self.n:
                return place

    def __call__(self, places: Ids) -> Ids:
        """Return what stands at each of these places.

        Args:
            places: (k,) int64, each from 0 to n - 1, in any order.

        Returns:
            (k,) int64, a new array.
        """
        if self._table is not None:
            return self._table[places]
        if places.size <= _SCALAR:
            return np.array([self.at(place) for place in places.tolist()], dtype=np.int64)
        found = self._network(places.view(np.uint64))
        outside = np.flatnonzero(found >= self.n)
        while outside.size:
            found[outside] = self._network(found[outside])
            outside = outside[found[outside] >= self.n]
        return found.view(np.int64)

    def _network(self, places: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Do the rounds of :meth:`at` once for many places; in place, since allocation would cost as much."""
        rows, columns = np.uint64(self._rows), np.uint64(self._columns)
        moved: NDArray[np.uint64] = places // columns
        fixed: NDArray[np.uint64] = places - moved * columns
        ring, other = rows, columns
        hashed, high = np.empty_like(places), np.empty_like(places)
        for round_key in self._keys:
            np.bitwise_xor(fixed, np.uint64(round_key), out=hashed)
            np.multiply(hashed, _U1, out=hashed)
            np.right_shift(hashed, _U32, out=high)
            np.bitwise_xor(hashed, high, out=hashed)
            np.multiply(hashed, _U2, out=hashed)
            np.right_shift(hashed, _U32, out=hashed)
            np.multiply(hashed, ring, out=hashed)
            np.right_shift(hashed, _U32, out=hashed)
            np.add(moved, hashed, out=moved)
            np.subtract(moved, ring, out=hashed)  # wraps to a huge number where the ring's end is not reached,
            np.minimum(moved, hashed, out=moved)  # so the smaller of both is the remainder
            moved, fixed, ring, other = fixed, moved, other, ring
        np.multiply(moved, columns, out=moved)
        np.add(moved, fixed, out=moved)
        return moved


def permutation(n: int, *parts: int | str) -> Permutation:
    """Return a random permutation of ``0 … n - 1`` that depends on these parts alone.

    Args:
        n: Length, 1 to 2**62.
        *parts: What it is for, such as ``("my planner", seed, epoch)``.
    """
    return Permutation(n, key(*parts))


def _hash(value: int, round_key: int, size: int) -> int:
    """Return a number below ``size`` < 2**32 from 32 well-mixed bits (multiply, fold, multiply, take the top)."""
    mixed = ((value ^ round_key) * _MIX_1) & _MASK
    mixed ^= mixed >> 32
    return (((mixed * _MIX_2) & _MASK) >> 32) * size >> 32


def _sorted_by_hash(n: int, first: int, second: int) -> Ids:
    mixed = np.arange(n, dtype=np.uint64) ^ np.uint64(first)
    for _ in range(2):
        mixed *= _U1
        mixed ^= mixed >> _U32
        mixed *= _U2
        mixed ^= mixed >> _U32
        mixed ^= np.uint64(second)
    return np.argsort(mixed, kind="stable").astype(np.int64)
