"""What is not in the page cache: the kernel is advised of what will be read, while reading waits for a disk."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

_T = TypeVar("_T")

_LARGE: Final = 1 << 15
"""Bytes of a sample. What lies around a smaller one is worth reading with it, where all of it stays in memory."""

_RUNS: Final = 8
"""Runs of samples for which a disk is expected after it was seen."""

_BESIDE: Final = 1 << 19
"""Bytes that a process may read beside its data in the time of a run: modules and libraries that it uses first."""

_BLOCK: Final = 512  # bytes, in which ``ru_inblock`` counts

_THREAD: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


class PageCache:
    """Has samples read from a local disk before they are used.

    Left alone, the kernel reads a page that is missing when it is touched, one after the other, and with it what
    lies around it: 128 kB by default, several megabytes on some machines. Of samples in random order most of that is
    for nothing. Advised beforehand, it reads just these samples, many at a time. That takes microseconds a sample,
    so it is done only while there is a disk to wait for.

    Args:
        sample_bytes: Mean size of a sample.
        n_bytes: Size of all of them.
    """

    def __init__(self, sample_bytes: float, n_bytes: float) -> None:
        self._advises = sample_bytes >= _LARGE or n_bytes > _memory() / 2
        self._run, self._missed = 0, -_RUNS  # of all epochs: the run now, and the latest that found the disk at work
        self._seen = 0

    def ahead(self, runs: Iterable[_T], expect: Callable[[_T], None]) -> Iterator[_T]:
        """Yield runs of samples, each while the next is read from the disk.

        Args:
            runs: The runs, which are taken one ahead, but for the first.
            expect: Advises the kernel of what a run reads, if :meth:`misses` is true once its shards are open.
        """
        waiting: list[_T] = []
        self._seen = _disk_bytes()
        for number, run in enumerate(runs):
            if self._advises and (not number or self.misses(_BESIDE)):
                expect(run)
            self._run += 1
            waiting.append(run)
            if number != 1:
                yield waiting.pop(0)
        yield from waiting

    def misses(self, beside: int = 0) -> bool:
        """Return whether this thread read from a disk since it was asked last, or read much lately.

        Args:
            beside: Bytes that do not count.
        """
        before, self._seen = self._seen, _disk_bytes()
        read = self._seen - before
        if read > _BESIDE:
            self._missed = self._run
        return read > beside or self._run - self._missed < _RUNS


def _disk_bytes() -> int:
    """Return how much this thread read from a disk so far, or at least that of each map that it waited for."""
    used = resource.getrusage(_THREAD)
    return used.ru_inblock * _BLOCK + used.ru_majflt * mmap.PAGESIZE


def _memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
