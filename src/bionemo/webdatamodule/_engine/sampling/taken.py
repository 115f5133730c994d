"""Which samples the stages took for what they made, where values come one by one: in shards order."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.sampling.tally import mixed
from bionemo.webdatamodule.components import Item

Part: TypeAlias = "tuple[NDArray[np.int64], int]"
"""Numbers of samples, and the sum of their hashes."""


@dataclass(frozen=True, slots=True)
class Groups(Sequence[Sequence[int]]):
    """Numbers of samples in groups: those that the stages took for each value.

    Attributes:
        numbers: The numbers of all groups.
        ends: Where each group ends among them.
    """

    numbers: list[int]
    ends: list[int]

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]]) -> Groups:
        """Return these groups."""
        found = list(groups)
        return cls(list(itertools.chain.from_iterable(found)), list(itertools.accumulate(map(len, found))))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, group: Any) -> Any:
        if isinstance(group, slice):
            return Groups.of(self[number] for number in range(*group.indices(len(self))))
        number = range(len(self))[group]
        return self.numbers[self.ends[number - 1] if number else 0 : self.ends[number]]


class Taken:
    """Which samples the stages took since they were asked for last."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._parts.clear()
        self._ids = np.array([], np.int64)
        self._sums: list[int] = []
        self._ends: Sequence[int] = ()
        self._left: Iterator[Any] = iter(())
        self._asked = 0

    def begin(self, groups: Groups, left: Iterator[Any]) -> None:
        """Note that values are taken from a list's iterator, with the numbers of samples of each."""
        self._reach(len(self._ends))
        self._ids = np.array(groups.numbers, np.int64)
        self._sums = np.cumsum(mixed(self._ids)).tolist()  # of all at once, which is faster than of each batch
        self._ends, self._left, self._asked = groups.ends, left, 0

    def also(self, numbers: Sequence[int]) -> None:
        """Note samples that nothing was made of."""
        ids = np.array(numbers, np.int64)
        self._parts.append((ids, int(mixed(ids).sum())))

    def take(self) -> list[Part]:
        """Return the numbers of the samples, and the sums of their hashes, modulo 2 to the power of 64."""
        self._reach(len(self._ends) - operator.length_hint(self._left))
        found, self._parts = self._parts, []
        return found

    def _reach(self, group: int) -> None:
        end = self._ends[group - 1] if group else 0
        if end > self._asked:
            before = self._sums[self._asked - 1] if self._asked else 0
            self._parts.append((self._ids[self._asked : end], self._sums[end - 1] - before))
            self._asked = end


def interleave(items: Iterable[Item], workers: int) -> Iterator[tuple[list[Any], Groups]]:
    """Yield the samples of items as if workers had sent them one by one, in turn: webdataset's order.

    Args:
        items: Items of all workers, in turn; each worker's last one may be shorter.
        workers: How many workers there are.

    Yields:
        Samples, and the numbers that were delivered for each.
    """
    turn: list[Item] = []
    for item in items:
        if turn and item.worker <= turn[-1].worker:
            yield _in_turn(turn)
            turn = []
        turn.append(item)
        if item.worker == workers - 1:
            yield _in_turn(turn)
            turn = []
    yield _in_turn(turn)


def _in_turn(items: Sequence[Item]) -> tuple[list[Any], Groups]:
    if len(items) == 1:
        return items[0].values, items[0].delivered  # type: ignore[return-value]  # a list and Groups, see _checked
    return _merged([item.values for item in items]), Groups.of(_merged([item.delivered for item in items]))


def _merged(parts: Sequence[Iterable[Any]]) -> list[Any]:
    over = object()
    rows = itertools.zip_longest(*parts, fillvalue=over)
    return [value for row in rows for value in row if value is not over]
