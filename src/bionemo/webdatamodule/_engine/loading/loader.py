"""Loaders: they take items from worker processes, make batches of them, and know where in the run they are."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import webdataset as wds

from bionemo.webdatamodule import context
from bionemo.webdatamodule._engine.loading.dataset import MEASURED, Planned, PlannedDataset, apart, only_batch
from bionemo.webdatamodule._engine.loading.items import LoaderItems
from bionemo.webdatamodule._engine.loading.progress import Clock, Progress
from bionemo.webdatamodule._engine.peers import Peers
from bionemo.webdatamodule._engine.ranks import Topology
from bionemo.webdatamodule._engine.sampling.cursor import Cursor
from bionemo.webdatamodule._engine.sampling.plan import Plan
from bionemo.webdatamodule._engine.stages import chain
from bionemo.webdatamodule._engine.stopwatch import Stopwatch, Work
from bionemo.webdatamodule.errors import count

if TYPE_CHECKING:
    from bionemo.webdatamodule._engine.loading.stream_dataset import StreamDataset
    from bionemo.webdatamodule._engine.reading.reader import ShardReader
    from bionemo.webdatamodule.components import LoaderFunction
    from bionemo.webdatamodule.planning import EpochPlan


class SplitLoader(wds.WebLoader):  # type: ignore[misc]  # webdataset is not typed
    """What the loaders of both orders share.

    Args:
        dataset: The split's dataset.
        loader: Makes an iterable of the dataset's items, from worker processes or not.
        clock: Of the run that takes the batches.
        cursor: A cursor at the start of the data, with the identity of the data.
        pipeline: Stages behind the items, in this process.
        loader_name: What the loader is called, for messages.
        loader_plugin: Plugin and distribution that it is of, for errors.
        skips_changed: Whether a state of other data means the next epoch, rather than an error.
        receipt: The file that the receipt of each epoch is appended to, if any.
        peers: Compares the first batch with those of other processes, where some must get the same.
    """

    num_workers: int
    _data: PlannedDataset | StreamDataset

    def __init__(
        self,
        *,
        dataset: PlannedDataset | StreamDataset,
        loader: LoaderFunction,
        clock: Clock,
        cursor: Cursor,
        pipeline: Sequence[Any] = (),
        loader_name: str = "",
        loader_plugin: Mapping[str, str] | None = None,
        skips_changed: bool = False,
        receipt: str | None = None,
        peers: Peers | None = None,
    ) -> None:
        dataset = apart(dataset)
        self._items = LoaderItems(dataset, loader, loader_name, loader_plugin)
        wds.DataPipeline.__init__(self, self._items, *pipeline)  # WebLoader's own makes a torch DataLoader
        self.split: str = dataset.split
        self.receipt = receipt
        self._data = dataset
        self._peers = peers
        self.work, self.own_work = Work(), Work()  # on batches or samples since :meth:`measure`: in workers, and here
        self.progress = Progress(cursor, clock, skips_changed=skips_changed)

    @property
    def topology(self) -> Topology:
        """This process's place among the data-parallel processes."""
        return self._data.topology

    @property
    def reader(self) -> ShardReader:
        """What reads the samples."""
        return self._data.reader

    def measure(self) -> None:
        """Measure some of the work from now on, in workers that start from now on."""
        self._data.measures = True
        self.work, self.own_work = Work(), Work()

    @property
    def _iterator(self) -> None:
        """Lightning's way to end workers that are kept: it sets this attribute of a loader to ``None``."""

    @_iterator.setter
    def _iterator(self, value: None) -> None:  # noqa: ARG002 - always None
        self._items.close()

    def _where(self) -> dict[str, object]:
        """Return split and rank, for errors of stages."""
        return {"split": self.split, "rank": self.topology.rank}


class PlannedLoader(Planned, SplitLoader):
    """The loader of a split in global order, as a webdataset pipeline with a true length and a state.

    Every iteration is an epoch of its own; under a ``Trainer`` it is the trainer's current one.
    webdataset's fluid methods add stages to a copy; stages run again on each share and must make one batch of it.

    Args:
        dataset: The split's dataset.
        loader: Makes an iterable of the dataset's items, from worker processes or not.
        stages: Run on the samples of each share, in this process; empty where the workers make batches.
        options: The other arguments of :class:`SplitLoader`.
    """

    _data: PlannedDataset

    def __init__(
        self, *, dataset: PlannedDataset, loader: LoaderFunction, stages: Sequence[Any], **options: Any
    ) -> None:
        SplitLoader.__init__(self, dataset=dataset, loader=loader, **options)
        self.stages = tuple(stages)
        self.num_workers = getattr(loader, "num_workers", 0)

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, the same on every rank."""
        return self._data.plan.n_batches(self._data.topology.world_size)

    def __iter__(self) -> Iterator[Any]:
        return self._epoch()

    def compose(self, *stages: Any) -> PlannedLoader:
        """Return a copy with more stages, which run on each share."""
        result = copy.copy(self)
        result.pipeline = list(self.pipeline)
        result.stages = (*self.stages, *stages)
        return result

    def append(self, f: Any) -> None:
        """Add a stage, which runs on each share; the first one is the source of the pipeline."""
        if not self.pipeline:
            self.pipeline.append(f)
        else:
            self.stages = (*self.stages, f)

    @property
    def plan(self) -> EpochPlan:
        """The plan that the loader follows."""
        return self._data.plan

    @property
    def world_size(self) -> int:
        """The number of data-parallel processes."""
        return self._data.topology.world_size

    @property
    def cursor(self) -> Cursor:
        """The place in the data after the last batch whose step ran."""
        began = self.progress.cursor
        return replace(began, samples=self._consumed(self.progress.stepped, began))

    def state_dict(self) -> dict[str, Any]:
        """Return the cursor as plain numbers and strings: the same on every rank, with any number of workers."""
        return self.cursor.to_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration at the cursor of a state.

        Raises:
            ResumeError: If the state is of other data, of another seed or of a newer version.
        """
        cursor = Cursor.from_state(state)
        if self.progress.fits(cursor, lambda: self._start(self._continued(cursor)), self.split):
            self._data.plan = self._continued(cursor)
            self.progress.cursor = self._start(self.plan)
            self.seek(cursor)

    def _continued(self, cursor: Cursor) -> EpochPlan:
        return self.plan.continued(cursor.order) if isinstance(self.plan, Plan) else self.plan

    def _start(self, plan: EpochPlan) -> Cursor:
        return replace(self.progress.cursor, digest=Cursor.of(plan, self._data.reader.digest).digest)

    def seek(self, cursor: Cursor) -> None:
        """Begin the next iteration at a cursor, which may have been made with another global batch size."""
        self.progress.seek(replace(self.progress.cursor, epoch=cursor.epoch, samples=cursor.samples))

    def finished(self, cursor: Cursor) -> bool:
        """Return whether nothing is left of the epoch at a cursor."""
        return not self.plan.n_batches(self.world_size, start=cursor.samples, epoch=cursor.epoch)

    def _epoch(self) -> Iterator[Any]:
        cursor = self.progress.begin(self.finished)
        if cursor is None:
            return
        place = self._data.topology
        shares = self.plan.n_batches(place.world_size, start=cursor.samples, epoch=cursor.epoch)
        if not shares:
            return
        index = 0
        with contextlib.closing(self._items.begin(cursor.epoch, cursor.samples)) as items:
            for item in items:
                self._items.check(item, index)
                for number, value in enumerate(item.values):
                    watch = Stopwatch() if self._data.measures and index % MEASURED == 0 else None
                    done = self._data.batches and not self.stages
                    batch = value if done else self._batch(value, cursor, index, watch)
                    self.own_work.add(1, None if watch is None else watch.spent)
                    tally = self._items.delivered(item, number)
                    if self._peers is not None:
                        self._peers.check(batch, f"{tally.hash:016x}")
                    index += 1
                    self.progress.deliver(tally)
                    if index == shares:
                        self.work.add(len(item.delivered), item.spent)
                        self._data.reader.log_skipped()
                        items.close()  # before the last batch: a Ctrl-C while a generator is collected would be lost
                        yield batch
                        return
                    yield batch
                    del value, batch  # a large one is gone before the next is made
                self.work.add(len(item.delivered), item.spent)
        raise self._items.out_of_turn(f"stopped after {index} of {count(shares, 'batch', 'batches')}")

    def _batch(self, value: Any, cursor: Cursor, index: int, watch: Stopwatch | None) -> Any:
        """Run the stages on the samples of one share, or on the batch of it, which must give one batch."""
        samples = [value] if self._data.batches else value
        with context.at(self._data.place(cursor.epoch, self._consumed(index, cursor))):
            return only_batch(chain(self.stages, samples, self._where, watch), self._data, self.stages, len(samples))

    def _consumed(self, batches: int, cursor: Cursor) -> int:
        if not batches:
            return cursor.samples
        world_size = self._data.topology.world_size
        return self._data.plan.consumed(batches, world_size, start=cursor.samples, epoch=cursor.epoch)
