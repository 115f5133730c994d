"""The plan: global batches of an epoch and the shares of ranks, as pure functions of integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bionemo.webdatamodule._engine.sampling.lanes import listed
from bionemo.webdatamodule._engine.sampling.order import Order, Source
from bionemo.webdatamodule._engine.sampling.partition import Tail, bounds, n_batches, part
from bionemo.webdatamodule._engine.sampling.permutation import Ids
from bionemo.webdatamodule._engine.sampling.pieces import Piece
from bionemo.webdatamodule._engine.sampling.schedule import Points
from bionemo.webdatamodule.errors import PlanError, ResumeError, count

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
            ``"fill"``: the batch is filled with the first samples of the next epoch, which uses them again.
        lanes: Lanes of an order that reads piece by piece (:mod:`~bionemo.webdatamodule._engine.sampling.lanes`);
            a global batch is then listed lane by lane, so that a rank reads from its own lanes.
            0 shuffles all samples together.
        piece_bytes: Bytes of a piece; 0 for whole shards.
        schedule: Weights that change with the samples drawn (:mod:`~bionemo.webdatamodule._engine.sampling.schedule`).

    Raises:
        PlanError: If the sources cannot give such epochs.
    """

    sources: tuple[Source, ...]
    global_batch_size: int
    n_samples: int = 0
    seed: int = 0
    shuffle: bool = True
    tail: Tail = "share"
    lanes: int = 0
    piece_bytes: int = 0
    schedule: Points = ()
    order: Order = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tail not in ("share", "drop", "fill"):
            raise PlanError(f"tail is 'share', 'drop' or 'fill', not {self.tail!r}")
        if self.global_batch_size < 1:
            raise PlanError(f"global_batch_size is at least 1, not {self.global_batch_size}")
        order = Order(
            sources=self.sources,
            n_samples=self.n_samples,
            seed=self.seed,
            shuffle=self.shuffle,
            lanes=self.lanes,
            piece_bytes=self.piece_bytes,
            schedule=self.schedule,
        )
        object.__setattr__(self, "order", order)
        for name in ("n_samples", "lanes", "piece_bytes"):
            object.__setattr__(self, name, getattr(order, name))

    @property
    def digest(self) -> str:
        """A short text of all that the order depends on beside the seed and the data themselves."""
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
        parts = [self._places(batch, rank, world_size, start) for batch in batches]
        if not parts:
            return []
        ids = self.order.ids(epoch, np.concatenate(parts))
        return np.split(ids, np.cumsum([len(places) for places in parts[:-1]]))

    def pieces(
        self, epoch: int, batches: Sequence[int], ranks: Sequence[int], world_size: int, *, start: int = 0
    ) -> list[Piece]:
        """Return what some ranks need for some steps, in the order of need: the runs of samples to fetch.

        A fetcher of a node asks for its ranks and the coming steps, and again for the steps after; a piece that it
        has already may be returned again. A piece is used up when none of the coming steps returns it.
        With lanes a rank needs a piece for many steps, and pieces overlap nowhere.
        Without lanes a piece is a whole shard.

        Args:
            epoch: Number of the epoch, from 0.
            batches: Numbers of global batches, rising, from 0 at ``start``.
            ranks: The ranks.
            world_size: Number of ranks.
            start: Samples of the epoch that are consumed already.

        Returns:
            Each piece once, by the first batch that needs it.

        Raises:
            IndexError: If there is no such batch.
        """
        parts = [self._places(batch, rank, world_size, start) for batch in batches for rank in ranks]
        if not parts:
            return []
        needed = np.repeat(np.repeat(np.asarray(batches), len(ranks)), [len(places) for places in parts])
        firsts, stops = self.order.runs(epoch, np.concatenate(parts))
        _, chosen = np.unique(firsts, return_index=True)
        chosen.sort()
        counts = np.array([count for source in self.sources for count in source.shards], dtype=np.int64)
        begins = np.cumsum(counts) - counts
        shards = np.searchsorted(begins + counts, firsts[chosen], side="right")
        own = begins[shards]
        columns = (shards, firsts[chosen] - own, stops[chosen] - own, needed[chosen])
        return [Piece(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def continued(self, digest: str) -> Plan:
        """Return the plan that continues in the lanes of a run whose cursor has this digest of the order.

        Lanes are chosen by the global batch size; a run that continues with another one keeps its lanes.

        Raises:
            ResumeError: If the digest is of the windows of shards that version 0.1 had in place of lanes.
        """
        if not self.shuffle or digest == self.digest:
            return self
        if any(digest == self.order.windowed(shards) for shards in {16, max(1, self.lanes)}):
            raise ResumeError(
                "the checkpoint was made with windows of shards, an order that this version has no longer; "
                "leave out the rest of the epoch with resume='next_epoch'"
            )
        lanes, _, piece_bytes = digest.partition("-")[2].partition("x")
        if not (lanes.isdecimal() and piece_bytes.isdecimal()):
            return self
        plan = replace(self, lanes=int(lanes), piece_bytes=int(piece_bytes))
        return plan if plan.digest == digest else self

    def consumed(self, batches: int, world_size: int, *, start: int = 0, epoch: int = 0) -> int:  # noqa: ARG002
        """Return the samples of the epoch that are consumed after a number of batches from ``start``.

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
                f"{count(self.n_samples, 'sample')} cannot serve {count(world_size, 'rank')}: each needs at least "
                "one; use fewer ranks"
            )
        if not self.n_batches(world_size):
            raise PlanError(
                f"{count(self.n_samples, 'sample')} cannot fill one global batch of {self.global_batch_size}, "
                "and tail='drop' leaves out what does not; lower global_batch_size or use tail='share'"
            )

    def _places(self, batch: int, rank: int, world_size: int, start: int) -> Ids:
        """Return the places of the epoch that a rank takes at a step."""
        first, stop = self.batch_bounds(batch, world_size, start=start)
        return listed(first, stop, *part(stop - first, rank, world_size), self.lanes)
