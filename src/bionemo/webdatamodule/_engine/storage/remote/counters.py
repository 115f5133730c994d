"""How much came from stores and how long reading waited for it, counted by all workers of a loader together."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_SLOTS = 64  # processes that count apart; more of them share slots, where a count may get lost


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What came from stores.

    Attributes:
        n_bytes: Bytes.
        n_requests: Requests for them.
        waited: Seconds for which reading waited for them, of all workers together.
    """

    n_bytes: int = 0
    n_requests: int = 0
    waited: float = 0.0

    def __add__(self, other: Fetched) -> Fetched:
        return Fetched(
            n_bytes=self.n_bytes + other.n_bytes,
            n_requests=self.n_requests + other.n_requests,
            waited=self.waited + other.waited,
        )

    def __sub__(self, other: Fetched) -> Fetched:
        return Fetched(
            n_bytes=self.n_bytes - other.n_bytes,
            n_requests=self.n_requests - other.n_requests,
            waited=self.waited - other.waited,
        )


class Counters:
    """What the processes that share a reader fetched; forked and spawned workers count in the same memory."""

    def __init__(self) -> None:
        self._tensor = torch.zeros(_SLOTS, 3, dtype=torch.float64).share_memory_()
        self._begin()

    def add(self, worker: int, *, n_bytes: int = 0, n_requests: int = 0, waited: float = 0.0) -> None:
        """Count; within a process under a lock.

        Args:
            worker: Number of the process.
            n_bytes: See :class:`Fetched`.
            n_requests: See :class:`Fetched`.
            waited: See :class:`Fetched`.
        """
        self._counts[worker % _SLOTS] += (n_bytes, n_requests, waited)

    def total(self) -> Fetched:
        """Return what all of them fetched."""
        return _of(self._counts.sum(axis=0))

    def __getstate__(self) -> Any:
        # A worker gets the same memory; a pickle that goes elsewhere begins at nothing.
        return {"_tensor": self._tensor if get_spawning_popen() is not None else torch.zeros_like(self._tensor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        self._counts = self._tensor.numpy()
        _all.add(self)
        weakref.finalize(self, _leave, self._counts).atexit = False


_all: weakref.WeakSet[Counters] = weakref.WeakSet()
_gone = np.zeros(3)
"""What was counted for readers that are gone."""


def _leave(counts: NDArray[np.float64]) -> None:
    np.add(_gone, counts.sum(axis=0), out=_gone)


def fetched() -> Fetched:
    """Return what all readers that this process ever had, and their workers, fetched.

    The difference of two calls, and the seconds between them, give the rate and whether the store is what a run
    waited for. Nothing counts where no shard is behind a URL.
    """
    return sum([counters.total() for counters in list(_all)], _of(_gone))


def _of(counts: NDArray[np.float64]) -> Fetched:
    n_bytes, n_requests, waited = counts.tolist()
    return Fetched(n_bytes=int(n_bytes), n_requests=int(n_requests), waited=waited)
