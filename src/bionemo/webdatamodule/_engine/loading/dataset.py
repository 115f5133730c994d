"""Datasets in global order: they follow an epoch plan, one share of a global batch after the other."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
import webdataset as wds
from webdataset.compat import FluidInterface

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.sampling.partition import (
    CHUNK_BYTES,
    CHUNK_SAMPLES,
    LAZY_BYTES,
    chunk_length,
    chunks,
    mean_share,
)
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.stages import chain, names_of, run_columns
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.reading.reader import ShardReader
    from bionemo.webdatamodule._engine.sampling.pieces import Piece
    from bionemo.webdatamodule.planning import EpochPlan, Ids


_FOLLOWED = 64  # batches whose pieces are found at a time
_PLANNED = 1024  # samples that are planned at a time, since numpy's calls cost as much for one


@dataclass(frozen=True, kw_only=True)
class Topology:
    """This process's place among the data-parallel processes."""

    rank: int = 0
    world_size: int = 1


ALONE = Topology()
"""The place of the only process."""


class Position:
    """The epoch, and the samples of it already used up, or in shards order the passes, at which an iteration begins.

    Workers that live for one iteration take it along when they start.
    Persistent workers look it up in shared memory when an iteration begins.
    """

    def __init__(self) -> None:
        self._own = (0, 0)
        self._shared: torch.Tensor | None = None

    def share(self) -> None:
        """Let workers that live longer than an iteration see later positions too."""
        self._shared = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set(self, epoch: int, start: int) -> None:
        """Set the position, in the main process, before the iteration begins."""
        self._own = (epoch, start)
        if self._shared is not None:
            self._shared[0], self._shared[1] = epoch, start

    def get(self) -> tuple[int, int]:
        """Return ``(epoch, start)``."""
        if self._shared is None:
            return self._own
        epoch, start = self._shared.tolist()
        return epoch, start


class Placed(Protocol):
    """A dataset that is iterated from a position on."""

    position: Position


class Planned(wds.DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset is not typed
    """A webdataset pipeline whose length the plan decides: it refuses webdataset's ways to change it."""

    split: str

    def with_epoch(self, nsamples: int = -1, nbatches: int = -1) -> Planned:
        """Refuse, since the plan decides the length of an epoch."""
        raise self._planned(f"with_epoch({nsamples=}, {nbatches=})")

    def with_length(self, n: int, silent: bool = False) -> Planned:  # noqa: ARG002 - webdataset's signature
        """Refuse, since the length is known and true."""
        raise self._planned(f"with_length({n})")

    def repeat(self, nepochs: int = -1, nbatches: int = -1) -> Planned:
        """Refuse, since the plan decides the length of an epoch."""
        raise self._planned(f"repeat({nepochs=}, {nbatches=})")

    def slice(self, *args: int) -> Planned:
        """Refuse, since the plan decides the length of an epoch."""
        raise self._planned(f"slice{args}")

    def _planned(self, call: str) -> ConfigError:
        return ConfigError(
            f"{call} would make ranks unequal in global order; set the epoch's length with n_samples, "
            "the Trainer's limits, or read in order='shards'",
            split=self.split,
        )


class PlannedDataset(Planned):
    """A split in global order, as a webdataset pipeline.

    Iterating it gives this rank's samples of the current epoch after the stages.
    webdataset's fluid methods (``map``, ``select`` …) add stages to a copy.
    Stages run again on each share, this rank's part of a global batch,
    so nothing they buffer can cross from one batch to another.

    Args:
        reader: Reads samples by id.
        plan: Says which ids make up which share.
        stages: Run on the samples of each share, in workers.
        ahead: Stages of the loader that run behind them, in workers too.
        batches: Whether ``ahead`` are all stages of the loader, so that they make one batch of a share.
        topology: This process's place.
        split: The split's name, for messages.
        seed: The data module's seed, for stages that draw random numbers.
        sample_bytes: Mean size of a sample, which decides how many batches cross from a worker at once.
    """

    def __init__(
        self,
        *,
        reader: ShardReader,
        plan: EpochPlan,
        stages: Sequence[Any] = (),
        ahead: Sequence[Any] = (),
        batches: bool = False,
        topology: Topology = ALONE,
        split: str = "train",
        seed: int = 0,
        sample_bytes: float = 0,
    ) -> None:
        super().__init__()
        self.reader = reader
        self.plan = plan
        self.stages = tuple(stages)
        self.ahead = tuple(ahead)
        self.batches = batches
        self.topology = topology
        self.split = split
        self.seed = seed
        self.sample_bytes = sample_bytes
        self.position = Position()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items():
            for value in item.values:
                yield from [value] if self.batches else value

    def compose(self, *stages: Any) -> PlannedDataset:
        """Return a copy with more stages, which run on each share."""
        result = copy.copy(self)
        result.stages = (*self.stages, *stages)
        return result

    def append(self, f: Any) -> None:
        """Add a stage, which runs on each share."""
        self.stages = (*self.stages, f)

    def items(self) -> Iterator[Item]:
        """Yield this worker's part of the epoch that :attr:`position` names, from there on."""
        epoch, start = self.position.get()
        this = context.worker()
        # Large batches are made when they are asked for: less memory is less time.
        lazy = not this.count and self.sample_bytes * CHUNK_SAMPLES > CHUNK_BYTES
        place = self.topology
        n_batches = self.plan.n_batches(place.world_size, start=start, epoch=epoch)
        share = mean_share(self.plan.n_samples, n_batches, place.world_size)
        most = LAZY_BYTES if lazy else CHUNK_BYTES
        length = chunk_length(n_batches, share, this.count, sample_bytes=self.sample_bytes, most_bytes=most)
        together = max(1, _PLANNED // max(1, share * length))
        mine = partial(chunks, n_batches, this.number, this.count, length=length)
        if self.reader.is_remote:  # what will be read is known, and is fetched in that order
            if isinstance(self.plan, Plan) and self.plan.lanes:
                self.reader.follow_pieces(self._pieces(self.plan, n_batches, epoch, start), epoch)
            else:
                coming = self._runs(mine(), epoch, start, together)
                self.reader.follow((ids for _, shares in coming for ids in shares), epoch)
        for batches, shares in self._runs(mine(), epoch, start, together):
            made = self._made(batches, shares, epoch, start, lazy=lazy)
            yield Item(
                epoch=epoch, start=start, worker=this.number, number=batches[0], values=made if lazy else list(made)
            )

    def _pieces(self, plan: Plan, n_batches: int, epoch: int, start: int) -> Iterator[Piece]:
        """Yield what this rank reads, in the order of need; its workers share what they fetch."""
        place, first, length = self.topology, 0, 1
        known: set[tuple[int, int]] = set()  # of the batches before, which may go on in theirs
        while first < n_batches:
            batches = range(first, min(n_batches, first + length))
            pieces = plan.pieces(epoch, batches, [place.rank], place.world_size, start=start)
            yield from (piece for piece in pieces if (piece.shard, piece.first) not in known)
            known = {(piece.shard, piece.first) for piece in pieces}
            first, length = batches.stop, min(2 * length, _FOLLOWED)

    def _runs(self, runs: Iterator[range], epoch: int, start: int, together: int) -> Iterator[tuple[range, list[Ids]]]:
        """Yield runs of batches with this rank's shares of them, planning several runs at a time."""
        place = self.topology
        while some := list(itertools.islice(runs, together)):
            batches = list(itertools.chain.from_iterable(some))
            shares = iter(self.plan.shares(epoch, batches, place.rank, place.world_size, start=start))
            for run in some:
                yield run, list(itertools.islice(shares, len(run)))

    def _made(
        self, batches: Sequence[int], shares: Sequence[Ids], epoch: int, start: int, *, lazy: bool
    ) -> Iterator[Any]:
        """Yield what the stages make of each share: a batch, or a list of samples."""
        stages = (*self.stages, *self.ahead)

        def place(number: int) -> context.Context:
            first = self.plan.consumed(batches[number], self.topology.world_size, start=start, epoch=epoch)
            return self.place(epoch, first)

        def use(number: int, fields: Any) -> tuple[list[Any], Sequence[Any]]:
            with context.at(partial(place, number)):  # most stages never ask
                return run_columns(stages, fields)

        for number, (values, rest) in enumerate(self.reader.columns(shares, use, lazily=lazy)):
            if not rest and self.batches and len(values) == 1 and values[0] is not None:
                yield values[0]
                continue
            with context.at(partial(place, number)):
                made = self._finished(values, rest, len(shares[number]))
            yield made

    def _finished(self, values: list[Any], rest: Sequence[Any], n_samples: int) -> Any:
        """Run the stages without a columnar form, and return the share's batch or samples."""
        within = max(0, len(rest) - len(self.ahead))
        if within:
            values = list(chain(rest[:within], values))
        if not values:
            raise ConfigError(
                f"pipeline_wds ({names_of(self.stages)}) left nothing of a share of "
                f"{n_samples} samples, and every rank must take the same steps; "
                "leave samples out with where= or when converting, take larger batches, or read in order='shards'",
                split=self.split,
                rank=self.topology.rank,
            )
        if not self.batches:
            return list(chain(rest[within:], values)) if len(rest) > within else values
        return only_batch(chain(rest[within:], values), self, self.ahead, n_samples)

    def place(self, epoch: int, first: int) -> context.Context:
        """Return the place of a share for stages that draw random numbers."""
        return context.Context(order="global", seed=self.seed, epoch=epoch, first=first, rank=self.topology.rank)


def only_batch(made: Iterable[Any], dataset: PlannedDataset, stages: Sequence[Any], n_samples: int) -> Any:
    """Return the batch that the loader's stages made of a share.

    Args:
        made: What they made.
        dataset: The split's dataset, for messages.
        stages: The stages, for messages.
        n_samples: How many samples or batches they got.

    Raises:
        ConfigError: If it is no batch, or several.
    """
    batches = list(itertools.islice(made, 2))
    if len(batches) != 1 or batches[0] is None:  # Lightning skips the step of a None, on this rank alone
        more = "several batches" if len(batches) > 1 else "no batch"
        raise ConfigError(
            f"pipeline_prebatch_wld ({names_of(stages)}) makes {more} of a share of "
            f"{n_samples} samples, this rank's part of a global batch; every rank must take the same "
            "steps, so make one batch of at least that size, or read in order='shards'",
            split=dataset.split,
            rank=dataset.topology.rank,
        )
    return batches[0]


_Placed = TypeVar("_Placed", bound="Placed")


def apart(dataset: _Placed) -> _Placed:
    """Return a copy of a dataset with a position of its own, for one loader."""
    result = copy.copy(dataset)
    result.position = Position()
    return result
