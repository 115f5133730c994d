"""The context of running stages, codecs and loaders: the place in the run, random numbers, the worker."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place of a running pipeline.

    Attributes:
        order: The order of the split.
        seed: The data module's seed.
        epoch: Number of the epoch, from 0.
        first: In global order the samples of the epoch that come before this part of it, over all ranks;
            in shards order the number of passes over the data before this one.
        rank: This process's rank.
        worker: The loader's worker; -1 in the main process.
        batch_size: Samples of a batch of this rank; ``None`` if a planner made the batches.
    """

    order: Literal["global", "shards"] = "shards"
    seed: int = 0
    epoch: int = 0
    first: int = 0
    rank: int = 0
    worker: int = -1
    batch_size: int | None = None

    def rng(self, purpose: str = "") -> random.Random:
        """Return a generator that depends only on this place and the purpose.

        In global order it depends on ``(seed, epoch, first)``, so not on ranks or workers;
        in shards order on ``(seed, epoch, first, rank, worker)``.
        """
        place = () if self.order == "global" else (self.rank, self.worker)
        words = "/".join(map(str, (purpose, self.seed, self.epoch, self.first, *place)))
        return random.Random(int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest(), "big"))


class _Local(threading.local):
    """What is current in this thread."""

    def __init__(self) -> None:
        self.context: Context | Callable[[], Context] = Context()
        self.worker: Worker | None = None


def current() -> Context:
    """Return the place of the running pipeline.

    Call it when the stage is called, before it yields the first sample.
    Outside the pipeline of a data module, it returns a default place, so a stage can be run alone.
    """
    found = _local.context
    if not isinstance(found, Context):  # made on first use
        found = _local.context = found()
    return found


class at:  # noqa: N801 - a function to its users; entered for every share, so it is not a generator
    """Set the current place of this thread, or a function that returns it, for a ``with`` block."""

    __slots__ = ("_before", "_context")

    def __init__(self, context: Context | Callable[[], Context]) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._before = _local.context
        _local.context = self._context

    def __exit__(self, *error: object) -> None:
        _local.context = self._before


def _torch_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    import torch

    return torch.empty(shape, dtype=dtype)


def _ignore(text: str) -> None:
    """Ignore a note."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker of a loader, and its services.

    Attributes:
        number: Its number, from 0.
        count: Number of workers; 0 in the main process.
        empty: Returns contiguous memory for a batch of a shape and dtype, such as memory shared with the main process.
        note: Takes a line about the current work, for messages about a worker that hangs or dies.
    """

    number: int = 0
    count: int = 0
    empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] = _torch_empty
    note: Callable[[str], None] = _ignore


_MAIN = Worker()
_process_worker: Worker | None = None
_local = _Local()


def worker() -> Worker:
    """Return the worker of this thread or process.

    It is the one set by :func:`working` or :func:`join`, otherwise that of torch's ``DataLoader``, otherwise the main
    process.
    """
    found = _local.worker or _process_worker
    if found is not None:
        return found
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return _MAIN if info is None else Worker(number=info.id, count=info.num_workers)


@contextlib.contextmanager
def working(worker: Worker) -> Iterator[None]:
    """Set the worker of this thread for a ``with`` block; for loaders."""
    before = _local.worker
    _local.worker = worker
    try:
        yield
    finally:
        _local.worker = before


def join(worker: Worker | None) -> None:
    """Set the worker of this process, or unset it with ``None``; for loaders with worker processes."""
    global _process_worker  # noqa: PLW0603 - one worker a process
    _process_worker = worker


def shuffled(samples: Iterator[Any], size: int, initial: int | None, place: Context) -> Iterator[Any]:
    """Yield samples in another order, through a buffer. The order depends only on the place.

    Args:
        samples: The stream.
        size: Samples in the buffer.
        initial: Samples in the buffer before the first is yielded; ``None`` for a full buffer.
        place: The place of the pipeline.
    """
    pick = place.rng(f"shuffle {size} {initial}").randrange
    initial = min(size, initial or size)
    buffer: list[Any] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) < size:  # grow by two for each one passed on, until the buffer is full
            buffer.extend(itertools.islice(samples, 1))
        if len(buffer) >= initial:
            chosen = pick(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            yield buffer.pop()
    while buffer:
        chosen = pick(len(buffer))
        buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
        yield buffer.pop()
