"""Datasets in shards order: webdataset's own way of dealing and streaming shards."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import webdataset as wds
from webdataset.compat import FluidInterface
from webdataset.shardlists import split_by_node, split_by_worker

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.loading.dataset import ALONE, Position, batches_joined, leading
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.reading.locate import process
from bionemo.webdatamodule._engine.sampling.partition import CHUNK_BYTES
from bionemo.webdatamodule._engine.sampling.taken import Groups
from bionemo.webdatamodule._engine.stages import chain
from bionemo.webdatamodule._engine.stopwatch import Stopwatch
from bionemo.webdatamodule.columns import samples_of
from bionemo.webdatamodule.components import Item
from bionemo.webdatamodule.context import shuffled
from bionemo.webdatamodule.errors import PlanError, count

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.reading.reader import ShardReader
    from bionemo.webdatamodule.planning import Ids

Splitter = Callable[[Iterable[Any]], Iterable[Any]]

_Numbers: TypeAlias = "list[int] | deque[int]"
"""Numbers of the samples that the stages took, also those that were left out; at least the last one."""

LARGEST_ITEM = 512
"""Samples that cross to the main process together, at most; fewer where they are large."""

_FIRST, _MEASURED = 8, 7  # items: the first are all measured, and later one of so many, whatever is read together

_REPETITIONS = 1_000_003  # so that a pass of the loader and a repetition of the dataset give no number twice


@dataclass(frozen=True, kw_only=True)
class Dealing:
    """How shards are dealt, in the words of ``webdataset.WebDataset``.

    Unlike there, shards are shuffled before they are dealt to nodes and workers, so a rank does not see the same
    shards forever; the order is new in each epoch and repeats between runs; and ``resampled`` heeds the seed.

    Attributes:
        nodesplitter: Picks this rank's shards; ``None`` leaves all of them to every rank.
        workersplitter: Picks this worker's shards; ``None`` leaves all of them to every worker.
        shardshuffle: Shards in the shuffle's buffer; 0 for the order of their names.
        resampled: Draw shards with replacement, without end.
        empty_check: Whether a worker without shards is an error.
        seed: Where all randomness comes from.
    """

    nodesplitter: Splitter | None = split_by_node
    workersplitter: Splitter | None = split_by_worker
    shardshuffle: int = 0
    resampled: bool = False
    empty_check: bool = True
    seed: int = 0


PLAIN = Dealing()
"""Shards in their order, dealt to ranks and workers in turn."""


class StreamDataset(wds.DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset is not typed
    """A split in shards order, as a webdataset pipeline: shards, splitters, samples, the user's stages.

    Args:
        reader: Reads the samples of a shard.
        shards: The shards' paths, in the reader's order.
        stages: Run on the stream of samples, in workers.
        dealing: How shards are dealt to ranks and workers.
        topology: This process's place.
        split: The split's name, for messages.
        batch_size: Samples of a batch of this rank, for the ``batch`` stage.
        sample_bytes: Mean size of a sample, which decides how many cross from a worker at once.
        joins: Whether the user named no stages of the loader, so that ``batch`` stands behind it.
    """

    def __init__(
        self,
        *,
        reader: ShardReader,
        shards: Sequence[str],
        stages: Sequence[Any] = (),
        dealing: Dealing = PLAIN,
        topology: Topology = ALONE,
        split: str = "train",
        batch_size: int = 1,
        sample_bytes: float = 0,
        joins: bool = False,
    ) -> None:
        super().__init__(_source, *stages)
        self.reader = reader
        self.shards = tuple(shards)
        self.dealing = dealing
        self.topology = topology
        self.split = split
        self.batch_size = batch_size
        self.joins = joins
        self.sample_bytes = sample_bytes
        self.position = Position()
        self.measures = False  # whether the work on some items is measured; set before workers start

    def __iter__(self) -> Iterator[Any]:
        return self._iterate(deque(maxlen=1), None)

    def _iterate(self, taken: _Numbers, watch: Stopwatch | None) -> Iterator[Any]:
        if self.repetitions == 1:
            return self._pass(0, taken, watch)
        source = self.iterator(taken, watch)
        if self.nsamples > 0:  # with_epoch: so many samples a rank, not a worker
            worker, workers = _worker()
            return itertools.islice(source, (self.nsamples - worker + workers - 1) // workers)
        return source

    def iterator(self, taken: _Numbers | None = None, watch: Stopwatch | None = None) -> Iterator[Any]:
        """Yield the samples of as many passes as were asked for, each in an order of its own."""
        taken = deque(maxlen=1) if taken is None else taken
        for repetition in range(self.repetitions):
            count = 0
            for sample in self._pass(repetition, taken, watch):
                yield sample
                count += 1
            if not count:
                return

    def items(self) -> Iterator[Item]:
        """Yield this worker's samples in items that grow from 1 to :data:`LARGEST_ITEM` samples or 4 MB.

        Beside each value are the numbers of the samples that the stages took for it, also those that were left out. The
        last item is empty but for samples of which nothing was made.
        """
        epoch, start = self.position.get()
        worker = _worker()[0]
        taken: list[int] = []
        watch = Stopwatch() if self.measures else None
        samples = self._iterate(taken, watch)
        largest = max(1, min(LARGEST_ITEM, int(CHUNK_BYTES / max(1.0, self.sample_bytes))))
        number, size, count, begun = 0, 1, 0, 0
        values: list[Any] | None = None
        while values is None or values:
            if watch is not None:
                watch.running = count < _FIRST or not count % _MEASURED
            values, ends = [], []
            for value in itertools.islice(samples, size):
                values.append(value)
                ends.append(len(taken) - begun)
            ends = ends or [len(taken) - begun]
            end = begun + ends[-1]
            yield Item(  # an empty one at the end, so that a lost item is noticed
                epoch=epoch,
                start=start,
                worker=worker,
                number=number,
                values=values,
                delivered=Groups(taken[begun:end], ends),
                spent=watch.take() if watch is not None and watch.running else None,
            )
            begun = min(end, 1)
            del taken[: end - begun]  # all but the last, which errors name
            number, size, count = number + len(values), min(2 * size, largest), count + 1

    def place(self, epoch: int, passed: int, worker: int) -> context.Context:
        """Return the place of a pass for stages that draw random numbers."""
        return context.Context(
            order="shards",
            seed=self.dealing.seed,
            epoch=epoch,
            first=passed,
            rank=self.topology.rank,
            worker=worker,
            batch_size=self.batch_size,
        )

    def check(self, num_workers: int) -> None:
        """Refuse fewer shards than workers before any of them starts.

        Raises:
            PlanError: If a worker would have nothing to read.
        """
        dealt = self.dealing
        usual = dealt.nodesplitter is split_by_node and dealt.workersplitter is split_by_worker
        needed = self.topology.world_size * max(1, num_workers)
        if usual and dealt.empty_check and not dealt.resampled and len(self.shards) < needed:
            raise PlanError(
                f"fewer shards than workers: {count(len(self.shards), 'shard')} for "
                f"{count(self.topology.world_size, 'rank')} of {count(max(1, num_workers), 'worker')}; "
                f"convert into at least {count(needed, 'shard')}, take fewer workers, or leave the "
                "shard arguments out of kwargs_wds, since order='global' needs no shard for each worker",
                split=self.split,
            )

    def _pass(self, repetition: int, taken: _Numbers, watch: Stopwatch | None) -> Iterator[Any]:
        """Return one pass over this worker's samples, after all stages."""
        epoch, passed = self.position.get()
        place = self.place(epoch, passed * _REPETITIONS + repetition, _worker()[0])
        with context.at(place):
            where = partial(self._where, taken)
            if not self.joins:
                return chain(self.pipeline[1:], self._samples(place, taken, watch), where, watch)
            counter = itertools.count()
            counted = (sample for sample, _ in zip(self._samples(place, taken, watch), counter, strict=False))
            return self._checked(chain(self.pipeline[1:], counted, where, watch), counter)

    def _checked(self, made: Iterator[Any], counter: itertools.count[int]) -> Iterator[Any]:
        """Pass on what the stages make, unless the first two are batches of all samples that they took until then."""
        first = list(itertools.islice(made, 1))
        taken = next(counter)
        more = list(itertools.islice(made, 1))
        sizes = list(map(leading, first + more))
        if len(sizes) == 2 and sizes[0] > 1 and (sizes[0], sum(sizes)) == (taken, next(counter) - 1):
            raise batches_joined(self, self.pipeline[1:-1])
        return itertools.chain(first, more, made)

    def _where(self, taken: _Numbers) -> dict[str, Any]:
        """Return split, rank, worker, and the shard and key of the sample that was taken last, for errors."""
        found = self.reader.place(np.array([taken[-1]]), 0, 1) if taken else {}
        return {"split": self.split, **process(), "rank": self.topology.rank, **found}

    def _samples(self, place: context.Context, taken: _Numbers, watch: Stopwatch | None) -> Iterator[Any]:
        """Yield the samples of the shards dealt to this worker."""
        numbers = {path: number for number, path in enumerate(self.shards)}
        dealt = 0
        if self.reader.is_remote:  # what will be read is known, and is fetched in that order
            self.reader.follow_shards((numbers[shard["url"]] for shard in self._dealt(place)), place.epoch)
        for shard in self._dealt(place):
            dealt += 1
            for ids in self.reader.runs(numbers[shard["url"]]):
                samples = self._read(ids, watch)
                kept = ids.tolist()
                if left_out := self.reader.left_out(ids):
                    taken.extend(left_out)
                    kept = [number for number in kept if number not in left_out]
                for number, sample in zip(kept, samples, strict=True):
                    taken.append(number)
                    yield sample
        if not dealt and self.dealing.empty_check:
            worker, workers = _worker()
            raise PlanError(
                f"fewer shards than workers: {count(len(self.shards), 'shard')}, and none for this one of "
                f"{count(workers, 'worker')} of {count(self.topology.world_size, 'rank')}; "
                "convert into more shards or take fewer workers",
                split=self.split,
                rank=self.topology.rank,
                worker=worker,
            )

    def _read(self, ids: Ids, watch: Stopwatch | None) -> list[tuple[Any, ...]]:
        if watch is None:
            return self.reader.read(ids)
        return watch.call(
            "store",
            lambda: self.reader.read(ids, lambda fields: watch.call("decoding", partial(samples_of, fields))),
        )

    def _dealt(self, at: context.Context) -> Iterator[dict[str, str]]:
        shards: Iterator[Any] = ({"url": path} for path in self.shards)
        if self.dealing.resampled:
            choose = at.rng("resampled").choice
            urls = list(shards)
            return (choose(urls) for _ in itertools.count())
        if self.dealing.shardshuffle:
            # the same on every rank and worker, so that what one of them leaves another takes
            shards = shuffled(shards, self.dealing.shardshuffle, None, replace(at, rank=0, worker=0))
        place, worker = self.topology, _worker()
        # webdataset's own splitters ask the environment, which knows no model-parallel ranks
        for splitter, own, (number, step) in (
            (self.dealing.nodesplitter, split_by_node, (place.rank, place.world_size)),
            (self.dealing.workersplitter, split_by_worker, worker),
        ):
            if splitter is own:
                shards = itertools.islice(shards, number, None, step)
            elif splitter is not None:
                shards = iter(splitter(shards))
        return shards


def _source() -> Iterator[Any]:
    """Stand for the source in a dataset's list of stages; the dataset reads its shards itself."""
    return iter(())


def _worker() -> tuple[int, int]:
    """Return this worker's number and how many there are; 0 and 1 in the main process."""
    worker = context.worker()
    return worker.number, max(1, worker.count)
