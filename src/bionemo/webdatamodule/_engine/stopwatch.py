"""Time spent on the parts of the work on a batch, measured in workers on some batches and summed in the main process.

What a part takes does not include what others take that it calls, as a stage calls those before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")

Spent: TypeAlias = "Mapping[str, tuple[float, float]]"
"""For each part the wall time and the CPU time, in seconds."""


class Stopwatch:
    """Measures one thread, one part at a time.

    Attributes:
        running: Whether it measures what begins now; it is set between parts.
        spent: What was spent so far.
    """

    def __init__(self) -> None:
        self.running = True
        self.spent: dict[str, tuple[float, float]] = {}
        self._parts: list[str] = []
        self._since = self._now()

    def call(self, part: str, function: Callable[[], _T]) -> _T:
        """Return what a function returns; the time is that of a part."""
        if not self.running:
            return function()
        self._turn()
        self._parts.append(part)
        try:
            return function()
        finally:
            self._turn()
            self._parts.pop()

    def each(self, part: str, source: Iterator[_T]) -> Iterator[_T]:
        """Yield what an iterator yields; the time until it does is that of a part."""
        over = object()
        while (value := self.call(part, lambda: next(source, over))) is not over:
            yield value  # type: ignore[misc]  # not the mark

    def take(self) -> dict[str, tuple[float, float]]:
        """Return the times, and reset them."""
        spent, self.spent = self.spent, {}
        return spent

    def _turn(self) -> None:
        now = self._now()
        if self._parts:
            part = self._parts[-1]
            wall, cpu = self.spent.get(part, (0.0, 0.0))
            self.spent[part] = (wall + now[0] - self._since[0], cpu + now[1] - self._since[1])
        self._since = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()


@dataclass(kw_only=True)
class Work:
    """The work on the batches of an epoch, of which some were measured; in shards order on its samples.

    Attributes:
        batches: How many arrived.
        measured: How many of them were measured.
        spent: What these took.
    """

    batches: int = 0
    measured: int = 0
    spent: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, batches: int, spent: Spent | None) -> None:
        """Count some batches, and what they took if that was measured."""
        self.batches += batches
        if spent is None:
            return
        self.measured += batches
        for part, (wall, cpu) in spent.items():
            before = self.spent.get(part, (0.0, 0.0))
            self.spent[part] = (before[0] + wall, before[1] + cpu)

    def seconds(self) -> dict[str, float]:
        """Return the estimated time of each part over all batches."""
        return {part: wall * self.batches / self.measured for part, (wall, _) in self.spent.items()}
