"""How whole numbers are spread: counted one by one while they are few, and on a logarithmic scale when many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_PER_OCTAVE = 32  # classes from one power of two to the next: 2 % wide each
_EXACT = 64  # different numbers that are counted one by one


class Spread:
    """Counts of numbers from 0 on, in constant memory.

    Attributes:
        n: How many there were.
        total: Their sum.
        low: The smallest; -1 before there is one.
        high: The largest.
    """

    def __init__(self) -> None:
        self.n = 0
        self.total = 0
        self.low = -1
        self.high = -1
        self._exact: dict[int, int] | None = {}
        self._classes = np.zeros(64 * _PER_OCTAVE, np.int64)

    @property
    def mean(self) -> float:
        """Their mean; 0 before there is one."""
        return self.total / self.n if self.n else 0.0

    def add(self, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Count more numbers."""
        values, counts = np.unique(np.asarray(numbers, np.int64), return_counts=True)
        if not len(values):
            return
        self.low = int(values[0]) if self.low < 0 else min(self.low, int(values[0]))
        self.high = max(self.high, int(values[-1]))
        self.n += int(counts.sum())
        self.total += int((values * counts).sum())
        if self._exact is not None and len(values) <= _EXACT:
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                self._exact[value] = self._exact.get(value, 0) + count
            if len(self._exact) > _EXACT:
                self._classify()
        else:
            self._classify()
            np.add.at(self._classes, (np.log2(values + 1.0) * _PER_OCTAVE).astype(np.int64), counts)

    def _classify(self) -> None:
        """Give up counting one by one."""
        for value, count in (self._exact or {}).items():
            self._classes[_code(value)] += count
        self._exact = None

    def bins(self, most: int = 32) -> list[tuple[int, int, int]]:
        """Return ``(from, to, count)`` of classes next to each other that hold all numbers, ``to`` included.

        Each class is one number where that gives few enough; otherwise they are equally wide on a logarithmic scale.

        Args:
            most: How many classes, at most.
        """
        if not self.n:
            return []
        if self._exact is not None and self.high - self.low < most:
            return [(value, value, self._exact.get(value, 0)) for value in range(self.low, self.high + 1)]
        classes = self._classes.copy()
        for value, count in (self._exact or {}).items():
            classes[_code(value)] += count
        first, last = _code(self.low), _code(self.high)
        width = -(-(last - first + 1) // most)
        found = []
        for code in range(first, last + 1, width):
            low = max(self.low, math.ceil(_value(code)))
            high = min(self.high, math.ceil(_value(code + width)) - 1)
            if low <= high:  # small numbers lie further apart than classes
                found.append((low, high, int(classes[code : min(code + width, last + 1)].sum())))
        return found


def _code(value: int) -> int:
    return int(np.log2(value + 1.0) * _PER_OCTAVE)


def _value(code: int) -> float:
    return float(2 ** (code / _PER_OCTAVE)) - 1
