"""Datasets in global order: they follow an epoch plan, one share of a global batch after the other."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from bionemo.webdatamodule._engine.stages import chain, describe
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.reading.reader import SampleReader
    from bionemo.webdatamodule.planning import EpochPlan, Ids


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
    Stages run anew on each share, this rank's part of a global batch,
    so nothing they buffer can cross from one batch to another.

    Args:
        reader: Reads samples by id.
        plan: Says which ids make up which share.
        stages: Run on the samples of each share, in workers.
        collate: ``True`` makes a batch of each share in the worker; ``stages`` then are at most ``untuple``.
        pad: Whether these batches are filled up with zeros where lengths differ.
        untuple: Whether the only value of a sample is taken out of its 1-tuple before batching.
        topology: This process's place.
        split: The split's name, for messages.
        seed: The data module's seed, for stages that draw random numbers.
        sample_bytes: Mean size of a sample, which decides how many batches cross from a worker at once.
    """

    def __init__(
        self,
        *,
        reader: SampleReader,
        plan: EpochPlan,
        stages: Sequence[Any] = (),
        collate: bool = False,
        pad: bool = False,
        untuple: bool = False,
        topology: Topology = ALONE,
        split: str = "train",
        seed: int = 0,
        sample_bytes: float = 0,
    ) -> None:
        super().__init__()
        self.reader = reader
        self.plan = plan
        self.stages = tuple(stages)
        self.collate = collate
        self.pad = pad
        self.untuple = untuple
        self.topology = topology
        self.split = split
        self.seed = seed
        self.sample_bytes = sample_bytes
        self.position = Position()

    def __iter__(self) -> Iterator[Any]:
        for item in self.items():
            for value in item.values:
                yield from [value] if self.collate else value

    def compose(self, *stages: Any) -> PlannedDataset:
        """Return a copy with more stages, which run on each share."""
        if self.collate:
            raise ConfigError(
                "this dataset joins its samples into batches itself; give the stages as pipeline_wds instead",
                split=self.split,
            )
        result = copy.copy(self)
        result.stages = (*self.stages, *stages)
        return result

    def append(self, f: Any) -> None:
        """Add a stage, which runs on each share."""
        self.stages = (*self.stages, f)

    def items(self) -> Iterator[Item]:
        """Yield this worker's part of the epoch that :attr:`position` names, from there on."""
        epoch, start = self.position.get()
        reads = context.worker()
        worker, workers = reads.number, reads.count
        # Large batches are made when they are asked for: less memory is less time.
        lazy = self.collate and not workers and self.sample_bytes * CHUNK_SAMPLES > CHUNK_BYTES
        place = self.topology
        n_batches = self.plan.n_batches(place.world_size, start=start, epoch=epoch)
        share = mean_share(self.plan.n_samples, n_batches, place.world_size)
        most = LAZY_BYTES if lazy else CHUNK_BYTES
        length = chunk_length(n_batches, share, workers, sample_bytes=self.sample_bytes, most_bytes=most)
        together = max(1, _PLANNED // max(1, share * length))
        runs = self._runs(chunks(n_batches, worker, workers, length=length), epoch, start, together)
        if self.reader.is_remote:  # what will be read is known, and is fetched in that order
            coming = self._runs(chunks(n_batches, worker, workers, length=length), epoch, start, together)
            self.reader.follow((ids for _, shares in coming for ids in shares), epoch)
        for batches, shares in runs:
            if self.collate:
                columns = (self.reader.iter_batches if lazy else self.reader.read_batches)(shares, pad=self.pad)
                made = (batch[0] if self.untuple else list(batch) for batch in columns)
                values = made if lazy else list(made)
            else:
                read = self.reader.read_shares(shares)
                values = []
                for batch, ids, samples in zip(batches, shares, read, strict=True):
                    if not samples:
                        raise self.reader.nothing_left(ids)
                    values.append(self._staged(samples, batch, epoch, start))
            yield Item(epoch=epoch, start=start, worker=worker, number=batches[0], values=values)

    def _runs(self, runs: Iterator[range], epoch: int, start: int, together: int) -> Iterator[tuple[range, list[Ids]]]:
        """Yield runs of batches with this rank's shares of them, planning several runs at a time."""
        place = self.topology
        while some := list(itertools.islice(runs, together)):
            batches = list(itertools.chain.from_iterable(some))
            shares = iter(self.plan.shares(epoch, batches, place.rank, place.world_size, start=start))
            for run in some:
                yield run, list(itertools.islice(shares, len(run)))

    def _staged(self, samples: list[Any], batch: int, epoch: int, start: int) -> list[Any]:
        """Run the stages on the samples of a share."""
        first = self.plan.consumed(batch, self.topology.world_size, start=start, epoch=epoch)
        with context.at(self.place(epoch, first)):
            out = list(chain(self.stages, samples))
        if not out:
            raise ConfigError(
                f"pipeline_wds ({', '.join(map(describe, self.stages))}) left nothing of a share of "
                f"{len(samples)} samples, and every rank must take the same steps; "
                "drop samples when converting, take larger batches, or read in order='shards'",
                split=self.split,
                rank=self.topology.rank,
            )
        return out

    def place(self, epoch: int, first: int) -> context.Context:
        """Return the place of a share for stages that draw random numbers."""
        return context.Context(order="global", seed=self.seed, epoch=epoch, first=first, rank=self.topology.rank)


_Placed = TypeVar("_Placed", bound="Placed")


def apart(dataset: _Placed) -> _Placed:
    """Return a copy of a dataset with a position of its own, for one loader."""
    result = copy.copy(dataset)
    result.position = Position()
    return result
