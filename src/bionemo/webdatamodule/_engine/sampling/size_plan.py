"""Batches by size: samples of like length together, as many as a limit holds, equal steps on every rank."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bionemo.webdatamodule._engine.sampling.by_size import Oversize, batch_by_size, check_sizes, cut, divide_last
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.permutation import Ids, Permutation, key
from bionemo.webdatamodule.errors import PlanError

__all__ = ["SizedPlan", "batch_by_size"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SizedPlan:
    """Batches of samples of like size: a batch's number of samples times its largest size is within a limit.

    That is the size of the batch after padding; without padding it is smaller still.
    Samples are sorted by size into buckets once. In every epoch the samples of each bucket are shuffled and cut
    into batches, and all batches are shuffled. A bucket's batches hold as many samples as its largest size allows,
    so the number of batches is the same in every epoch, known beforehand, and independent of the number of ranks.

    At a step each rank takes the next batch. Where batches do not divide by ranks, those at the end of the epoch
    are divided further until they do, so that all ranks take equal steps and every sample comes once.

    Args:
        sizes: (n,) integers from 0 on: the size of each sample, in any unit.
        max_total: Limit of a batch, in the same unit.
        max_samples: Limit of a batch in samples; 0 for none.
        width: How far sizes in a batch may lie apart: 0.1 for about 10 %.
            Less wastes less on padding, more mixes better.
        oversize: What becomes of a sample that is larger than ``max_total``.
        seed: Any integer.
        shuffle: False for the same order in every epoch, the largest first.

    Raises:
        PlanError: If a sample is too large, or an argument is out of range.
    """

    sizes: NDArray[np.int64] = field(repr=False)
    max_total: int
    max_samples: int = 0
    width: float = 0.1
    oversize: Oversize = "error"
    seed: int = 0
    shuffle: bool = True
    _by_size: Ids = field(init=False, repr=False)  # sample ids, the largest first
    _buckets: Ids = field(init=False, repr=False)  # places in _by_size where buckets begin, and the end
    _cuts: Ids = field(init=False, repr=False)  # places in _by_size where batches begin, and the end
    _kept: dict[tuple[int, ...], tuple[Ids, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        sizes = _checked(self)
        by_size = np.argsort(-sizes, kind="stable")
        buckets, cuts = cut(sizes[by_size], self.max_total, self.max_samples, self.width)
        for name, value in (("sizes", sizes), ("_by_size", by_size), ("_buckets", buckets), ("_cuts", cuts)):
            object.__setattr__(self, name, value)

    @property
    def n_samples(self) -> int:
        """Samples of one epoch: all of them."""
        return len(self.sizes)

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the number of steps after ``start`` samples of an epoch, the same on every rank."""
        return (len(self._edges(epoch, start, world_size)) - 1) // world_size

    def share(self, epoch: int, batch: int, rank: int, world_size: int, *, start: int = 0) -> Ids:
        """Return the ids of the samples that a rank takes at a step.

        Args:
            epoch: Number of the epoch, from 0.
            batch: Number of the step, from 0 at ``start``.
            rank: This rank.
            world_size: Number of ranks.
            start: Samples of the epoch that are used up already.

        Returns:
            (k,) int64 with k ≥ 1; their sizes, padded to the largest, are within ``max_total``.

        Raises:
            IndexError: If there is no such step.
        """
        edges = self._edges(epoch, start, world_size)
        place = batch * world_size + rank
        if not 0 <= batch < (len(edges) - 1) // world_size:
            raise IndexError(f"there is no batch {batch} for {world_size} ranks from sample {start} on")
        return self._ids(epoch, int(edges[place]), int(edges[place + 1]))

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return :meth:`share` of several steps."""
        return [self.share(epoch, batch, rank, world_size, start=start) for batch in batches]

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples of the epoch that are used up after so many steps from ``start``.

        Raises:
            IndexError: If there are not so many.
        """
        return int(self._edges(epoch, start, world_size)[batches * world_size])

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:
        """Return the samples at the end of the epoch that no step takes.

        There are some only after a change of the number of ranks so near the end of an epoch
        that the rest has too few samples for equal steps.
        """
        return self.n_samples - int(self._edges(epoch, start, world_size)[-1])

    def check(self, world_size: int) -> None:
        """Check that every rank gets a sample at every step, and every sample comes.

        Raises:
            PlanError: If not, with the numbers; the same on every rank.
        """
        if world_size < 1 or self.unserved(world_size):
            raise PlanError(
                f"{self.n_samples} samples in {len(self._cuts) - 1} batches of at most {self.max_total} "
                f"are too few to deal to {world_size} ranks in equal steps; use fewer ranks"
            )

    def cursor(self, data: str, *, epoch: int = 0, samples: int = 0) -> Cursor:
        """Return the state to store after so many samples of an epoch.

        Args:
            data: Digest of the data.
            epoch: Number of the epoch.
            samples: Samples of it that are used up, as :meth:`consumed` gives it.
        """
        return Cursor(
            epoch=epoch,
            samples=samples,
            n_samples=self.n_samples,
            seed=self.seed,
            global_batch_size=0,
            digest=f"{data}/{self.digest}",
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that the batches depend on beside the seed and the data themselves."""
        options = repr((self.max_total, self.max_samples, self.width, self.shuffle))
        words = self.sizes.astype("<i8").tobytes() + options.encode()
        return hashlib.blake2b(words, digest_size=8).hexdigest()

    def _ids(self, epoch: int, first: int, stop: int) -> Ids:
        """Return the ids at places of an epoch that lie in one batch."""
        numbers, ends = self._batches(epoch)
        batch = int(np.searchsorted(ends, first, side="right")) - 1
        begin = int(self._cuts[numbers[batch]]) + first - int(ends[batch])
        places = np.arange(begin, begin + stop - first)
        if self.shuffle:
            bucket = int(np.searchsorted(self._buckets, begin, side="right")) - 1
            low, high = int(self._buckets[bucket]), int(self._buckets[bucket + 1])
            places = low + _permutation(high - low, self.seed, epoch, bucket)(places - low)
        return self._by_size[places]

    def _batches(self, epoch: int) -> tuple[Ids, ...]:
        """Return the numbers of an epoch's batches as they come, and the places of the epoch where they begin."""
        epoch = epoch if self.shuffle else -1
        if (epoch,) not in self._kept:
            numbers = np.arange(len(self._cuts) - 1)
            if self.shuffle:
                numbers = _permutation(len(numbers), self.seed, epoch, -1)(numbers)
            self._keep((epoch,), numbers, np.append(0, np.cumsum(np.diff(self._cuts)[numbers])))
        return self._kept[epoch,]

    def _edges(self, epoch: int, start: int, world_size: int) -> Ids:
        """Return the places of an epoch where a rank's batch begins, from ``start`` on, and where the last ends."""
        if (epoch, start, world_size) not in self._kept:
            ends = self._batches(epoch)[1]
            rest = np.append(start, ends[np.searchsorted(ends, start, side="right") :])
            self._keep((epoch, start, world_size), divide_last(rest, world_size))
        return self._kept[epoch, start, world_size][0]

    def _keep(self, place: tuple[int, ...], *found: Ids) -> None:
        while len(self._kept) >= 6:  # of this epoch and the next, from a few starts
            self._kept.pop(next(iter(self._kept)))
        self._kept[place] = found


@functools.lru_cache(maxsize=256)
def _permutation(n: int, seed: int, epoch: int, bucket: int) -> Permutation:
    return Permutation(n, key("sized", seed, epoch, bucket))


def _checked(plan: SizedPlan) -> Ids:
    """Return the sizes as int64 after checking all arguments of a plan."""
    sizes = np.asarray(plan.sizes)
    if sizes.ndim != 1 or not sizes.size or sizes.dtype.kind not in "iu" or sizes.min() < 0:
        raise PlanError(
            f"sizes are a row of at least one integer from 0 on, not {sizes.dtype} of shape {sizes.shape}"
            + (f" from {sizes.min()} on" if sizes.size and sizes.dtype.kind in "iuf" else "")
        )
    if plan.max_total < 1 or plan.max_samples < 0 or not (math.isfinite(plan.width) and plan.width >= 0):
        raise PlanError(
            "max_total is at least 1, max_samples and width are at least 0; "
            f"got {plan.max_total}, {plan.max_samples} and {plan.width}"
        )
    if plan.oversize not in ("error", "alone"):
        raise PlanError(f"oversize is 'error' or 'alone', not {plan.oversize!r}")
    largest = int(sizes.argmax())
    check_sizes(int(sizes[largest]), largest, plan.max_total, plan.oversize)
    return sizes.astype(np.int64)
