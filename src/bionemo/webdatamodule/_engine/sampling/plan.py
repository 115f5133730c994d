"""Who reads what, when: epochs cut into global batches and ranks' shares, as pure functions on integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bionemo.webdatamodule._engine.sampling.order import Order, Source
from bionemo.webdatamodule._engine.sampling.partition import Tail, bounds, n_batches, part
from bionemo.webdatamodule._engine.sampling.permutation import Ids
from bionemo.webdatamodule.errors import PlanError

__all__ = ["Plan", "Source"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Global batches of a fixed number of samples.

    Batch ``b`` of epoch ``e`` depends on the seed, ``e``, the samples and ``global_batch_size``,
    and on the number of ranks only where that exceeds half of ``global_batch_size``.
    A rank's share is a slice of it, so the batch is the shares of ranks 0, 1, … in a row.

    Args:
        sources: What is drawn from; see :class:`~bionemo.webdatamodule._engine.sampling.order.Order`.
        global_batch_size: Samples of a global batch, over all ranks.
        n_samples: Samples of an epoch; 0 for as many as there are.
        seed: Any integer.
        shuffle: False for evaluation.
        tail: What becomes of samples that do not fill a global batch.
            ``"share"``: the last two batches share them evenly; with fewer than two samples a rank and batch
            they join the last one. ``"drop"``: they are left out of this epoch.
            ``"fill"``: the batch is filled up with the first samples of the next epoch, where they come again.
        block: Shards that are shuffled together; 0 shuffles all samples together.

    Raises:
        PlanError: If the sources cannot give such epochs.
    """

    sources: tuple[Source, ...]
    global_batch_size: int
    n_samples: int = 0
    seed: int = 0
    shuffle: bool = True
    tail: Tail = "share"
    block: int = 0
    order: Order = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tail not in ("share", "drop", "fill"):
            raise PlanError(f"tail is 'share', 'drop' or 'fill', not {self.tail!r}")
        if self.global_batch_size < 1:
            raise PlanError(f"global_batch_size is at least 1, not {self.global_batch_size}")
        order = Order(
            sources=self.sources, n_samples=self.n_samples, seed=self.seed, shuffle=self.shuffle, block=self.block
        )
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "n_samples", order.n_samples)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that the order depends on beside the seed and the data themselves."""
        return self.order.digest

    def n_batches(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002 - equal epochs
        """Return the number of global batches after ``start`` samples of an epoch: the steps of every rank.

        Raises:
            PlanError: If a global batch has fewer samples than ranks.
        """
        return n_batches(self.n_samples - start, self.global_batch_size, world_size, self.tail)

    def batch_bounds(self, batch: int, world_size: int, *, start: int = 0) -> tuple[int, int]:
        """Return the places of the epoch where a global batch begins and ends.

        Raises:
            IndexError: If there is no such batch.
        """
        first, stop = bounds(batch, self.n_samples - start, self.global_batch_size, world_size, self.tail)
        return start + first, start + stop

    def shares(self, epoch: int, batches: Sequence[int], rank: int, world_size: int, *, start: int = 0) -> list[Ids]:
        """Return the numbers of the samples that a rank takes at each of some steps.

        Args:
            epoch: Number of the epoch, from 0.
            batches: Numbers of global batches, from 0 at ``start``.
            rank: This rank.
            world_size: Number of ranks.
            start: Samples of the epoch that are consumed already.

        Returns:
            (k,) int64 each, with k ≥ 1; k differs by one at most between ranks.

        Raises:
            IndexError: If there is no such batch.
        """
        parts = [self._part(batch, rank, world_size, start) for batch in batches]
        if not parts:
            return []
        ids = self.order.ids(epoch, np.concatenate([np.arange(first, stop) for first, stop in parts]))
        return np.split(ids, np.cumsum([stop - first for first, stop in parts[:-1]]))

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002
        """Return the samples of the epoch that are consumed after so many batches from ``start``.

        After the last batch that is all of them, those that ``tail="drop"`` drops included.

        Raises:
            IndexError: If there are not so many.
        """
        if not batches:
            return start
        if batches == self.n_batches(world_size, start=start):
            return self.n_samples
        return self.batch_bounds(batches - 1, world_size, start=start)[1]

    def unserved(self, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002
        """Return the samples at the end of the epoch that no batch takes.

        They are what ``tail="drop"`` drops, or, after a change of the number of ranks near the end of an epoch,
        a rest with fewer samples than ranks.
        """
        batches = self.n_batches(world_size, start=start)
        end = self.batch_bounds(batches - 1, world_size, start=start)[1] if batches else start
        return max(0, self.n_samples - end)

    def check(self, world_size: int) -> None:
        """Check that every rank gets a sample at every step.

        Raises:
            PlanError: If not, with the numbers; the same on every rank.
        """
        if self.n_samples < world_size:
            raise PlanError(
                f"{self.n_samples} samples cannot serve {world_size} ranks: each needs at least one; use fewer ranks"
            )
        if not self.n_batches(world_size):
            raise PlanError(
                f"{self.n_samples} samples do not fill one global batch of {self.global_batch_size}, "
                "and tail='drop' leaves out what does not; lower global_batch_size or use tail='share'"
            )

    def _part(self, batch: int, rank: int, world_size: int, start: int) -> tuple[int, int]:
        first, stop = self.batch_bounds(batch, world_size, start=start)
        low, high = part(stop - first, rank, world_size)
        return first + low, first + high
