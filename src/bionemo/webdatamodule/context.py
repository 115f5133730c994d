"""What a stage, a codec or a loader may ask: where in the run it is, its random numbers, which worker it is."""

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
        order: How the split is read.
        seed: The data module's seed.
        epoch: Number of the epoch, from 0.
        first: In global order the samples of the epoch that come before this part of it, over all ranks;
            in shards order the number of passes over the data before this one.
        rank: This process's rank.
        worker: The loader's worker; -1 in the main process.
        batch_size: Samples of a batch of this rank; ``None`` where the plan has drawn the batches already.
    """

    order: Literal["global", "shards"] = "shards"
    seed: int = 0
    epoch: int = 0
    first: int = 0
    rank: int = 0
    worker: int = -1
    batch_size: int | None = None

    def rng(self, purpose: str = "") -> random.Random:
        """Return a generator that depends on this place and the purpose alone.

        In global order it depends on ``(seed, epoch, first)``, so neither ranks nor workers matter;
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
    """Return the place of the pipeline that is being set up or run.

    A stage asks when it is called with its samples, before it yields the first one.
    Outside a data module's pipeline this is a default place, so a stage can be tried by itself.
    """
    found = _local.context
    if not isinstance(found, Context):  # made on first use
        found = _local.context = found()
    return found


class at:  # noqa: N801 - a function to its users; entered for every share, so it is no generator
    """Make a place, or what makes it when it is asked for, the current one in this thread for a ``with`` block."""

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
    """One of a loader's workers, and what the loader offers there.

    Attributes:
        number: Its number, from 0.
        count: How many workers there are; 0 in the main process, where nothing else reads.
        empty: Returns contiguous memory for a batch from its shape and dtype, such as memory that the main process
            sees too.
        note: Takes a line of text about what the worker is doing, for messages about a worker that hangs or dies.
    """

    number: int = 0
    count: int = 0
    empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor] = _torch_empty
    note: Callable[[str], None] = _ignore


_MAIN = Worker()
_process_worker: Worker | None = None
_local = _Local()


def worker() -> Worker:
    """Return which worker this thread or process is.

    It is what the loader said by :func:`working` or :func:`join`, else what torch's ``DataLoader`` says, else the
    main process.
    """
    found = _local.worker or _process_worker
    if found is not None:
        return found
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return _MAIN if info is None else Worker(number=info.id, count=info.num_workers)


@contextlib.contextmanager
def working(worker: Worker) -> Iterator[None]:
    """Be a worker in this thread for the time of a ``with`` block; for loaders."""
    before = _local.worker
    _local.worker = worker
    try:
        yield
    finally:
        _local.worker = before


def join(worker: Worker | None) -> None:
    """Be a worker in this process from now on; for loaders with worker processes. ``None`` ends that."""
    global _process_worker  # noqa: PLW0603 - one worker a process
    _process_worker = worker


def shuffled(samples: Iterator[Any], size: int, initial: int | None, place: Context) -> Iterator[Any]:
    """Yield samples in another order, through a buffer; it depends on the place alone.

    Args:
        samples: The stream.
        size: Samples in the buffer.
        initial: Samples in the buffer before the first is passed on; ``None`` for a full buffer.
        place: Where the pipeline stands.
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
