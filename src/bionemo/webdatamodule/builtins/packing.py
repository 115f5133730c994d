"""Packs: samples whose sizes sum to at most a limit, formed by best fit, the largest first, in shuffled windows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from bionemo.webdatamodule.errors import ConfigError, PlanError
from bionemo.webdatamodule.planning import Ids, ListedPlan, PlanRequest, permutation

_T = TypeVar("_T")

_PACKS = 64  # in a window, about: fewer are filled less, more take longer
_WINDOWS = 4  # of a small data set, so that packs differ from epoch to epoch
_ROUNDS = 3  # packs that are not full are dissolved, and their samples packed again
_FULL = 0.97
_TRIES = 4  # for an epoch whose windows need more packs than there are steps for
_SPARE = 500  # one pack in so many is spare, so that a second try is rare


def check_size(size: str | Callable[[Any], int]) -> None:
    """Check what says the size of a sample.

    Raises:
        ConfigError: If it is neither a suffix nor a function.
    """
    if not callable(size) and not (isinstance(size, str) and size):
        raise ConfigError(f"size is a suffix or a function of a sample, not {size!r}")


def pack_plan(sizes: Ids, request: PlanRequest, *, max_total: int, max_samples: int) -> ListedPlan:
    """Return a plan of packs.

    Args:
        sizes: (n,) sizes from 0 on.
        request: Seed and shuffling.
        max_total: Limit of a pack: the sum of its sizes.
        max_samples: Limit of a pack in samples; 0 for none.

    Raises:
        PlanError: If a sample is too large.
    """
    largest = int(sizes.argmax())
    if sizes[largest] > max_total:
        raise PlanError(
            f"sample {largest} has size {sizes[largest]}, more than the {max_total} of a whole pack; "
            "raise max_total, or leave the sample out"
        )
    words = repr((max_total, max_samples, request.shuffle)).encode()
    return ListedPlan(
        batches=Packs.of(sizes, request, max_total, max_samples),
        n_samples=len(sizes),
        seed=request.seed,
        digest=f"pack{hashlib.blake2b(sizes.astype('<i8').tobytes() + words, digest_size=8).hexdigest()}",
    )


@dataclass(frozen=True, kw_only=True)
class Packs:
    """Lists packs, epoch by epoch: the same number in each, of other samples.

    Attributes:
        sizes: The size of each sample.
        max_total: Limit of a pack.
        max_samples: Limit in samples; 0 for none.
        seed: Any integer.
        shuffle: False for the same packs in every epoch, of neighbouring samples.
        count: Packs of an epoch.
    """

    sizes: Ids = field(repr=False)
    max_total: int
    max_samples: int
    seed: int
    shuffle: bool
    count: int

    @classmethod
    def of(cls, sizes: Ids, request: PlanRequest, max_total: int, max_samples: int) -> Packs:
        """Count the packs of an epoch."""
        first = cls(
            sizes=sizes,
            max_total=max_total,
            max_samples=max_samples,
            seed=request.seed,
            shuffle=request.shuffle,
            count=len(sizes),
        )
        needed = int(first.packed(-1, 0).max()) + 1
        count = min(len(sizes), needed + (needed // _SPARE if request.shuffle else 0))
        return cls(**{**first.__dict__, "count": count})

    def __call__(self, epoch: int) -> tuple[Ids, Ids]:
        """Return the samples of an epoch in order, and where packs begin, with the end."""
        if not self.shuffle:
            return _listed(self.packed(-1, 0), None)
        for number in range(_TRIES):
            packs = self.packed(epoch, number)
            if packs.max() < self.count:
                break
        else:
            packs = self.packed(-1, 0)
        return _listed(
            _divided(packs, self.count),
            permutation(self.count, "pack", self.seed, epoch)(np.arange(self.count)),
            permutation(len(packs), "samples", self.seed, epoch)(np.arange(len(packs))),
        )

    def packed(self, epoch: int, number: int) -> Ids:
        """Return the pack of each sample, from 0 on."""
        n = len(self.sizes)
        order = np.arange(n)
        if self.shuffle:
            order = permutation(n, "windows", self.seed, epoch, number)(order)
        packs = np.empty(n, dtype=np.int64)
        window = max(1, round(_PACKS * self.max_total / max(1.0, float(self.sizes.mean()))))
        if self.max_samples:
            window = min(window, _PACKS * self.max_samples)
        count = 0
        for turn in range(_ROUNDS):
            least = 1 if turn else _WINDOWS
            here = fill(self.sizes[order], min(window, -(-len(order) // least)), self.max_total, self.max_samples)
            totals = np.bincount(here, weights=self.sizes[order])
            full = totals >= _FULL * self.max_total
            if self.max_samples:
                full |= np.bincount(here) >= self.max_samples
            if turn == _ROUNDS - 1 or full.all():
                full[:] = True
            numbers = np.cumsum(full) - 1 + count
            done = full[here]
            packs[order[done]] = numbers[here[done]]
            count += int(full.sum())
            order = order[~done]
            if not len(order):
                break
        return packs


def fill(sizes: Ids, window: int, max_total: int, max_samples: int) -> Ids:
    """Return for each sample the pack it is put into: best fit, the largest first, in each window by itself.

    All windows are filled together, one sample of each at a time.

    Args:
        sizes: (n,) sizes, none above the limit.
        window: Samples of a window.
        max_total: Limit of a pack.
        max_samples: Limit in samples; 0 for none.

    Returns:
        (n,) numbers of packs, every number from 0 to the largest.
    """
    n, windows = len(sizes), -(-len(sizes) // window)
    padded = np.full(windows * window, -1, dtype=np.int64)
    padded[:n] = sizes
    table = padded.reshape(windows, window)
    falling = np.argsort(-table, axis=1, kind="stable")
    sums = np.maximum(table, 0).sum(axis=1)
    room = np.full((windows, int(sums.max()) // max_total + 2), max_total, dtype=np.int64)
    counts = np.zeros_like(room)
    chosen = np.zeros_like(table)
    rows = np.arange(windows)
    for turn in range(window):
        columns = falling[:, turn]
        wanted = table[rows, columns]
        fits = room >= wanted[:, None]
        if max_samples:
            fits &= counts < max_samples
        if not fits.any(axis=1).all():
            more = max(1, room.shape[1] // 8)
            room = np.pad(room, ((0, 0), (0, more)), constant_values=max_total)
            counts = np.pad(counts, ((0, 0), (0, more)))
            fits = np.pad(fits, ((0, 0), (0, more)), constant_values=True)
        best = np.where(fits, room, max_total + 1).argmin(axis=1)
        chosen[rows, columns] = best
        room[rows, best] -= np.maximum(wanted, 0)
        counts[rows, best] += wanted >= 0
    numbers = (chosen + rows[:, None] * room.shape[1]).reshape(-1)[:n]
    packs: Ids = np.unique(numbers, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return packs


def pack_stream(
    samples: Iterable[_T], size: Callable[[_T], int], *, max_total: int, max_samples: int, window: int
) -> Iterator[list[_T]]:
    """Yield packs of a stream. Samples whose pack is not full wait for the next window.

    Args:
        samples: The stream.
        size: Gives the size of a sample.
        max_total: Limit of a pack.
        max_samples: Limit in samples; 0 for none.
        window: Samples that are packed at a time.

    Raises:
        PlanError: If a sample is too large.
    """
    waiting: list[_T] = []
    source, ended = iter(samples), False
    while not ended:
        room = max(1, window - len(waiting))
        fresh = [sample for _, sample in zip(range(room), source, strict=False)]
        ended = len(fresh) < room
        waiting += fresh
        if not waiting:
            return
        sizes = np.array([size(sample) for sample in waiting], dtype=np.int64)
        if sizes.max() > max_total:
            raise PlanError(
                f"a sample of the stream has size {sizes.max()}, more than the {max_total} of a whole pack; "
                "raise max_total, or leave the sample out"
            )
        packs = fill(sizes, len(sizes), max_total, max_samples)
        totals = np.bincount(packs, weights=sizes)
        full = (totals >= _FULL * max_total) | (totals == totals.max())
        if max_samples:
            full |= np.bincount(packs) >= max_samples
        if ended:
            full[:] = True
        for number in np.flatnonzero(full).tolist():
            yield [waiting[place] for place in np.flatnonzero(packs == number).tolist()]
        waiting = [sample for sample, number in zip(waiting, packs.tolist(), strict=True) if not full[number]]


def _divided(packs: Ids, count: int) -> Ids:
    """Return packs of which some are divided in two, those of most samples first, until there are so many."""
    packs = packs.copy()
    while (missing := count - int(packs.max()) - 1) > 0:
        held = np.bincount(packs)
        most = np.argsort(-held, kind="stable")[: min(missing, int((held > 1).sum()))]
        renamed = np.full(len(held), -1)
        renamed[most] = len(held) + np.arange(len(most))
        order = np.argsort(packs, kind="stable")
        places = np.empty_like(packs)  # of samples in their packs
        places[order] = np.arange(len(packs)) - np.repeat(np.cumsum(held) - held, held)
        moved = (renamed[packs] >= 0) & (places >= held[packs] // 2)
        packs[moved] = renamed[packs[moved]]
    return packs


def _listed(packs: Ids, shuffled: Ids | None, samples: Ids | None = None) -> tuple[Ids, Ids]:
    numbers = packs if shuffled is None else shuffled[packs]
    order = np.argsort(numbers, kind="stable") if samples is None else np.lexsort((samples, numbers))
    return order, np.append(0, np.cumsum(np.bincount(numbers)))
