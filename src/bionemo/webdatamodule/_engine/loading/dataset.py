"""Datasets in global order: they follow an epoch plan, one share of a global batch after the other."""

from __future__ import annotations

import copy
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
import webdataset as wds
from webdataset.compat import FluidInterface

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.reading.locate import process
from bionemo.webdatamodule._engine.repetition import repeating
from bionemo.webdatamodule._engine.sampling.partition import (
    CHUNK_BYTES,
    CHUNK_SAMPLES,
    COLUMNAR_SAMPLES,
    LAZY_BYTES,
    chunk_length,
    chunks,
    mean_share,
)
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.sampling.tally import Tally, tallies
from bionemo.webdatamodule._engine.stages import StageFailedError, Where, chain, locate, names_of, run_columns
from bionemo.webdatamodule._engine.stopwatch import Stopwatch
from bionemo.webdatamodule.columns import ValueColumn, unlike
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.errors import ConfigError, DataWarning, DecodeError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.reading.reader import ShardReader
    from bionemo.webdatamodule._engine.sampling.pieces import Piece
    from bionemo.webdatamodule.planning import EpochPlan, Ids


_FOLLOWED = 64  # batches whose pieces are found at a time
MEASURED = 8  # of so many runs of batches one is measured, where the work is measured
_PLANNED = 1024  # samples that are planned at a time, since numpy's calls cost as much for one


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

    split: str
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
        joins: Whether ``batch`` stands in ``ahead`` because the user named no stages of the loader.
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
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.joins = joins
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
        self.measures = False  # whether the work on some batches is measured; set before workers start

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
        is_quick = all(hasattr(stage, "columns") for stage in (*self.stages, *self.ahead))
        samples = COLUMNAR_SAMPLES if is_quick else CHUNK_SAMPLES
        # Large batches are made when they are asked for: less memory is less time.
        lazy = not this.count and self.sample_bytes * samples > CHUNK_BYTES
        far = self.reader.is_remote  # what comes first is to be used first
        place = self.topology
        n_batches = self.plan.n_batches(place.world_size, start=start, epoch=epoch)
        share = mean_share(self.plan.n_samples, n_batches, place.world_size)
        most = LAZY_BYTES if lazy and not far else CHUNK_BYTES
        length = chunk_length(
            n_batches, share, this.count, sample_bytes=self.sample_bytes, most_samples=samples, most_bytes=most
        )
        together = max(1, _PLANNED // max(1, share * length))
        mine = partial(chunks, n_batches, this.number, this.count, length=length)
        if far:  # what will be read is known, and is fetched in that order
            if isinstance(self.plan, Plan) and self.plan.lanes:
                pieces = self._pieces(self.plan, n_batches, epoch, start)
                self.reader.follow_pieces(pieces, epoch, piece_bytes=self.plan.piece_bytes)
            else:
                coming = self._runs(mine(), epoch, start, together)
                self.reader.follow((ids for _, shares in coming for ids in shares), epoch)
        runs = self.reader.ahead(self._runs(mine(), epoch, start, together), lambda run: np.concatenate(run[1]))
        for number, (batches, shares) in enumerate(runs):
            delivered: list[Tally] = []
            watch = Stopwatch() if self.measures and number % MEASURED == 0 else None
            made = self._made(batches, shares, epoch, start, delivered, watch, lazy=lazy)
            yield Item(
                epoch=epoch,
                start=start,
                worker=this.number,
                number=batches[0],
                values=made if lazy else list(made),
                delivered=delivered,
                spent=None if watch is None else watch.spent,
            )

    def _pieces(self, plan: Plan, n_batches: int, epoch: int, start: int) -> Iterator[Piece]:
        """Yield what this rank reads, in the order of need; its workers share what they fetch."""
        place, first, length = self.topology, 0, 1
        known: set[tuple[int, int]] = set()  # of the batches before, which may continue in theirs
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
        self,
        batches: Sequence[int],
        shares: Sequence[Ids],
        epoch: int,
        start: int,
        delivered: list[Tally],
        watch: Stopwatch | None,
        *,
        lazy: bool,
    ) -> Iterator[Any]:
        """Yield what the stages make of each share: a batch, or a list of samples; list what it was made of."""
        planned = tallies(shares)
        stages = (*self.stages, *self.ahead)

        def place(number: int) -> context.Context:
            first = self.plan.consumed(batches[number], self.topology.world_size, start=start, epoch=epoch)
            return self.place(epoch, first)

        def decoded(number: int, fields: Any) -> tuple[list[Any], Sequence[Any]]:
            with context.at(partial(place, number)):  # most stages never ask
                return run_columns(stages, fields, self._where)

        def measured(number: int, fields: Any) -> tuple[list[Any], Sequence[Any]]:
            return watch.call("decoding", lambda: decoded(number, fields)) if watch else decoded(number, fields)

        found = self.reader.columns(shares, measured if watch else decoded, lazily=lazy)
        number = 0
        try:
            for values, rest in watch.each("store", found) if watch else found:
                left_out = self.reader.left_out(shares[number])
                tally = Tally.of(shares[number], left_out) if left_out else planned[number]
                if not rest and self.batches and len(values) == 1 and values[0] is not None:
                    made = values.pop()
                else:
                    if not (epoch or start or batches[number] or self.topology.rank):
                        self._look_for_repetition(values, rest)
                    try:
                        with context.at(partial(place, number)):
                            made = self._finished(values, rest, shares[number], watch)
                    except DecodeError as error:
                        raise error.located(samples=self.reader.named(shares[number])) from error.__cause__
                delivered.append(tally)
                yield made
                del made, values  # large ones are gone before the next are made
                number += 1
        except StageFailedError as failed:
            blamed = self._blamed(failed, shares[number], partial(decoded, number))
            raise blamed from blamed.__cause__

    def _blamed(self, failed: StageFailedError, ids: Ids, use: Callable[[Any], Any]) -> Exception:
        """Return the error of a stage that failed on the columns of a share, whose samples can all be decoded."""
        for sample in np.split(ids, len(ids)):
            for values in self.reader.read(sample):  # none if it is left out
                if alone := _failure(use, tuple(ValueColumn([value]) for value in values)):
                    locate(alone.error, stage=alone.stage, **self._where(), **self.reader.place(sample, 0, 1))
                    return alone.error
        error = unlike(len(ids), failed.error).located(stage=failed.stage, **self._where())
        error.__cause__ = failed.error
        return error

    def _where(self) -> dict[str, Any]:
        """Return split, rank and worker, for errors."""
        return {"split": self.split, **process(), "rank": self.topology.rank}

    def _taken(self, ids: Ids, n_values: int, left: Iterator[Any]) -> dict[str, Any]:
        """Return the place of the sample that was taken last of those of a share."""
        number = n_values - operator.length_hint(left) - 1
        return {**self._where(), **self.reader.place(ids, number, n_values)}

    def _finished(self, values: list[Any], rest: Sequence[Any], ids: Ids, watch: Stopwatch | None) -> Any:
        """Run the stages without a columnar form, and return the share's batch or samples."""
        within = max(0, len(rest) - len(self.ahead))
        left = iter(values)
        taken: Where = partial(self._taken, ids, len(values), left)
        if within:
            values = list(chain(rest[:within], left, taken, watch))
            left, taken = iter(values), self._where  # which sample a value is made of is not known any more
            if self.joins and 0 < len(values) < len(ids) and sum(map(leading, values)) == len(ids):
                raise batches_joined(self, self.stages)
        if not values:
            raise ConfigError(
                f"pipeline_wds ({names_of(self.stages)}) left nothing of a share of "
                f"{count(len(ids), 'sample')}, and every rank must take the same steps; "
                "leave samples out with where= or when converting, take larger batches, or read in order='shards'",
                split=self.split,
                rank=self.topology.rank,
            )
        if not self.batches:
            return list(chain(rest[within:], left, taken, watch)) if len(rest) > within else values
        return only_batch(chain(rest[within:], left, taken, watch), self, self.ahead, len(ids))

    def _look_for_repetition(self, values: list[Any], rest: Sequence[Any]) -> None:
        """Warn of stages that draw the same random numbers for every share."""
        within = len(rest) - len(self.ahead)
        places = [self.place(0, first) for first in (0, 1)]
        for name in repeating(rest[: max(0, within)], values[:1], places):
            warnings.warn(
                f"{self.split}: the stage {name} draws the same random numbers whenever it is called, and in global "
                "order it is called for every batch; draw them from bionemo.webdatamodule.context.current().rng(), "
                "or read in order='shards', where it is called once for each worker and pass",
                DataWarning,
                stacklevel=2,
            )

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
        argument = "pipeline_prebatch_wld"
        if stages is dataset.ahead and len(stages) == 1:  # the loader has none of its own
            argument, stages = "pipeline_wds", dataset.stages
        raise ConfigError(
            f"{argument} ({names_of(stages)}) makes {more} of a share of "
            f"{count(n_samples, 'sample')}, this rank's part of a global batch; every rank must take the same "
            "steps, so make one batch of at least that size, or read in order='shards'",
            split=dataset.split,
            rank=dataset.topology.rank,
        )
    return batches[0]


def _failure(use: Callable[[Any], Any], fields: Any) -> StageFailedError | None:
    try:
        use(fields)
    except StageFailedError as failed:
        return failed
    return None


def leading(value: Any) -> int:
    """Return the first dimension of the first tensor or array in a sample or batch; 0 where there is none."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next(filter(None, map(leading, value)), 0)
    shape = getattr(value, "shape", ())
    return int(shape[0]) if shape else 0


def batches_joined(dataset: Placed, stages: Sequence[Any]) -> ConfigError:
    """Return the error of a pipeline that makes batches, which would be joined into batches once more."""
    return ConfigError(
        f"pipeline_wds ({names_of(stages)}) makes batches, and by default pipeline_prebatch_wld joins what comes from "
        f"it into batches; to pass them on as they are, give pipeline_prebatch_wld={{{dataset.split!r}: []}}; "
        f"if they are samples, give pipeline_prebatch_wld={{{dataset.split!r}: 'batch'}}",
        split=dataset.split,
    )


_Placed = TypeVar("_Placed", bound="Placed")


def apart(dataset: _Placed) -> _Placed:
    """Return a copy of a dataset with a position of its own, for one loader."""
    result = copy.copy(dataset)
    result.position = Position()
    return result
